package scsi

import "fmt"

type nexusUnits struct{}

func nexusName(n *Nexus) string { return fmt.Sprintf("%s,i,0x%012x", n.Initiator, n.ISID) }
