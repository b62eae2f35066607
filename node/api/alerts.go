package api

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// alerts returns what the state itself calls for, together with what the node reports, most severe first.
func alerts(cat Catalog, nodes []Node, luns []LUN, reported []Alert, now time.Time) []Alert {
	out := slices.Clone(orEmpty(reported))
	if cat.Leader == "" {
		out = append(out, Alert{
			Severity: SeverityWarning, Subject: "catalog", What: "the catalog has no leader that this node knows of",
			Data: "LUNs that are served go on being served. Nothing can be created, deleted or replaced.",
			Next: "Bring more than half of the nodes back, or wait: an election takes about a second.",
		})
	}
	for _, n := range nodes {
		if !n.Alive {
			out = append(out, Alert{
				Severity: SeverityWarning, Subject: "node/" + n.Name, What: fmt.Sprintf("node %s does not answer", n.Name),
				Data: "No acknowledged write is lost by that alone. LUNs with a replica there have one copy or vote less.",
				Next: "Start it again: it catches up with what it missed.",
			})
		}
	}
	for _, l := range luns {
		if a, ok := lunAlert(l); ok {
			out = append(out, a)
		}
		out = append(out, scrubAlerts(l, now)...)
	}
	slices.SortStableFunc(out, func(a, b Alert) int { return cmp.Compare(rank(a.Severity), rank(b.Severity)) })
	return out
}

// reported returns what this node reports and, unless localOnly, what every other one that is alive does, or that it does not say.
func (s *Server) reported(ctx context.Context, localOnly bool) ([]Alert, error) {
	own, err := s.svc.Alerts(ctx)
	if err != nil || localOnly {
		return own, err
	}
	all := slices.Clone(own)
	silent, err := askNodes(ctx, s, "/v1/alerts", func(n Node) bool { return n.Alive }, func(theirs AlertList) {
		for _, a := range theirs.Alerts {
			if !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	})
	for _, node := range silent {
		all = append(all, Alert{
			Severity: SeverityWarning, Subject: "node/" + node, What: fmt.Sprintf("node %s is alive and does not say what calls for attention there", node),
			Data: "What its disks and pools are like is not known here.", Next: "Ask it: sanctuary status --api ADDRESS, there. One that runs an older program does not tell others.",
		})
	}
	slices.SortStableFunc(all, func(a, b Alert) int { return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.What, b.What)) }) // in whichever order they answer
	return all, err
}

func rank(severity string) int {
	switch severity {
	case SeverityCritical:
		return 0
	case SeverityWarning:
		return 1
	default:
		return 2
	}
}

func lunAlert(l LUN) (Alert, bool) {
	a := Alert{Subject: "lun/" + l.Name}
	why := ""
	if l.Reason != "" {
		why = ": " + l.Reason
	}
	switch l.Health {
	case HealthHealthy:
		if l.View.Note == "" {
			return Alert{}, false
		}
		a.Severity, a.What = SeverityWarning, fmt.Sprintf("LUN %s: %s", l.Name, l.View.Note)
		a.Data = "This node believes it healthy, but its owner has not confirmed that."
		a.Next = "Ask again in a moment, or ask another node with --api."
	case HealthCreating:
		a.Severity, a.What = SeverityInfo, fmt.Sprintf("LUN %s is being created%s", l.Name, why)
		a.Data, a.Next = "It holds none yet.", "Wait. If it stays so, see the nodes that hold its replicas."
	case HealthCatchingUp:
		a.Severity, a.What = SeverityInfo, fmt.Sprintf("LUN %s is catching up%s", l.Name, why)
		a.Data = "Every acknowledged write is safe; until it is done one more failure may stop I/O."
		a.Next = "Nothing: it ends by itself. Do not take another node away meanwhile."
	case HealthDegraded:
		a.Severity, a.What = SeverityWarning, fmt.Sprintf("LUN %s is degraded%s", l.Name, why)
		a.Data = "Every acknowledged write is safe, and I/O goes on; one more failure may stop it."
		a.Next = "Bring the missing node or disk back. Do not take another one away."
	case HealthLost:
		a.Severity, a.What = SeverityCritical, fmt.Sprintf("LUN %s is lost%s", l.Name, why)
		a.Data = "Every replica that held its data is gone. I/O is refused so that no guest takes emptiness for its data."
		a.Next = "Restore it from a backup into a new LUN, then delete this one."
	case HealthUnavailable:
		a.Severity, a.What = SeverityCritical, fmt.Sprintf("LUN %s is not served%s", l.Name, why)
		a.Data = "Nothing acknowledged is lost. I/O waits, and guests with it, until a quorum of its replicas is back."
		a.Next = "Bring back the nodes that hold its replicas: sanctuary lun show " + l.Name
	default:
		a.Severity, a.What = SeverityWarning, fmt.Sprintf("LUN %s: health %q is not known to this program", l.Name, l.Health)
		a.Data, a.Next = "Not known.", "Update the program you ask with."
	}
	return a, true
}
