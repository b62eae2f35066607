package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sanctuary/replication/transport"
)

// Host is all groups of one node: it gives them the peer transport and passes on what other nodes ask.
type Host struct {
	mux       *transport.Mux
	scrubs    pacer                    // of all groups
	rebuilds  rebuildPacers            // of all groups
	use       use                      // by all groups
	elections *elections               // of all groups
	protocol  func(node string) uint32 // mux.Protocol; tests have older nodes
	handlers  map[string]transport.Handler

	born time.Time // for vouches; monotonic

	mu       sync.RWMutex        // guards what follows
	groups   map[string]*Group   // by LUN
	vouchers map[string]*voucher // by node
	vouchees map[string]*vouchee // by node
}

// Methods between hosts, on the control connection.
const (
	methodTerm        = "replication.term"         // LUN → the Raft term of the replica there
	methodRoom        = "replication.room"         // LUN → bytes its pool there can allocate
	methodReserve     = "replication.reserve"      // owner → replica: set room aside in your pool
	methodState       = "replication.state"        // LUN, version → once the replica there has applied that version of the state
	methodRebuild     = "replication.rebuild"      // owner → learner: rebuild yourself from me
	methodRebuildInfo = "replication.rebuild-info" // learner → owner: what has changed
	methodRebuildRead = "replication.rebuild-read" // learner → owner: these blocks
	methodRebuildPin  = "replication.rebuild-pin"  // learner → owner: hold your log, where does the copy begin
	methodCommitted   = "replication.committed"    // LUN → the newest committed command, from an owner that serves
	methodRepairRead  = "replication.repair-read"  // replica → replica: blocks of a chunk, as of when
	methodRepairOrder = "replication.repair-order" // owner → replica: your blocks are wrong, take another's
	methodScrub       = "replication.scrub"        // LUN → how the scrub there is getting on; begins one if asked to
	methodEntry       = "replication.entry"        // replica → replica: an entry of your log, of this index and term
	methodCompare     = "replication.compare"      // owner → replica: what you had at an index
	methodOut         = "replication.out"          // member → member: my storage has failed

	// Of a snapshot, or of what has changed since one. Owners that know no snapshots do not know these.
	methodRebuildSnapshotInfo = "replication.rebuild-snapshot-info"
	methodRebuildSnapshotRead = "replication.rebuild-snapshot-read"

	// Learner → owner, see rebuild_digest.go.
	methodRebuildCount  = "replication.rebuild-count"
	methodRebuildHashes = "replication.rebuild-hashes"
	methodRebuildGroups = "replication.rebuild-groups"
)

var errNoReplica = errors.New("no replica of this LUN runs here")

// NewHost returns a host without groups. It registers its methods with the transport, so there is one host per Mux.
func NewHost(mux *transport.Mux) (*Host, error) { return newHost(mux, nil) }

// newHost is NewHost without some methods; tests have older programs.
func newHost(mux *transport.Mux, without []string) (*Host, error) {
	h := &Host{
		mux: mux, protocol: mux.Protocol, groups: map[string]*Group{},
		elections: newElections(), born: time.Now(), vouchers: map[string]*voucher{}, vouchees: map[string]*vouchee{},
	}
	h.use.activity = h.activity
	h.handlers = map[string]transport.Handler{
		methodTerm:        h.serveTerm,
		methodRoom:        h.serveRoom,
		methodReserve:     h.serveReserve,
		methodState:       h.serveState,
		methodRebuild:     h.serveRebuild,
		methodRebuildInfo: h.serveRebuildInfo,
		methodRebuildRead: h.serveRebuildRead,
		methodRebuildPin:  h.serveRebuildPin,
		methodCommitted:   h.serveCommitted,
		methodRepairRead:  h.serveRepairRead,
		methodRepairOrder: h.serveRepairOrder,
		methodScrub:       h.serveScrub,
		methodCompare:     h.serveCompare,
		methodEntry:       h.serveEntry,
		methodOut:         h.serveOut,
		methodQuiet:       h.serveQuiet,
		methodVouch:       h.serveVouch,
		methodEpoch:       h.serveEpoch,

		methodRebuildSnapshotInfo: h.serveRebuildSnapshotInfo,
		methodRebuildSnapshotRead: h.serveRebuildSnapshotRead,
		methodRebuildCount:        h.serveRebuildCount,
		methodRebuildHashes:       h.serveRebuildHashes,
		methodRebuildGroups:       h.serveRebuildGroups,
	}
	for method, handler := range h.handlers {
		if slices.Contains(without, method) {
			continue
		}
		if err := mux.Handle(method, handler); err != nil {
			return nil, err
		}
	}
	mux.OnPeer(func(node string, up bool, _ error) {
		for _, g := range h.all() {
			g.PeerLink(node, up)
		}
	})
	return h, nil
}

// Open starts a replica. The journal becomes the group's even if an error is returned.
func (h *Host) Open(cfg Config) (*Group, error) {
	h.mu.Lock()
	if h.groups[cfg.LUN] != nil {
		h.mu.Unlock()
		return nil, fmt.Errorf("LUN %s: a replica runs here already", cfg.LUN)
	}
	h.mu.Unlock()
	g, err := open(h, cfg)
	if err != nil {
		if cfg.Journal != nil {
			err = errors.Join(err, cfg.Journal.Close())
		}
		return nil, err
	}
	h.mu.Lock()
	h.groups[cfg.LUN] = g
	h.mu.Unlock()
	for _, m := range cfg.Members {
		if m.Node != cfg.Self.Node {
			h.mux.Connect(m.Node)
		}
	}
	return g, nil
}

func (h *Host) all() []*Group {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := make([]*Group, 0, len(h.groups))
	for _, g := range h.groups {
		out = append(out, g)
	}
	return out
}

func (h *Host) group(lun string) (*Group, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if g := h.groups[lun]; g != nil {
		return g, nil
	}
	return nil, errNoReplica
}

func (h *Host) forget(g *Group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.groups[g.cfg.LUN] == g {
		delete(h.groups, g.cfg.LUN)
	}
}

func (h *Host) openTransport(g *Group) (Transport, error) {
	return h.mux.Group(transport.GroupConfig{
		Group: g.cfg.LUN, Epoch: g.cfg.Epoch, Self: g.cfg.Self.ID,
		Incoming: g.incoming, Answered: g.raftAnswered, Replied: g.replied, StandIn: g.standIn,
		AllowSnapshot: true, // data replicas refuse in incoming
	})
}

// askTerm returns the Raft term another replica is in, 0 if it did not say. The request names the replica, so that another
// incarnation on the same node does not answer for it.
func (h *Host) askTerm(ctx context.Context, g *Group, m Member) uint64 {
	answer, err := h.mux.Call(ctx, m.Node, methodTerm, []byte(g.cfg.LUN+"\n"+string(m.ID)))
	if err != nil || len(answer) != 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(answer)
}

// PeerDied passes on that gossip has given a node up. It is a hint like a broken connection, and acted on within the same
// rules; if the node is alive after all, its next answer says so.
func (h *Host) PeerDied(node string) {
	for _, g := range h.all() {
		g.PeerLink(node, false)
	}
}
