package replication

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/replication/transport"
)

// A copy's pool is filled by every LUN in it, and owned LUN by LUN from other nodes: were each owner told what is free, all of them
// would give it away. So a copy that is asked sets room aside in its pool for the LUN, as an owner does for its own writes, until the
// entries that use it have been applied. What nobody has been using for a moment goes back, so that the last chunk can be had by whoever
// asks for it.

// room is what is set aside on a follower.
type room struct {
	mu      sync.Mutex
	granted int64
	asked   time.Time
}

const (
	// leastRoom is asked for in advance as soon as a LUN allocates at all.
	leastRoom = 4 << 20
	// roomKept is how long room is kept for an owner that does not ask again.
	roomKept = 10 * time.Second
)

type roomRequest struct {
	Version  int    `json:"version"` // 1
	LUN      string `json:"lun"`
	AtLeast  uint64 `json:"at_least"`  // answer once this index has been applied
	InFlight int64  `json:"in_flight"` // bytes promised to writes that this copy may not have applied
	Need     int64  `json:"need"`      // for a write that waits
	Extra    int64  `json:"extra"`     // in advance
}

type roomAnswer struct {
	Granted int64 `json:"granted"` // set aside, with what is in flight
	Free    int64 `json:"free"`    // what this LUN could have in all
	// Metadata is how many pages of metadata the pool has besides; absent from a copy of an older program.
	Metadata *int64 `json:"metadata,omitempty"`
}

// pages returns how many pages of metadata a copy has. One that does not say has had to do without the question so far.
func (a roomAnswer) pages() int64 {
	if a.Metadata == nil {
		return math.MaxInt64 / 2
	}
	return *a.Metadata
}

// reserveAt asks a copy. One of an older program only says what is free.
func (g *Group) reserveAt(ctx context.Context, node string, q roomRequest) (a roomAnswer, err error) {
	raw, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	raw, err = g.host.mux.Call(ctx, node, methodReserve, raw)
	if errors.Is(err, transport.ErrUnknownMethod) {
		if raw, err = g.host.mux.Call(ctx, node, methodRoom, []byte(g.cfg.LUN)); err == nil && len(raw) == 8 {
			free := int64(binary.LittleEndian.Uint64(raw))
			return roomAnswer{Granted: free, Free: free}, nil
		}
	}
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	return a, err
}

// serveReserve sets room aside for an owner.
func (h *Host) serveReserve(ctx context.Context, _ string, raw []byte) ([]byte, error) {
	var q roomRequest
	if err := json.Unmarshal(raw, &q); err != nil {
		return nil, fmt.Errorf("malformed request: %w", err)
	}
	if min(q.InFlight, q.Need, q.Extra) < 0 {
		return nil, fmt.Errorf("malformed request: %+v", q)
	}
	g, err := h.group(q.LUN)
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil || g.Err() != nil {
		return nil, errNoReplica
	}
	if g.full.Load() { // none while it waits for some
		g.dueCheckpoint()
		return json.Marshal(roomAnswer{Metadata: new(int64)})
	}
	if err := g.awaitApplied(ctx, q.AtLeast); err != nil {
		return nil, err // what it has yet to apply, it may have no room for
	}
	if g.tenure.Load() != nil {
		return nil, block.ErrNotOwner
	}
	return json.Marshal(g.room.grant(g, q))
}

func (r *room) grant(g *Group, q roomRequest) roomAnswer {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = time.Now()
	free := max(0, g.cfg.Store.FreeBytes()+r.granted)
	if free < littleRoom {
		g.dueCheckpoint() // it gives back what has been freed
	}
	base := q.InFlight + q.Need
	want := min(free, base)
	if free > base {
		want += min(q.Extra, (free-base)/2/block.ChunkSize*block.ChunkSize) // the other half is for others
	}
	// Where that is too much for the metadata, nothing in advance; but what was granted stays, of which the owner may have given some to writes meanwhile.
	for _, granted := range []int64{want, max(min(free, base), r.granted)} {
		if g.cfg.Store.Promise(granted-r.granted) == nil {
			r.granted = granted
			break
		} // else another LUN was quicker
	}
	pages := max(0, min(math.MaxInt64/2, g.cfg.Store.MetadataRoom())) // memory has no end
	return roomAnswer{Granted: r.granted, Free: free, Metadata: &pages}
}

// use gives back what an entry has used of it.
func (r *room) use(g *Group, n int64) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, r.granted)
	r.granted -= n
	_ = g.cfg.Store.Promise(-n) // giving back is not refused
}

// drop gives everything back if nobody has asked since.
func (r *room) drop(g *Group, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.granted != 0 && r.asked.Before(since) {
		_ = g.cfg.Store.Promise(-r.granted)
		r.granted = 0
	}
}
