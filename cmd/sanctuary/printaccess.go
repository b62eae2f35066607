package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"sanctuary/node/api"
)

// accessText says who may use a LUN, in a sentence without its end.
func accessText(a api.LUNAccess) string {
	var hosts []string
	for _, g := range a.Hosts {
		hosts = append(hosts, fmt.Sprintf("%s (as LUN %d)", g.Host, g.Number))
	}
	switch {
	case a.Open && a.SinglePath:
		hosts = append([]string{"anyone (sent to the owner)"}, hosts...)
	case a.Open:
		hosts = append([]string{"anyone"}, hosts...)
	case len(hosts) == 0:
		return "nobody may use it"
	}
	return "may be used by " + strings.Join(hosts, ", ")
}

// accessWord is accessText for a table.
func accessWord(a api.LUNAccess) string {
	switch {
	case a.Open:
		return "anyone"
	case len(a.Hosts) == 0:
		return "nobody"
	case len(a.Hosts) == 1:
		return a.Hosts[0].Host
	}
	return fmt.Sprintf("%d hosts", len(a.Hosts))
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func printHosts(w io.Writer, hosts []api.Host) {
	if len(hosts) == 0 {
		line(w, "No hosts. Create one: sanctuary host create NAME --initiator IQN")
		return
	}
	rows := [][]string{{"NAME", "INITIATORS", "CHAP", "PATHS", "LUNS"}}
	for _, h := range hosts {
		var luns []string
		for _, l := range h.LUNs {
			luns = append(luns, fmt.Sprintf("%d=%s", l.Number, l.LUN))
		}
		rows = append(rows, []string{h.Name, strings.Join(h.Initiators, ","), chapText(h.CHAP), pathsText(h.SinglePath), dash(strings.Join(luns, ","))})
	}
	table(w, rows...)
}

func chapText(c *api.HostCHAP) string {
	switch {
	case c == nil:
		return "no"
	case c.MutualUser != "":
		return "mutual"
	}
	return "yes"
}

func pathsText(single bool) string {
	if single {
		return "single"
	}
	return "multipath"
}

func printHost(w io.Writer, h api.Host) {
	rows := [][]string{{"Name:", h.Name}, {"Target:", h.Target}, {"Paths:", pathsText(h.SinglePath)}}
	if h.SinglePath {
		rows[1][1] = "each LUN's own (sanctuary target list)"
	}
	if h.CHAP == nil {
		rows = append(rows, []string{"CHAP:", "none: its initiators are believed without proof"})
	} else {
		rows = append(rows, []string{"CHAP user:", h.CHAP.User}, []string{"Mutual user:", dash(h.CHAP.MutualUser)})
	}
	for i, name := range h.Initiators {
		title := ""
		if i == 0 {
			title = "Initiators:"
		}
		rows = append(rows, []string{title, name})
	}
	table(w, rows...)
	if len(h.LUNs) == 0 {
		return
	}
	line(w, "")
	rows = [][]string{{"LUN", "NAME"}}
	for _, l := range h.LUNs {
		rows = append(rows, []string{fmt.Sprint(l.Number), l.LUN})
	}
	table(w, rows...)
}

func printSettings(w io.Writer, s api.Settings) {
	if len(s.Settings) == 0 {
		line(w, "Every setting is at its default; sanctuary setting --help lists them.")
		return
	}
	rows := [][]string{{"NAME", "VALUE"}}
	for k, v := range s.Settings {
		rows = append(rows, []string{k, v})
	}
	slices.SortFunc(rows[1:], func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	table(w, rows...)
}

func printUnreachable(w io.Writer, nodes []string) {
	if len(nodes) > 0 {
		line(w, "No answer from %s: sessions there are not shown.", strings.Join(nodes, ", "))
	}
}

func printTargets(w io.Writer, l api.TargetList) {
	rows := [][]string{{"TARGET", "FOR", "LUNS", "MAY LOG IN", "PORTALS", "SESSIONS"}}
	for _, t := range l.Targets {
		kind, who := "LUN", strings.Join(t.Hosts, ",")
		if t.Kind == api.TargetOfHost {
			kind = "host " + t.Host
		}
		if t.Open {
			who = "anyone"
		}
		var luns []string
		for _, u := range t.LUNs {
			luns = append(luns, fmt.Sprintf("%d=%s", u.Number, u.Name))
		}
		rows = append(rows, []string{t.Name, kind, dash(strings.Join(luns, ",")), dash(who), fmt.Sprint(len(t.Portals)), fmt.Sprint(len(t.Sessions))})
	}
	if len(rows) == 1 {
		line(w, "No targets: there are no LUNs and no hosts.")
	} else {
		table(w, rows...)
	}
	var all []api.Session
	for _, t := range l.Targets {
		all = append(all, t.Sessions...)
	}
	all = append(all, l.Discovery...)
	if len(all) > 0 {
		line(w, "")
		printSessions(w, all, true)
	}
	printLogins(w, l.Logins)
	printUnreachable(w, l.Unreachable)
}

// printLogins prints how logins have ended, by node.
func printLogins(w io.Writer, logins []api.Logins) {
	if len(logins) == 0 {
		return
	}
	line(w, "")
	rows := [][]string{{"LOGINS AT", "WELL", "SENT ON", "NO PROOF", "THROTTLED", "NOT ALLOWED", "NO TARGET", "NOT NOW", "MALFORMED", "UNFINISHED", "TURNED AWAY", "PANICS"}}
	for _, l := range logins {
		row := []string{l.Node}
		for _, n := range []uint64{
			l.Succeeded, l.Moved, l.NotProved, l.Throttled, l.NotAllowed, l.NotFound, l.Unavailable, l.Malformed, l.Unfinished, l.TurnedAway, l.Panics,
		} {
			row = append(row, fmt.Sprint(n))
		}
		rows = append(rows, row)
	}
	table(w, rows...)
}

func printSessions(w io.Writer, sessions []api.Session, target bool) {
	head := []string{"SESSION", "INITIATOR", "HOST", "FROM", "PORTAL", "SINCE", "COMMANDS", "READ", "WRITTEN"}
	if target {
		head = append(head, "TARGET")
	}
	rows := [][]string{head}
	for _, s := range sessions {
		row := []string{
			s.ID, s.Initiator, dash(s.Host), s.Remote, dash(s.Local), s.Since.UTC().Format(time.RFC3339), fmt.Sprint(s.Commands),
			formatBytes(s.ReadBytes), formatBytes(s.WrittenBytes),
		}
		if target {
			name := s.Target
			if name == "" {
				name = "(discovery)"
			}
			row = append(row, name)
		}
		rows = append(rows, row)
	}
	table(w, rows...)
}

// formatBytes is an amount for people: three digits or so.
func formatBytes(n uint64) string {
	for _, u := range units {
		if n >= uint64(u.bytes) {
			return strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64) + u.suffix
		}
	}
	return strconv.FormatUint(n, 10)
}

func printTarget(w io.Writer, t shownTarget) {
	who := strings.Join(t.Hosts, ", ")
	if t.Open {
		who = "anyone"
	}
	table(w, []string{"Target:", t.Name}, []string{"For:", strings.TrimSpace(t.Kind + " " + t.Host)}, []string{"May log in:", dash(who)})
	line(w, "")
	rows := [][]string{{"LUN", "NAME", "NAA", "OWNER"}}
	for _, l := range t.LUNs {
		rows = append(rows, []string{fmt.Sprint(l.Number), l.Name, dash(l.NAA), dash(l.Owner)})
	}
	table(w, rows...)
	line(w, "")
	rows = [][]string{{"PORTAL", "NODE", "GROUP", "TAG"}}
	for _, p := range t.Portals {
		rows = append(rows, []string{p.Address, p.Node, fmt.Sprint(p.Group), fmt.Sprint(p.Tag)})
	}
	table(w, rows...)
	if len(t.Sessions) > 0 {
		line(w, "")
		printSessions(w, t.Sessions, false)
		for _, s := range t.Sessions {
			printNegotiated(w, s)
		}
	}
	printLogins(w, t.Logins)
	for _, h := range t.Through {
		line(w, "\nHost %s has it in %s as well, which has %d sessions: sanctuary target show %s", h.Host, h.Name, len(h.Sessions), h.Host)
	}
	printUnreachable(w, t.Unreachable)
	for _, r := range t.Reservations {
		line(w, "")
		printReservations(w, r)
	}
}

// printNegotiated prints what one session has agreed on, in the terms of RFC 7143.
func printNegotiated(w io.Writer, s api.Session) {
	digest := func(on bool) string {
		if on {
			return "CRC32C"
		}
		return "None"
	}
	proof := "no proof"
	if s.CHAPUser != "" {
		proof = strings.TrimSpace("CHAP as " + s.CHAPUser + " " + s.Algorithm)
	}
	p, n := s.Params, s.Counters
	line(w, "\n%s  %s, ISID %s, portal group %d", s.ID, proof, s.ISID, s.PortalGroup)
	line(w, "  HeaderDigest=%s DataDigest=%s InitialR2T=%s ImmediateData=%s ErrorRecoveryLevel=%d Time2Wait=%d Time2Retain=%d",
		digest(s.HeaderDigest), digest(s.DataDigest), yesNo(p.InitialR2T), yesNo(p.ImmediateData), p.ErrorRecoveryLevel, p.DefaultTime2Wait, p.DefaultTime2Retain)
	line(w, "  MaxRecvDataSegmentLength=%d (initiator's %d) FirstBurst=%d MaxBurst=%d MaxOutstandingR2T=%d",
		p.MaxRecvDataSegmentLength, p.MaxSendDataSegmentLength, p.FirstBurstLength, p.MaxBurstLength, p.MaxOutstandingR2T)
	line(w, "  PDUs in %d, out %d; R2T %d; aborted %d; rejected %d; ignored %d; refused for want of memory %d",
		n.PDUsIn, n.PDUsOut, n.R2Ts, n.Aborted, n.Rejects, n.Ignored, n.Crowded)
	line(w, "  outstanding %d, at most %d; errors %d; busy %d; reservation conflicts %d; unit attentions %d; pings %d; digest errors %d",
		n.Outstanding, n.LongestQueue, n.Errors, n.Busy, n.Conflicts, n.Attentions, n.Pings, n.DigestErrors)
}

func printReservations(w io.Writer, r api.Reservations) {
	held := r.Type
	switch {
	case held == "":
		held = "not reserved"
	case r.AllHold:
		held += ", held by every registrant"
	}
	line(w, "LUN %s: %s; %d registrations, generation %d", r.LUN, held, len(r.Registrations), r.Generation)
	if r.View.Note != "" {
		line(w, "Note: %s", r.View.Note)
	}
	if r.Reserved != nil {
		line(w, "Reserved with RESERVE(6) by %s, ISID %s; it ends with that session.", r.Reserved.Initiator, r.Reserved.ISID)
	}
	if len(r.Registrations) == 0 {
		return
	}
	rows := [][]string{{"KEY", "INITIATOR", "HOST", "ISID", "PORT", "NODE", "HOLDER", "LOGGED IN"}}
	for _, g := range r.Registrations {
		rows = append(rows, []string{
			g.Key, g.Initiator, dash(g.Host), g.ISID, fmt.Sprint(g.Port), dash(g.Node), yesNo(g.Holder), yesNo(g.LoggedIn),
		})
	}
	table(w, rows...)
	if len(r.Unreachable) > 0 {
		line(w, "No answer from %s: whoever is logged in there only is shown as not logged in.", strings.Join(r.Unreachable, ", "))
	}
}
