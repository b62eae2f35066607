package main

import (
	"fmt"
	"time"

	"sanctuary/node/api"
)

// rebuildText says how far a rebuild is, behind what else is said of a replica.
func rebuildText(r *api.ReplicaRebuild) string {
	if r == nil {
		return ""
	}
	s := fmt.Sprintf("; %s copied", formatSize(r.Copied))
	if r.Total > 0 {
		s += fmt.Sprintf(", %s of %s to go", formatSize(r.ToGo), formatSize(r.Total))
	}
	if r.PerSecond > 0 {
		s += fmt.Sprintf(", %s/s", formatSize(r.PerSecond))
	}
	if r.SecondsLeft > 0 {
		s += fmt.Sprintf(", about %s left", time.Duration(r.SecondsLeft)*time.Second)
	}
	if b := r.Before; b != nil {
		s += fmt.Sprintf("; before it, entry %d", b.Index)
		if b.AsOf != nil {
			s += " of " + b.AsOf.Format(time.RFC3339)
		}
		s += ", kept until it has ended"
	}
	return s
}
