package target

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
)

// sendTargets answers SendTargets for a session on conn (RFC 7143 appendix C): only targets the initiator may use, only
// addresses in the portal group it has come in by. A target it could not reach is left out, as one without an address
// would mean this very portal.
func (p *Portal) sendTargets(conn net.Conn, group Group, l *login.Params) func(value string) []pdu.Pair {
	return func(value string) []pdu.Pair {
		if value == "" {
			value = l.Target
		}
		var pairs []pdu.Pair
		for _, t := range p.cfg.Directory.List(l.Initiator, group.Index) {
			if value != "All" && !strings.EqualFold(value, t.Name) {
				continue
			}
			seen := make(map[string]bool, len(t.Portals))
			for _, a := range t.Portals {
				address, ok := reachable(a, group, conn.LocalAddr())
				if !ok {
					continue
				}
				address += "," + strconv.Itoa(int(a.GroupTag))
				if seen[address] {
					continue
				}
				if len(seen) == 0 {
					pairs = append(pairs, pdu.Pair{Key: "TargetName", Value: t.Name})
				}
				seen[address] = true
				pairs = append(pairs, pdu.Pair{Key: "TargetAddress", Value: address})
			}
		}
		return pairs
	}
}

// reachable returns an address as an initiator can use it. For one of ours that means "all addresses" it is the one the
// initiator has connected to; for another node's that does, nobody here knows. Whether the initiator's network carries
// the address family is its own affair: the group has the address.
func reachable(a PortalAddress, group Group, local net.Addr) (string, bool) {
	host, port, err := net.SplitHostPort(a.Address)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 {
		return "", false
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host != "" && err != nil: // a name; the initiator resolves it
		return a.Address, !strings.ContainsAny(host, ", \x00")
	case host != "" && !ip.IsUnspecified():
		return net.JoinHostPort(ip.Unmap().WithZone("").String(), port), true
	case a.GroupTag != group.Tag:
		return "", false
	}
	mine, err := addressOf(local)
	if err != nil {
		return "", false
	}
	return net.JoinHostPort(mine.String(), port), true
}
