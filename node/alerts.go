package node

import (
	"context"
	"errors"
	"fmt"

	"sanctuary/node/api"
	"sanctuary/replication"
)

// Alerts implements api.Service.
func (s service) Alerts(context.Context) ([]api.Alert, error) {
	out := s.poolAlerts()
	status, orphans, blind := s.n.reconciler.Status()
	if blind != nil {
		out = append(out, api.Alert{
			Severity: api.SeverityCritical, Subject: "node/" + s.n.cfg.Node, What: "This node cannot tell which replicas it holds: " + blind.Error(),
			Data: "Nothing is changed on it until it can.", Next: "Check that its disks are mounted and readable.",
		})
	}
	if s.n.journal.Tight() {
		out = append(out, api.Alert{
			Severity: api.SeverityCritical, Subject: "node/" + s.n.cfg.Node, What: fmt.Sprintf("The file system of node %s's journal is full", s.n.cfg.Node),
			Data: "Nothing is lost: the journal makes do with the room it has, by keeping less for copies that come back; if that is too little, writes to LUNs with a copy here wait.",
			Next: "Make room on the file system that holds " + s.n.cfg.DataDir + "; the node goes on by itself.",
		})
	}
	for _, st := range status {
		if st.Failures > 2 {
			out = append(out, api.Alert{
				Severity: api.SeverityWarning, Subject: "lun/" + st.Name, What: fmt.Sprintf("Node %s cannot do its part: %s", s.n.cfg.Node, st.Reason),
				Data: "The LUN's other replicas go on.", Next: "Remove the cause; the node tries again by itself.",
			})
		}
	}
	if portal := s.n.portal.Load(); portal != nil {
		if n := portal.LoginStats().Panics; n > 0 {
			out = append(out, api.Alert{
				Severity: api.SeverityWarning, Subject: "node/" + s.n.cfg.Node,
				What: fmt.Sprintf("Mistakes in this program have ended %d connections of initiators since it started", n),
				Data: "No acknowledged write is lost: those initiators log in again and repeat what was not answered.",
				Next: "Report it with the lines of this node's log that say \"panic\". The alert ends with a restart.",
			})
		}
	}
	for _, o := range orphans {
		out = append(out, api.Alert{
			Severity: api.SeverityWarning, Subject: "node/" + s.n.cfg.Node, What: fmt.Sprintf("Storage of replica %s of LUN %s is not in use: %s", o.Replica, o.LUN, o.Why),
			Data: "It is kept as it is.", Next: "Decide whether it is still needed.",
		})
	}
	out = append(out, s.n.schedules.alerts()...)
	for _, l := range s.n.catalog.Model().LUNs {
		run := s.n.replicas.get(l.ID)
		if run == nil {
			continue
		}
		if run.group.Status().Full {
			out = append(out, api.Alert{
				Severity: api.SeverityCritical, Subject: "lun/" + l.Name, What: fmt.Sprintf("The pool of node %s is full: this copy cannot apply what it is sent", s.n.cfg.Node),
				Data: "Nothing is lost: it keeps it in its journal and goes on when there is room. Until then it must not be the only copy.",
				Next: "Delete or unmap data in that pool, or raise its capacity and restart the node.",
			})
		}
		if err := run.group.Err(); errors.Is(err, replication.ErrSuperseded) {
			out = append(out, api.Alert{
				Severity: api.SeverityWarning, Subject: "lun/" + l.Name,
				What: fmt.Sprintf("The replica on node %s belongs to a history that was given up: %v", s.n.cfg.Node, err),
				Data: "The LUN goes on elsewhere, from the copy an operator has chosen; this one takes part in nothing.",
				Next: "Nothing: it is made anew when this node has heard of the decision. To look at what it holds, do so before.",
			})
		} else if err != nil {
			out = append(out, api.Alert{
				Severity: api.SeverityCritical, Subject: "lun/" + l.Name, What: fmt.Sprintf("The replica on node %s is out: %v", s.n.cfg.Node, err),
				Data: "The LUN goes on from its other replicas; this copy is not used any more.", Next: "Replace the disk and follow \"A failed disk\" in docs/OPERATING.md: the replica is rebuilt from the others.",
			})
		}
	}
	return out, nil
}
