package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"sanctuary/node/api"
)

// print writes v as JSON or with the given function as text.
func (c *cli) print(v any, text func(io.Writer)) error {
	if c.output != outputJSON { // wide is a table with other columns where there are any
		text(c.env.out)
		return nil
	}
	enc := json.NewEncoder(c.env.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}

// table writes rows in columns; the first row is the heading.
func table(w io.Writer, rows ...[]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintln(t, strings.Join(r, "\t")) // the writer below keeps the error, and there is nobody to tell
	}
	_ = t.Flush()
}

func line(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format+"\n", args...) // output to a closed pipe is no error of ours
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func printLUNs(w io.Writer, luns []api.LUN) {
	if len(luns) == 0 {
		line(w, "No LUNs. Create one: sanctuary lun create vm1 --size 10GiB")
		return
	}
	rows := [][]string{{"NAME", "SIZE", "MEDIA", "HEALTH", "OWNER", "IN SYNC", "TERM", "FOR"}}
	for _, l := range luns {
		rows = append(rows, []string{l.Name, formatSize(l.SizeBytes), l.Media, string(l.Health), dash(l.Owner), syncCount(l), fmt.Sprint(l.Term), accessWord(l.Access)})
	}
	table(w, rows...)
	for _, l := range luns {
		if l.Reason != "" {
			line(w, "%s: %s", l.Name, l.Reason)
		}
		if l.View.Note != "" {
			line(w, "%s: %s", l.Name, l.View.Note)
		}
	}
}

// syncCount is "copies in sync/copies", and the witness if there is one.
func syncCount(l api.LUN) string {
	in, all, witness := 0, 0, ""
	for _, r := range l.Replicas {
		if r.Role == api.RoleWitness {
			witness = " +witness"
			continue
		}
		all++
		if r.InSync {
			in++
		}
	}
	return fmt.Sprintf("%d/%d%s", in, all, witness)
}

func printLUN(w io.Writer, l api.LUN) {
	table(w,
		[]string{"Name:", l.Name},
		[]string{"Health:", string(l.Health)},
		[]string{"Reason:", dash(l.Reason)},
		[]string{"Size:", fmt.Sprintf("%s (%d bytes, %d-byte blocks)", formatSize(l.SizeBytes), l.SizeBytes, l.BlockBytes)},
		[]string{"Allocated:", fmt.Sprintf("%s (%d bytes) on node %s", formatSize(l.Allocated), l.Allocated, l.View.Node)},
		[]string{"Holds:", lunSpaceText(l.Space)},
		[]string{"Mode:", modeText(l)},
		[]string{"Origin:", originText(l.Origin)},
		[]string{"Media:", l.Media},
		[]string{"Class:", classWord(l.Class)},
		[]string{"Owner:", dash(l.Owner)},
		[]string{"Preferred:", dash(l.Preferred)},
		[]string{"Access:", accessText(l.Access)},
		[]string{"Non-optimized paths:", onOff(l.NonOptimizedPaths)},
		[]string{"Zero detection:", onOff(l.ZeroDetection)},
		[]string{"Target:", l.IQN},
		[]string{"Number:", fmt.Sprint(l.Number)},
		[]string{"NAA:", l.NAA},
		[]string{"Serial:", l.Serial},
		[]string{"ID:", l.ID},
		[]string{"Log:", fmt.Sprintf("term %d, applied %d", l.Term, l.AppliedIndex)},
		[]string{"Known by:", fmt.Sprintf("%s (%s)", l.View.Node, l.View.Source)},
	)
	if l.View.Note != "" {
		line(w, "Note: %s", l.View.Note)
	}
	line(w, "")
	rows := [][]string{{"REPLICA", "NODE", "ROLE", "STATE", "OWNER", "CONNECTED", "IN SYNC", "DURABLE TO"}}
	for _, r := range l.Replicas {
		match := "-"
		if r.MatchIndex != 0 {
			match = fmt.Sprint(r.MatchIndex)
		}
		state := r.State
		if r.Leaving {
			state = "leaving"
		}
		rows = append(rows, []string{r.ID, r.Node, r.Role, state, yesNo(r.IsOwner), yesNo(r.Connected), yesNo(r.InSync), match})
	}
	table(w, rows...)
	for _, r := range l.Replicas {
		if r.Error != "" {
			line(w, "%s: %s%s", r.ID, r.Error, rebuildText(r.Rebuild))
		}
	}
	printRecoveries(w, l.Recoveries)
	if len(l.Scrub) > 0 {
		line(w, "")
		printScrub(w, l.Scrub)
	}
	line(w, "")
	rows = [][]string{{"PORTAL", "NODE", "STATE"}}
	for _, p := range l.Portals {
		rows = append(rows, []string{p.URL, p.Node, p.State})
	}
	table(w, rows...)
}

// classWord is a LUN's class for people.
func classWord(class string) string {
	if class == "" {
		return "any that lasts"
	}
	return class
}

func printNodes(w io.Writer, nodes []api.Node) {
	rows := [][]string{{"NAME", "KIND", "ALIVE", "CATALOG", "LUNS OWNED", "API", "ISCSI", "VERSION"}}
	for _, n := range nodes {
		role := "member"
		if n.CatalogLeader {
			role = "leader"
		}
		rows = append(rows, []string{
			n.Name, n.Kind, yesNo(n.Alive), role, fmt.Sprint(n.LUNsOwned), dash(n.APIAddress),
			dash(strings.Join(n.ISCSIAddresses, ",")), dash(n.Version),
		})
	}
	table(w, rows...)
}

func printStatus(w io.Writer, s api.Status) {
	alive := 0
	for _, n := range s.Nodes {
		if n.Alive {
			alive++
		}
	}
	line(w, "Cluster %s, as node %s sees it: %d of %d nodes alive, catalog leader %s", s.Cluster, s.Node, alive, len(s.Nodes), dash(s.Catalog.Leader))
	line(w, "")
	printNodes(w, s.Nodes)
	line(w, "")
	printLUNs(w, s.LUNs)
	line(w, "")
	if len(s.Alerts) == 0 {
		line(w, "Nothing to do.")
		return
	}
	for _, a := range s.Alerts {
		line(w, "%s %s: %s", strings.ToUpper(a.Severity), a.Subject, a.What)
		line(w, "  data: %s", a.Data)
		line(w, "  next: %s", a.Next)
	}
}
