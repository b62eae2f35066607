package initiator

import "testing"

// Whatever a target answers to SendTargets: a list in which every portal has an address with a port, or an error.
func FuzzTargets(f *testing.F) {
	for _, answer := range []string{
		"TargetName=iqn.a\x00TargetAddress=192.0.2.1:3260,1\x00TargetAddress=[2001:db8::1]:3260,2\x00TargetName=iqn.b\x00",
		"TargetAddress=192.0.2.1\x00", "TargetName=iqn.a\x00TargetAddress=[::1]\x00\x00\x00", "TargetName=a\x00TargetAddress=,1\x00",
		"TargetName=a\x00TargetAddress=host,65536\x00", "garbage", "TargetName=a\x00TargetAddress=::1,3",
	} {
		f.Add([]byte(answer))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		targets, err := parseTargets(answer)
		if err != nil {
			return
		}
		portals := 0
		for _, x := range targets {
			for _, p := range x.Portals {
				portals++
				if again, err := parseAddress(p.Address); err != nil || again != p.Address {
					t.Fatalf("portal %q", p.Address)
				}
			}
		}
		if len(targets)+portals > len(answer)/11+1 { // "TargetName="
			t.Fatalf("%d targets and %d portals in %d bytes", len(targets), portals, len(answer))
		}
	})
}
