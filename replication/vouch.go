package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"sanctuary/replication/mutant"
)

// One node vouches to another, every vouchEvery, for all LUNs it owns that are quiet there. The message names none of them: it has
// the number and the sum of their tokens, and what is the same on both nodes needs no word. When it is not, the answer lists
// what is quiet on the answering node; the owner wakes what is missing there, and ends what it knows nothing of. So both
// come to the same whatever was lost or late on the way, and neither needs to be told that the other has been restarted.

const (
	methodQuiet = "replication.quiet" // owner → replica: let this LUN be quiet
	methodVouch = "replication.vouch" // node → node: for all that are

	vouchEvery = 100 * time.Millisecond
	// vouchWithin is how long the answer may take. After that every quiet LUN is woken, and speaks for itself.
	vouchWithin = 300 * time.Millisecond
	// vouchStale is when a follower gives up its quiet LUNs: their owner's node may have forgotten them.
	vouchStale = 600 * time.Millisecond
)

// voucher is the owner's half: what it vouches for to one node.
type voucher struct {
	host *Host
	node string

	// sent is when the newest vouch that was answered had been sent, in ns since the host's birth; 0: never. An answer is noted only
	// after every LUN that it does not hold for has been woken, so whoever reads this and then finds a LUN still quiet
	// may count it for that LUN.
	sent atomic.Int64

	contacted time.Time // when Raft was told last; run's
	list      []*Group  // run's

	mu      sync.Mutex // guards what follows; never held across the network
	groups  map[uint64]*Group
	asking  map[uint64]bool // may be quiet there, and are not yet here
	ending  map[uint64]bool // are not quiet here, and may be there
	running bool
}

// vouchee is the follower's half: what one node vouches for here.
type vouchee struct {
	atNanos atomic.Int64 // at, for readers without the lock; ns since the host's birth
	born    time.Time

	mu     sync.Mutex // guards what follows; a vouch is answered under it
	at     time.Time  // of the newest vouch
	groups map[uint64]*Group
}

func newVouchee(born time.Time) *vouchee {
	return &vouchee{born: born, at: born, groups: map[uint64]*Group{}}
}

// until is when the promise that came with the newest vouch ends.
func (v *vouchee) until(promise time.Duration) time.Time {
	return v.born.Add(time.Duration(v.atNanos.Load()) + promise)
}

func (v *vouchee) stale(now time.Time) bool {
	return now.Sub(v.born)-time.Duration(v.atNanos.Load()) > vouchStale
}

// answered is when the newest vouch that was answered had been sent; zero if none was.
func (v *voucher) answered() time.Time {
	n := v.sent.Load()
	if n == 0 {
		return time.Time{}
	}
	return v.host.born.Add(time.Duration(n))
}

// add begins to vouch for a group whose replica on the node has agreed.
func (v *voucher) add(token uint64, g *Group) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.asking, token)
	v.groups[token] = g
	v.startLocked()
}

// end ceases to.
func (v *voucher) end(token uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.groups, token)
	delete(v.asking, token)
	v.ending[token] = true
	v.startLocked()
}

func (v *voucher) startLocked() {
	if !v.running {
		v.running = v.host.mux.Go(v.run)
	}
}

// run vouches until there is nothing left to vouch for, nor to end.
func (v *voucher) run(ctx context.Context) {
	ticker := time.NewTicker(vouchEvery)
	defer ticker.Stop()
	for {
		v.once(ctx)
		v.mu.Lock()
		if ctx.Err() != nil || len(v.groups)+len(v.asking)+len(v.ending) == 0 {
			v.running = false
			v.mu.Unlock()
			return
		}
		v.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

func (v *voucher) once(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, vouchWithin)
	defer cancel()
	sent := time.Since(v.host.born) // before next: what falls quiet meanwhile does not count this vouch (quiet.since)
	q := v.next()
	raw, err := v.host.mux.Call(ctx, v.node, methodVouch, q.encode())
	var a vouchAnswer
	if err == nil {
		a, err = decodeVouchAnswer(raw)
	}
	if err != nil {
		v.lost()
		return
	}
	for _, g := range v.settle(q, a) {
		g.wake()
	}
	v.sent.Store(int64(sent))
	if now := time.Now(); now.Sub(v.contacted) >= feedEvery-vouchEvery/2 {
		v.contacted = now
		for _, g := range v.all() {
			g.contact(v)
		}
	}
}

// all returns what is vouched for. The slice is run's, until it asks again.
func (v *voucher) all() []*Group {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = v.list[:0]
	for _, g := range v.groups {
		v.list = append(v.list, g)
	}
	return v.list
}

// next is what is to be said now.
func (v *voucher) next() vouchRequest {
	v.mu.Lock()
	defer v.mu.Unlock()
	var q vouchRequest
	q.count, q.sum = tally(v.groups)
	for token := range v.ending {
		if len(q.ended) == maxEnded {
			break
		}
		q.ended = append(q.ended, token)
	}
	return q
}

// settle takes the answer in and returns the groups that the node no longer has as quiet.
func (v *voucher) settle(q vouchRequest, a vouchAnswer) (wake []*Group) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, token := range q.ended {
		delete(v.ending, token)
	}
	if !a.differs {
		return nil
	}
	there := make(map[uint64]bool, len(a.tokens))
	for _, token := range a.tokens {
		there[token] = true
		if v.groups[token] == nil && !v.asking[token] {
			v.ending[token] = true
		}
	}
	for token, g := range v.groups {
		if !there[token] {
			wake = append(wake, g)
		}
	}
	return wake
}

// lost is called when the node does not answer: every LUN sends its own heartbeats again.
func (v *voucher) lost() {
	for _, g := range v.all() {
		g.wake()
	}
	v.mu.Lock()
	clear(v.ending) // the node gives up what nobody vouches for; what it still has when it answers again it says then
	v.mu.Unlock()
}

func tally(groups map[uint64]*Group) (count uint32, sum uint64) {
	for token := range groups {
		sum += token
	}
	return uint32(len(groups)), sum
}

// agree begins a spell of quiet; false if there is one. The owner counts only vouches that it sends later.
func (v *vouchee) agree(g *Group, h *hushed) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !g.hushed.CompareAndSwap(nil, h) {
		return false
	}
	v.groups[h.token] = g
	return true
}

// serve takes a vouch: from now on every group that is quiet here, by this node's word, counts as having promised. Those whose Raft has
// gone on to another term since have perhaps voted already, and are quiet no longer. The promise is made before that is looked at, and a
// voter looks at its promise after its term has changed (raftAnswered, mayStand): one of the two sees the other.
func (v *vouchee) serve(q vouchRequest, now time.Time) vouchAnswer {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, token := range q.ended {
		if g := v.groups[token]; g != nil {
			g.stirLocked(g.hushed.Load())
		}
	}
	v.atNanos.Store(int64(now.Sub(v.born)))
	for _, g := range v.groups {
		if h := g.hushed.Load(); !mutant.Vouch && h.termNow() != h.term {
			g.stirLocked(h) // with the promise of the vouch before
		}
	}
	v.at = now
	var a vouchAnswer
	if count, sum := tally(v.groups); count != q.count || sum != q.sum {
		a.differs = true
		for token := range v.groups {
			a.tokens = append(a.tokens, token)
		}
	}
	return a
}

// feed keeps the Rafts of all that is quiet from standing for election.
func (v *vouchee) feed(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, g := range v.groups {
		g.feed(g.hushed.Load(), now)
	}
}

// askQuiet asks the replica on a node to fall quiet.
func (h *Host) askQuiet(ctx context.Context, node string, q quietRequest) (*voucher, error) {
	v := h.voucher(node)
	raw, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.asking[q.Token] = true
	v.mu.Unlock()
	if _, err = h.mux.Call(ctx, node, methodQuiet, raw); err != nil {
		v.end(q.Token)
		return nil, err
	}
	return v, nil
}

func (h *Host) serveQuiet(_ context.Context, from string, raw []byte) ([]byte, error) {
	var q quietRequest
	if err := json.Unmarshal(raw, &q); err != nil {
		return nil, fmt.Errorf("malformed request: %w", err)
	}
	g, err := h.group(q.LUN)
	if err != nil {
		return nil, err
	}
	if nodeOf(q.Owner) != from {
		return nil, fmt.Errorf("%s is not the owner's node", from)
	}
	return nil, g.hush(q, h.vouchee(from))
}

func (h *Host) serveVouch(_ context.Context, from string, raw []byte) ([]byte, error) {
	q, err := decodeVouchRequest(raw)
	if err != nil {
		return nil, err
	}
	by, now := h.vouchee(from), time.Now()
	a := by.serve(q, now)
	by.feed(now)
	return a.encode(), nil
}

func (h *Host) voucher(node string) *voucher {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.vouchers[node]
	if v == nil {
		v = &voucher{host: h, node: node, groups: map[uint64]*Group{}, asking: map[uint64]bool{}, ending: map[uint64]bool{}}
		h.vouchers[node] = v
	}
	return v
}

func (h *Host) vouchee(node string) *vouchee {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.vouchees[node]
	if v == nil {
		v = newVouchee(h.born)
		h.vouchees[node] = v
	}
	return v
}
