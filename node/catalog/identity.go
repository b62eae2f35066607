package catalog

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// Limits. Beyond them a change is refused with CodeFull: the model is copied on every change and kept in memory whole.
const (
	MaxNodes        = 64
	MaxLUNs         = 4096
	MaxSettings     = 256
	MaxSettingBytes = 4096
)

var (
	// name fits a DNS label and the part of an iSCSI name behind the colon (RFC 3722: lower case only).
	name       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	settingKey = regexp.MustCompile(`^[a-z0-9._-]{1,64}$`)
)

// ValidName says whether s may name a node, a LUN or a cluster: 1 to 63 of a-z, 0-9 and '-', not '-' at either end.
func ValidName(s string) bool { return name.MatchString(s) }

func checkName(what, s string) error {
	if !ValidName(s) {
		return refuse(CodeInvalid, "%s name %q: use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end", what, s)
	}
	return nil
}

func checkUUID(what, s string) error {
	if u, err := uuid.Parse(s); err != nil || u.String() != s || u == uuid.Nil {
		return refuse(CodeInvalid, "%s ID %q is not a UUID in its usual lower-case form", what, s)
	}
	return nil
}

// NewID returns a random UUID for a node's disk or a LUN.
func NewID() string { return uuid.NewString() }

// IQN returns the iSCSI name (RFC 7143 §4.2.7.3) under which a LUN is offered on every node.
func IQN(lunName string) string { return iqnPrefix + lunName }

const iqnPrefix = "iqn.2026-11.local.sanctuary:"

// HostIQN returns the iSCSI name of a host's own target. It cannot be a LUN's: names have no dots. The cluster's name is in
// it because one host may use several clusters.
func HostIQN(cluster, host string) string { return iqnPrefix + "host." + cluster + "." + host }

var (
	iqnName = regexp.MustCompile(`^iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9][a-z0-9._-]*(:[a-z0-9._:+/=@-]*)?$`)
	euiName = regexp.MustCompile(`^eui\.[0-9a-f]{16}$`)
	naaName = regexp.MustCompile(`^naa\.([0-9a-f]{16}|[0-9a-f]{32})$`)
)

// maxISCSIName bounds an iSCSI name in bytes (RFC 7143 §4.2.7.1).
const maxISCSIName = 223

// InitiatorName returns an initiator's iSCSI name as it is stored and compared, in lower case (RFC 3722), or a *Refusal.
// Names beyond ASCII are refused: initiators do not agree on how to fold them.
func InitiatorName(s string) (string, error) {
	n := strings.ToLower(strings.TrimSpace(s))
	if len(n) > maxISCSIName || !(iqnName.MatchString(n) || euiName.MatchString(n) || naaName.MatchString(n)) {
		return "", refuse(CodeInvalid, "%q is no iSCSI name: write it as the initiator shows it, like iqn.1998-01.com.vmware:esx1-4a5b6c7d, "+
			"eui. and 16 hex digits, or naa. and 16 or 32", s)
	}
	return n, nil
}

// naaPrefix is NAA type 6 (IEEE Registered Extended, SPC-4 r37 §7.8.6.6.5) and a company id with the
// locally-administered bit set (02h), since this project has registered none with the IEEE.
const naaPrefix = "602534e"

// NAA returns the LUN's identity in VPD page 83h: 32 hex digits (16 bytes), the same on every node for ever. The 100 bits
// behind the company id come from a hash of the UUID.
func NAA(lunID string) string {
	sum := sha256.Sum256([]byte("sanctuary lun " + lunID))
	return naaPrefix + hex.EncodeToString(sum[:])[:32-len(naaPrefix)]
}

// Serial returns the unit serial number of VPD page 80h: the UUID's 32 hex digits.
func Serial(lunID string) string { return strings.ReplaceAll(lunID, "-", "") }

// SplitReplicaID returns the parts of "<node>/<incarnation>"; ok is false when id does not have that form.
func SplitReplicaID(id string) (node string, incarnation uint64, ok bool) {
	node, num, found := strings.Cut(id, "/")
	n, err := strconv.ParseUint(num, 10, 64)
	if !found || err != nil || !ValidName(node) || num != strconv.FormatUint(n, 10) {
		return "", 0, false
	}
	return node, n, true
}

func (m *Model) nextReplicaID(node string) string {
	id := node + "/" + strconv.FormatUint(m.NextInc, 10)
	m.NextInc++
	return id
}

// ReplacedIDs returns the IDs this incarnation takes the place of, oldest first: the owner removes them from the group.
func (r Replica) ReplacedIDs() []string {
	if r.Replaces == "" {
		return nil
	}
	return strings.Split(r.Replaces, ",")
}

func (r *Replica) replaceBy(id, claim string) {
	if r.Replaces != "" {
		r.Replaces += ","
	}
	r.Replaces += r.ID
	r.ID, r.State, r.Claim, r.Filled = id, ReplicaJoining, claim, false
}

// ReplicaOn returns the LUN's replica on a node: while one takes the place of another there, the one that leaves.
func (l LUN) ReplicaOn(node string) (Replica, bool) {
	i := slices.IndexFunc(l.Replicas, func(r Replica) bool { return r.Node == node })
	if i < 0 {
		return Replica{}, false
	}
	return l.Replicas[i], true
}

// HasCopyOn says whether a node has, or is to have, a copy of the LUN's data: a witness is none.
func (l LUN) HasCopyOn(node string) bool {
	r, ok := l.ReplicaOn(node)
	return ok && !r.Witness
}

// Bootstrap returns the replicas as they were when the LUN was created: the configuration every replica that starts
// for the first time begins with. They must all begin with the same one, though one may have been replaced meanwhile.
func (l LUN) Bootstrap() []Replica {
	out := slices.Clone(l.Replicas)
	for i := range out {
		if ids := out[i].ReplacedIDs(); len(ids) > 0 {
			out[i].ID, out[i].Replaces, out[i].State = ids[0], "", ReplicaActive
		}
	}
	return out
}

// hasData says whether a replica may hold, or is still to begin, the LUN's data. One that is joining holds it from when it has been filled: a
// moment later it may own the LUN, and the catalog need not have heard of that when it hears that the others have lost what they held.
func (l LUN) hasData() bool {
	return slices.ContainsFunc(l.Replicas, func(r Replica) bool { return !r.Witness && (r.State != ReplicaJoining || r.Filled) })
}

// LUNByName returns the LUN of that name.
func (m *Model) LUNByName(name string) (LUN, bool) {
	for _, l := range m.LUNs {
		if l.Name == name {
			return l, true
		}
	}
	return LUN{}, false
}

func sortedLUNs(m *Model) []LUN {
	out := make([]LUN, 0, len(m.LUNs))
	for _, l := range m.LUNs {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b LUN) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// lun returns the LUN with an ID, or a refusal.
func (m *Model) lun(id string) (LUN, error) {
	l, ok := m.LUNs[id]
	if !ok {
		return LUN{}, refuse(CodeNotFound, "there is no LUN with ID %s", id)
	}
	return l, nil
}

// replica returns the LUN with a slice of replicas of its own, and the position of the one with that ID.
func (m *Model) replica(lun, id string) (LUN, int, error) {
	l, err := m.lun(lun)
	if err != nil {
		return LUN{}, 0, err
	}
	i := slices.IndexFunc(l.Replicas, func(r Replica) bool { return r.ID == id })
	if i < 0 {
		return LUN{}, 0, refuse(CodeStale, "replica %s is not a replica of LUN %q any more: this node's catalog is behind", id, l.Name)
	}
	l.Replicas = slices.Clone(l.Replicas)
	return l, i, nil
}

func (m *Model) put(l LUN, replica int, r *Result) {
	m.LUNs[l.ID] = l
	rep := l.Replicas[replica]
	r.LUN, r.Replica = &l, &rep
}
