package catalog

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Limits of portals.
const (
	MaxPortals      = 16 // of one node
	MaxPortalGroups = 15 // prefixes of the setting portal_groups: indexes 1 to 15; 0 is what none of them matches
	// MaxPortGroup bounds Node.PortGroup, so that it shares 16 bits with HostPorts and a portal group's index: see PortID.
	MaxPortGroup = 2047
	// HostPorts is set in the relative target port identifiers of hosts' own targets: a target has ports of its own, and an
	// initiator may use one session name with both kinds (RFC 7143 §4.4.3). Reservations must not take the two for one.
	HostPorts = 1 << 11
)

// Portal is an address at which a node serves initiators.
type Portal struct {
	Address string `json:"address"` // host:port
	// Group is the index of the portal group, from the setting portal_groups as it was when the node registered: a target
	// port keeps its identifier for as long as the process that serves it runs.
	Group uint8 `json:"group,omitempty"`
}

// PortID returns the target portal group tag, which is also the relative target port identifier, of a node's portal group.
// It is unique in the cluster.
func PortID(portGroup uint16, index uint8) uint16 { return portGroup | uint16(index)<<12 }

// PortGroupOf returns the Node.PortGroup and the portal group's index of a relative target port identifier of either kind.
func PortGroupOf(port uint16) (portGroup uint16, index uint8) {
	return port & MaxPortGroup, uint8(port >> 12)
}

// PortID returns the target portal group tag of one of the node's portal groups.
func (n Node) PortID(index uint8) uint16 { return PortID(n.PortGroup, index) }

// PortGroups returns the indexes of the node's portal groups, ascending; 0 alone for one that has registered no portals.
func (n Node) PortGroups() []uint8 {
	out := []uint8{}
	for _, p := range n.Portals {
		out = append(out, p.Group)
	}
	if len(out) == 0 {
		return []uint8{0}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ParsePortalGroups reads the setting portal_groups: up to MaxPortalGroups prefixes of IPv4 or IPv6, separated by commas.
// An empty text is no prefix.
func ParsePortalGroups(text string) ([]netip.Prefix, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var out []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		p, err := netip.ParsePrefix(part)
		switch {
		case err != nil:
			return nil, refuse(CodeInvalid, "setting %s: %q is no subnet: write it like 10.0.0.0/24 or fd00:1::/64", SettingPortalGroups, part)
		case p.Masked() != p:
			return nil, refuse(CodeInvalid, "setting %s: %s has bits behind the prefix: write %s", SettingPortalGroups, part, p.Masked())
		case slices.ContainsFunc(out, p.Overlaps):
			return nil, refuse(CodeInvalid, "setting %s: %s overlaps with another subnet of the list: an address must belong to one group", SettingPortalGroups, part)
		}
		out = append(out, p)
	}
	if len(out) > MaxPortalGroups {
		return nil, refuse(CodeInvalid, "setting %s: %d subnets, at most %d are possible", SettingPortalGroups, len(out), MaxPortalGroups)
	}
	return out, nil
}

// PortalGroup returns the index of the portal group an address belongs to: the position, from 1, of the prefix that holds
// it, or 0 if none does. The address is an IP, or host:port; a host that is no IP is in group 0.
func PortalGroup(groups []netip.Prefix, address string) uint8 {
	host := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return 0
	}
	ip = ip.Unmap().WithZone("")
	for i, p := range groups {
		if p.Contains(ip) {
			return uint8(i + 1)
		}
	}
	return 0
}

// PortalGroup returns the index of the portal group an address belongs to under the setting as it is now.
func (m *Model) PortalGroup(address string) uint8 {
	groups, err := ParsePortalGroups(m.Settings[SettingPortalGroups])
	if err != nil {
		return 0 // it was stored before this program checked it
	}
	return PortalGroup(groups, address)
}

// portals returns the portals of a registration with their groups.
func (m *Model) portals(c *RegisterNode) ([]Portal, error) {
	if len(c.Portals) > MaxPortals {
		return nil, refuse(CodeInvalid, "node %q has %d portals, at most %d are possible", c.Name, len(c.Portals), MaxPortals)
	}
	var out []Portal
	for _, p := range c.Portals {
		host, port, err := net.SplitHostPort(p.Address)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || n == 0 || host == "" || len(p.Address) > 255 || !printable(p.Address, '!') {
			return nil, refuse(CodeInvalid, "portal %q of node %q: write host:port, an IPv6 address in brackets", p.Address, c.Name)
		}
		if slices.ContainsFunc(out, func(o Portal) bool { return o.Address == p.Address }) {
			return nil, refuse(CodeInvalid, "portal %q of node %q is listed twice", p.Address, c.Name)
		}
		out = append(out, Portal{Address: p.Address, Group: m.PortalGroup(p.Address)})
	}
	return out, nil
}
