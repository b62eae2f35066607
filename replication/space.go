package replication

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// space is what the owner knows about room in the pools, so that a write that would not fit is refused before it is
// proposed (block.ErrNoSpace, which pauses a guest) and not met by a replica that cannot apply it. Overwrites, UNMAP and
// everything else that allocates nothing pass whatever the pools say.
//
// The owner's own pool is looked at for every allocating write. The other replicas are asked every maintainEvery; what has
// been promised since is taken off. Their pools may still be filled by other LUNs in between: see machine.applyWithRoom.
type space struct {
	mu    sync.Mutex
	taken int64                   // promised to writes of this LUN that have not ended, in bytes
	peers map[raft.ServerID]int64 // what was free when asked, less what was promised then and since
}

// takeRoom promises what ops may allocate, or returns block.ErrNoSpace. release must be called when they have been applied
// or never will be.
func (g *Group) takeRoom(ops []block.Op) (release func(), err error) {
	need := g.cfg.Store.Needs(ops)
	if need == 0 {
		return func() {}, nil
	}
	s := &g.space
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, free := range s.peers {
		if need > free {
			return nil, fmt.Errorf("%w of replica %s", block.ErrNoSpace, id)
		}
	}
	if err := g.cfg.Store.Promise(need); err != nil {
		g.dueCheckpoint() // it gives back what has been freed
		return nil, err
	}
	for id := range s.peers {
		s.peers[id] -= need
	}
	s.taken += need
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken -= need
		_ = g.cfg.Store.Promise(-need) // giving back is not refused
	}, nil
}

// Available returns how much can still be allocated for the LUN, in bytes: the least over the replicas in sync as the owner
// last heard, or what this one has elsewhere.
func (g *Group) Available() int64 {
	free := g.cfg.Store.FreeBytes()
	if g.tenure.Load() != nil {
		g.space.mu.Lock()
		defer g.space.mu.Unlock()
		for _, f := range g.space.peers {
			free = min(free, f)
		}
	}
	return max(free, 0)
}

// askRoom asks the replicas in sync how much room they have. One that does not answer is left out: it will be found lost
// by other means.
func (g *Group) askRoom(ctx context.Context) {
	rooms := map[raft.ServerID]int64{}
	for _, p := range g.Status().Peers {
		if p.Self || p.Witness || !p.InSync {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, maintainEvery)
		answer, err := g.host.mux.Call(ctx, p.Node, methodRoom, []byte(g.cfg.LUN))
		cancel()
		if err == nil && len(answer) == 8 {
			rooms[p.ID] = int64(binary.LittleEndian.Uint64(answer))
		}
	}
	s := &g.space
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range rooms {
		rooms[id] -= s.taken
	}
	s.peers = rooms
}

// littleRoom is where a replica that is asked for its room looks for freed chunks to give back.
const littleRoom = 16 << 20

// serveRoom answers with the free bytes of the pool the LUN's replica is in; none while it waits for room.
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
