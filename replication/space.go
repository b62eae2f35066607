package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/witness"
)

// space is what the owner knows about room in the pools, so that a write that would not fit is refused before it is
// proposed (block.ErrNoSpace, which pauses a guest) and not met by a replica that cannot apply it. Overwrites, UNMAP and
// everything else that allocates nothing pass whatever the pools say.
//
// An entry may also make the map larger, without taking a chunk: zeros over what a snapshot or a clone's origin holds, a snapshot, a block that
// goes to a free place beside older versions. That takes pages of metadata now and then, which have bounds of their own: an entry that would go beyond
// them is refused in the same way. The other copies say with every answer what they have; nothing is set aside there for that, but they hold back
// some of it for what is on its way.
//
// The owner's own pool is looked at for every allocating write. In the pools of the other copies, which other LUNs fill as well, room is set
// aside for this LUN (room.go): in advance, every maintainEvery, as much as is used, so that a write need not wait; and if that does
// not do, it is asked for the write, a round trip, and that answer counts.
type space struct {
	asking sync.Mutex    // one question at a time; taken before mu
	ends   atomic.Uint64 // writes that were promised room and have ended; changed under mu

	mu     sync.Mutex
	taken  want          // promised to writes of this LUN that have not ended
	given  want          // promised to all writes ever
	ended  chan struct{} // closed when the next of them has ended; nil unless a write waits for that
	before int64         // given.bytes, when last asked in time
	peers  map[raft.ServerID]peerRoom
}

// want is what an entry may take of a pool.
type want struct {
	bytes int64
	pages int64 // of metadata, besides one for each chunk of bytes
}

func (w want) plus(o want) want  { return want{w.bytes + o.bytes, w.pages + o.pages} }
func (w want) minus(o want) want { return want{w.bytes - o.bytes, w.pages - o.pages} }

// within says whether there is that much left.
func (w want) within(left want) bool {
	return (w.bytes == 0 || w.bytes <= left.bytes) && (w.pages == 0 || w.pages <= left.pages)
}

// peerRoom is what a copy has said.
type peerRoom struct {
	left want  // bytes set aside there for this LUN, pages it has, that are not promised to a write
	free int64 // bytes the LUN could have there, in all
}

// errPeerRoom: a peer has to be asked for more.
var errPeerRoom = fmt.Errorf("%w of another copy", block.ErrNoSpace)

// takeRoom promises what ops may allocate, or returns block.ErrNoSpace. release must be called when they have been applied
// or never will be. Room that is only promised, to writes of this LUN that have not ended, is waited for: each of those that meet one new chunk is
// promised all of it.
func (g *Group) takeRoom(ctx context.Context, ops []block.Op) (release func(), err error) {
	for {
		seen, need := g.space.ends.Load(), g.wants(ops)
		if need == (want{}) {
			return func() {}, nil
		}
		if release, err = g.findRoom(ctx, need); !errors.Is(err, block.ErrNoSpace) || !g.space.awaitEnd(ctx, seen) {
			return release, err
		}
	}
}

// wants counts pages with care only where a rough count does not fit.
func (g *Group) wants(ops []block.Op) want {
	need := want{g.cfg.Store.Needs(ops), g.cfg.Store.NeedsMetadata(ops, false)}
	if need.pages > 0 && !g.space.havePages(need.pages, g.cfg.Store.MetadataRoom()) {
		need.pages = g.cfg.Store.NeedsMetadata(ops, true)
	}
	return need
}

// havePages says whether every copy has so many pages left, of which own are in this one's pool.
func (s *space) havePages(n, own int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		own = min(own, p.left.pages)
	}
	return s.peers != nil && n <= own
}

// awaitEnd waits until more than seen of the writes that were promised room have ended. It returns false if none is left that could, or when ctx ends.
func (s *space) awaitEnd(ctx context.Context, seen uint64) bool {
	s.mu.Lock()
	if more := s.ends.Load() > seen; more || s.taken == (want{}) {
		s.mu.Unlock()
		return more
	}
	if s.ended == nil {
		s.ended = make(chan struct{})
	}
	ended := s.ended
	s.mu.Unlock()
	select {
	case <-ended:
		return true
	case <-ctx.Done():
		return false
	}
}

func (g *Group) findRoom(ctx context.Context, need want) (release func(), err error) {
	if release, err = g.promiseRoom(need); !errors.Is(err, errPeerRoom) {
		return release, err
	}
	s := &g.space
	s.asking.Lock()
	defer s.asking.Unlock()
	if release, err = g.promiseRoom(need); !errors.Is(err, errPeerRoom) { // somebody else has asked meanwhile
		return release, err
	}
	for {
		silent := g.askRoomLocked(ctx, need.bytes)
		if release, err = g.promiseRoom(need); !errors.Is(err, errPeerRoom) || silent == nil {
			return release, err
		}
		// A copy that is slow is no full one: the write waits, until the copy answers or is given up.
		if g.tenure.Load() == nil {
			return nil, block.ErrNotOwner
		}
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// askAgain is the pause before a copy that has not answered is asked again for a write that waits.
const askAgain = 20 * time.Millisecond

func (g *Group) promiseRoom(need want) (release func(), err error) {
	s := &g.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers == nil {
		return nil, errPeerRoom // nobody has been asked yet
	}
	for id, p := range s.peers {
		if !need.within(p.left) {
			return nil, fmt.Errorf("replica %s: %w", id, errPeerRoom)
		}
	}
	if err := g.promiseOwn(need); err != nil {
		g.dueCheckpoint() // it gives back what has been freed
		return nil, err
	}
	for id, p := range s.peers {
		p.left = p.left.minus(need)
		s.peers[id] = p
	}
	s.taken = s.taken.plus(need)
	s.given = s.given.plus(need)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken = s.taken.minus(need)
		s.ends.Add(1)
		_ = g.promiseOwn(want{}.minus(need)) // giving back is not refused
		if s.ended != nil {
			close(s.ended)
			s.ended = nil
		}
	}, nil
}

// promiseOwn promises what this copy's own pool has.
func (g *Group) promiseOwn(need want) error {
	err := g.cfg.Store.Promise(need.bytes)
	if err != nil || need.pages == 0 {
		return err
	}
	if err := g.cfg.Store.PromiseMetadata(need.pages); err != nil {
		_ = g.cfg.Store.Promise(-need.bytes) // giving back is not refused
		return err
	}
	return nil
}

// forget is called when a tenure begins: what peers have said was in another one.
func (s *space) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = nil
}

// Available returns how much can still be allocated for the LUN, in bytes: the least over the replicas in sync as the owner
// last heard, or what this one has elsewhere.
func (g *Group) Available() int64 {
	free := g.cfg.Store.FreeBytes()
	if g.tenure.Load() != nil {
		g.space.mu.Lock()
		defer g.space.mu.Unlock()
		for _, p := range g.space.peers {
			free = min(free, p.free)
		}
	}
	return max(free, 0)
}

// askRoom asks the replicas in sync for room, in time, unless a write is asking.
func (g *Group) askRoom(ctx context.Context) {
	if !g.space.asking.TryLock() {
		return
	}
	defer g.space.asking.Unlock()
	_ = g.askRoomLocked(ctx, 0) // the next time, then
}

// askRoomLocked returns an error if one did not answer: it keeps what it has set aside. One that has never answered is left out: it will
// be found lost by other means.
func (g *Group) askRoomLocked(ctx context.Context, need int64) (silent error) {
	s := &g.space
	rooms := map[raft.ServerID]peerRoom{}
	for _, p := range g.Status().Peers {
		if p.Self || p.Level != witness.InSync.String() {
			continue
		}
		s.mu.Lock()
		q := roomRequest{Version: 1, LUN: g.cfg.LUN, InFlight: s.taken.bytes, Need: need}
		if used := s.given.bytes - s.before; used > 0 || need > 0 {
			q.Extra = max(leastRoom, 2*used)
		}
		promised, taken, was, known := s.given, s.taken, peerRoom{}, false
		was, known = s.peers[p.ID]
		s.mu.Unlock()
		q.AtLeast = g.cfg.Store.Applied() // after taken: what has ended by then has been applied
		within, cancel := context.WithTimeout(ctx, maintainEvery)
		answer, err := g.reserveAt(within, p.Node, q)
		cancel()
		silent = errors.Join(silent, err)
		s.mu.Lock()
		switch {
		case err == nil:
			// What was in flight may have ended meanwhile without having been applied there: it still counts.
			left := want{answer.Granted, answer.pages()}.minus(taken).minus(s.given.minus(promised))
			rooms[p.ID] = peerRoom{left: left, free: answer.Free - q.InFlight}
		case known:
			was.left = s.peers[p.ID].left
			rooms[p.ID] = was
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = rooms
	if need == 0 {
		s.before = s.given.bytes
	}
	return silent
}

// littleRoom is where a replica that is asked for its room looks for freed chunks to give back.
const littleRoom = 16 << 20

// serveRoom answers owners of an older program with the free bytes of the pool the LUN's replica is in; none while it waits for room.
func (h *Host) serveRoom(_ context.Context, _ string, req []byte) ([]byte, error) {
	g, err := h.group(string(req))
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil {
		return nil, errNoReplica
	}
	free := uint64(0)
	if !g.full.Load() {
		free = uint64(max(0, g.cfg.Store.FreeBytes()))
	}
	if free < littleRoom {
		g.dueCheckpoint() // it gives back what has been freed
	}
	return binary.LittleEndian.AppendUint64(nil, free), nil
}

// dueCheckpoint asks for a checkpoint now.
func (g *Group) dueCheckpoint() {
	select {
	case g.checkpointDue <- struct{}{}:
	default:
	}
}
