package catalog

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Limits of access control. Together they keep the model, which every change copies and every node holds, below 16 MiB.
const (
	MaxHosts      = 256
	MaxInitiators = 64 // of one host
	// MaxNumber is the highest LUN number a host can be given. SAM-5 peripheral device addressing reaches 255; Windows
	// knows 0 to 254 in one target.
	MaxNumber = 254
)

// Host is an initiator, or a group of initiators that share one LUN map and one proof of identity: a hypervisor with its
// adapters, or all hypervisors of a cluster.
type Host struct {
	Name       string   `json:"name"`           // unique; see ValidName
	Initiators []string `json:"initiators"`     // iqn., eui. or naa. names in lower case, sorted; each in one host only
	CHAP       *CHAP    `json:"chap,omitempty"` // nil: its initiators need no proof
	// SinglePath says that its initiators use one path and know nothing of ALUA (QEMU's own driver): they are redirected
	// to a LUN's owner instead.
	SinglePath bool `json:"single_path,omitempty"`
	// Past are the numbers this host had and has no more, the longest unused first. Kept so that a number comes back as
	// another LUN as late as possible: initiators remember what was there, and have written to the wrong device.
	Past []PastGrant `json:"past,omitempty"`
}

// CHAP is what a host's initiators must prove, and what is proven to them if MutualUser is set (RFC 7143 §12.1.3).
type CHAP struct {
	User         string `json:"user"`
	Secret       Secret `json:"secret"`
	MutualUser   string `json:"mutual_user,omitempty"`
	MutualSecret Secret `json:"mutual_secret,omitempty"`
}

// PastGrant is a number a host had a LUN under.
type PastGrant struct {
	Number uint16 `json:"number"`
	LUN    string `json:"lun"` // its ID
}

// Access says who may use a LUN.
type Access struct {
	// Open: initiators that no grant names may use it too, without proof unless they belong to a host that asks for one.
	Open bool `json:"open,omitempty"`
	// SinglePath is Host.SinglePath for initiators that belong to no host. It matters only while Open.
	SinglePath bool    `json:"single_path,omitempty"`
	Grants     []Grant `json:"grants,omitempty"` // sorted by host, one each
}

// Grant lets a host use a LUN, which it sees under Number in the host's own target.
type Grant struct {
	Host   string `json:"host"`
	Number uint16 `json:"number"` // 0 to MaxNumber, unique for the host
}

// IsOpen says whether initiators without a grant may use the LUN. One made before there was access control is open.
func (l LUN) IsOpen() bool { return l.Access == nil || l.Access.Open }

// GrantTo returns the host's grant on the LUN.
func (l LUN) GrantTo(host string) (Grant, bool) {
	if l.Access == nil {
		return Grant{}, false
	}
	i := slices.IndexFunc(l.Access.Grants, func(g Grant) bool { return g.Host == host })
	if i < 0 {
		return Grant{}, false
	}
	return l.Access.Grants[i], true
}

// HostOf returns the host an initiator belongs to. The name is compared as RFC 3722 does: without case.
func (m *Model) HostOf(initiator string) (Host, bool) {
	initiator = strings.ToLower(initiator)
	for _, h := range m.Hosts {
		if _, ok := slices.BinarySearch(h.Initiators, initiator); ok {
			return h, true
		}
	}
	return Host{}, false
}

// TargetOf returns the iSCSI name of the target that presents a host all LUNs granted to it.
func (m *Model) TargetOf(host string) string { return HostIQN(m.Cluster, host) }

// HostByTarget returns the host whose own target has that iSCSI name.
func (m *Model) HostByTarget(iqn string) (Host, bool) {
	name, ok := strings.CutPrefix(strings.ToLower(iqn), HostIQN(m.Cluster, ""))
	if !ok {
		return Host{}, false
	}
	h, ok := m.Hosts[name]
	return h, ok
}

// LUNByIQN returns the LUN whose own target has that iSCSI name.
func (m *Model) LUNByIQN(iqn string) (LUN, bool) {
	iqn = strings.ToLower(iqn)
	for _, l := range m.LUNs {
		if l.IQN == iqn {
			return l, true
		}
	}
	return LUN{}, false
}

// MayUse says whether an initiator may use a LUN, given by its ID, and under which number its host's own target presents
// it. In the LUN's own target the number is 0 for everyone. Without a grant, on an open LUN, the number is 0: then
// only the LUN's own target presents it.
func (m *Model) MayUse(initiator, lun string) (number uint16, ok bool) {
	l, ok := m.LUNs[lun]
	if !ok {
		return 0, false
	}
	if h, known := m.HostOf(initiator); known {
		if g, granted := l.GrantTo(h.Name); granted {
			return g.Number, true
		}
	}
	return 0, l.IsOpen()
}

// UsableBy returns the LUNs an initiator may use, by name.
func (m *Model) UsableBy(initiator string) []LUN {
	h, known := m.HostOf(initiator)
	return slices.DeleteFunc(sortedLUNs(m), func(l LUN) bool {
		_, granted := l.GrantTo(h.Name)
		return !(known && granted || l.IsOpen())
	})
}

// Discovery returns what SendTargets should show an initiator, so that one which logs in to everything it is shown, as ESXi
// does, has each LUN once over each path: its host's own target unless host is empty, and the LUNs whose own targets come
// besides. With a single path only these do, since only they can be redirected to the owner.
func (m *Model) Discovery(initiator string) (host string, luns []LUN) {
	luns = m.UsableBy(initiator)
	h, known := m.HostOf(initiator)
	if !known || h.SinglePath || len(m.LUNMap(h.Name)) == 0 {
		return "", luns
	}
	return h.Name, slices.DeleteFunc(luns, func(l LUN) bool {
		_, granted := l.GrantTo(h.Name)
		return granted
	})
}

// MappedLUN is a LUN as a host's own target presents it.
type MappedLUN struct {
	Number uint16
	LUN    LUN
}

// LUNMap returns what a host's own target presents, by number.
func (m *Model) LUNMap(host string) []MappedLUN {
	var out []MappedLUN
	for _, l := range m.LUNs {
		if g, ok := l.GrantTo(host); ok {
			out = append(out, MappedLUN{g.Number, l})
		}
	}
	slices.SortFunc(out, func(a, b MappedLUN) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// SinglePath says whether an initiator that may use the LUN is to be redirected to its owner. lun is an ID.
func (m *Model) SinglePath(initiator, lun string) bool {
	if h, ok := m.HostOf(initiator); ok {
		return h.SinglePath
	}
	a := m.LUNs[lun].Access
	return a != nil && a.SinglePath
}

// chooseNumber returns the number to give a host for a LUN: the one it had for this LUN before, else the lowest it has
// never had, else the one that has been unused for longest.
func (m *Model) chooseNumber(h Host, lun string) (uint16, error) {
	used := map[uint16]bool{}
	for _, g := range m.LUNMap(h.Name) {
		used[g.Number] = true
	}
	past := map[uint16]bool{}
	for _, p := range h.Past {
		if p.LUN == lun && !used[p.Number] {
			return p.Number, nil
		}
		past[p.Number] = true
	}
	for n := uint16(0); n <= MaxNumber; n++ {
		if !used[n] && !past[n] {
			return n, nil
		}
	}
	for _, p := range h.Past {
		if !used[p.Number] {
			return p.Number, nil
		}
	}
	return 0, refuse(CodeFull, "host %q has LUNs under all numbers from 0 to %d: revoke one first", h.Name, MaxNumber)
}

// free notes that a host has no LUN under g's number any more.
func (m *Model) free(lun string, g Grant) {
	h, ok := m.Hosts[g.Host]
	if !ok {
		return
	}
	h.Past = slices.DeleteFunc(slices.Clone(h.Past), func(p PastGrant) bool { return p.Number == g.Number })
	h.Past = append(h.Past, PastGrant{Number: g.Number, LUN: lun})
	m.setHost(h)
}

// setHost stores h. The map is the change's own already: Apply has cloned it.
func (m *Model) setHost(h Host) {
	if m.Hosts == nil {
		m.Hosts = map[string]Host{}
	}
	m.Hosts[h.Name] = h
	m.needs(versionAccess)
}

// HostNames returns the names of the hosts, sorted.
func (m *Model) HostNames() []string { return slices.Sorted(maps.Keys(m.Hosts)) }
