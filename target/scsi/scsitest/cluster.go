package scsitest

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
)

// Cluster is one LUN on several nodes, without a network: they share a log, which is a mutex, and one of them owns the LUN at a
// time. It promises what scsi.Backend does, rule for rule: commands of a tenure that has ended do nothing, or have done what
// they do before it ended; a fence that is older than another node's tenure is refused.
type Cluster struct {
	// Slow, unless nil, is how long an operation of the owner takes before it takes effect.
	Slow func() time.Duration
	// Lag is how long a node that does not own the LUN does not know of a change of the state.
	Lag time.Duration
	// Forget, unless nil, says whether the answer to a change is lost although it was made, as if ownership was lost in
	// between.
	Forget func() bool
	// Waits, unless nil, says whether a change waits, as for room, until its command is aborted.
	Waits func() bool
	// Applied, unless nil, is told of every write in the order they take effect, with the state at that moment.
	Applied func(r block.Range, data []byte, state block.State)

	mu      sync.Mutex
	mem     *Memory
	state   block.State
	older   block.State // the one before state, which came at stateAt
	stateAt time.Time
	term    uint64
	index   uint64 // of the newest entry
	owner   int    // -1: none
	before  block.Fence
	changed chan struct{} // closed at the next change of owner
	nodes   []*Node
	gen     uint64
	other   scsi.AccessState // of groups that do not own it
}

// NewCluster returns a LUN on n nodes, owned by the first. other is the state of the others' port groups.
func NewCluster(g block.Geometry, n int, other scsi.AccessState) *Cluster {
	c := &Cluster{mem: NewMemory(g), term: 1, index: 1, changed: make(chan struct{}), other: other, gen: 1}
	for i := range n {
		c.nodes = append(c.nodes, &Node{c: c, id: i})
	}
	return c
}

// Node returns the LUN's backend on a node.
func (c *Cluster) Node(i int) *Node { return c.nodes[i] }

// Owner returns the owner, -1 if there is none.
func (c *Cluster) Owner() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner
}

// Move makes another node the owner, or none if to is -1.
func (c *Cluster) Move(to int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner = to
	c.gen++
	if to >= 0 {
		c.before = block.Fence{Term: c.term, Index: c.index}
		c.term++
		c.index++
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// Bytes returns a copy of a range.
func (c *Cluster) Bytes(r block.Range) []byte { return c.mem.Bytes(r) }

// Node is the LUN on one node.
type Node struct {
	c  *Cluster
	id int
}

var _ scsi.Backend = (*Node)(nil)

// Access is the node's view of the port groups: group 1 on the first node, 2 on the second, with ports of the same numbers.
func (n *Node) Access() scsi.Access {
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	a := scsi.Access{Local: uint16(n.id + 1), LocalPort: uint16(n.id + 1), Generation: c.gen}
	for i := range c.nodes {
		g := scsi.PortGroup{ID: uint16(i + 1), State: c.other, Ports: []uint16{uint16(i + 1)}}
		switch {
		case i == c.owner:
			g.State = scsi.ActiveOptimized
		case c.owner < 0:
			g.State = scsi.Transitioning
		}
		a.Groups = append(a.Groups, g)
	}
	return a
}

// AccessChanged returns a channel that is closed at the next change of Access.
func (n *Node) AccessChanged() <-chan struct{} {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.c.changed
}

// Geometry implements scsi.Backend.
func (n *Node) Geometry() block.Geometry { return n.c.mem.Geometry() }

// Fence implements scsi.Backend.
func (n *Node) Fence() block.Fence {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.c.owner == n.id {
		return block.Fence{Term: n.c.term, Index: math.MaxUint64}
	}
	return block.Fence{Term: n.c.term, Index: n.c.index}
}

// owned returns the tenure's term; the caller holds mu.
func (n *Node) owned() (uint64, error) {
	switch n.c.owner {
	case n.id:
		return n.c.term, nil
	case -1:
		return 0, block.ErrUnavailable
	}
	return 0, block.ErrNotOwner
}

// do carries out an operation of the owner: it begins, takes its time, and takes effect if the tenure has not ended.
func (n *Node) do(ctx context.Context, f *block.Fence, apply func() error) error {
	c := n.c
	c.mu.Lock()
	term, err := n.owned()
	if err == nil && f != nil && !c.before.Before(*f) {
		err = block.ErrFenced
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if f != nil && c.Waits != nil && c.Waits() {
		<-ctx.Done()
		return ctx.Err()
	}
	if c.Slow != nil {
		timer := time.NewTimer(c.Slow())
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			if f == nil {
				return ctx.Err() // what changes nothing can be given up
			}
			<-timer.C // what changes something is on its way
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now, err := n.owned(); err != nil || now != term {
		if f == nil {
			return block.ErrNotOwner
		}
		return block.ErrUnknown
	}
	if err := apply(); err != nil {
		return err
	}
	if f != nil {
		c.index++
		if c.Forget != nil && c.Forget() {
			return block.ErrUnknown
		}
	}
	return nil
}

// Read implements scsi.Backend.
func (n *Node) Read(ctx context.Context, r block.Range, dst []byte) error {
	return n.do(ctx, nil, func() error { return n.c.mem.Read(ctx, r, dst) })
}

// store writes and tells; the caller holds mu.
func (c *Cluster) store(r block.Range, src []byte) error {
	err := c.mem.Write(context.Background(), block.Fence{}, r, src)
	if err == nil && c.Applied != nil {
		c.Applied(r, src, c.state)
	}
	return err
}

// Write implements scsi.Backend.
func (n *Node) Write(ctx context.Context, f block.Fence, r block.Range, src []byte) error {
	return n.do(ctx, &f, func() error { return n.c.store(r, src) })
}

// CompareAndWrite implements scsi.Backend.
func (n *Node) CompareAndWrite(ctx context.Context, f block.Fence, r block.Range, want, src []byte) (int, error) {
	mismatch := -1
	err := n.do(ctx, &f, func() error {
		have := n.c.mem.Bytes(r)
		for i := range have {
			if have[i] != want[i] {
				mismatch = i
				return nil
			}
		}
		return n.c.store(r, src)
	})
	return mismatch, err
}

// Modify implements scsi.Backend.
func (n *Node) Modify(ctx context.Context, f block.Fence, r block.Range, change func(int64, []byte)) error {
	return n.do(ctx, &f, func() error {
		have := n.c.mem.Bytes(r)
		change(0, have)
		return n.c.store(r, have)
	})
}

// WriteSame implements scsi.Backend.
func (n *Node) WriteSame(ctx context.Context, f block.Fence, r block.Range, pattern []byte) error {
	return n.do(ctx, &f, func() error { return n.c.mem.WriteSame(ctx, f, r, pattern) })
}

// Unmap implements scsi.Backend.
func (n *Node) Unmap(ctx context.Context, f block.Fence, rs []block.Range) error {
	return n.do(ctx, &f, func() error { return n.c.mem.Unmap(ctx, f, rs) })
}

// Allocated implements scsi.Backend.
func (n *Node) Allocated(ctx context.Context, r block.Range) (allocated bool, count block.Count, err error) {
	err = n.do(ctx, nil, func() error {
		allocated, count, err = n.c.mem.Allocated(ctx, r)
		return err
	})
	return allocated, count, err
}

// Flush implements scsi.Backend.
func (n *Node) Flush(ctx context.Context) error { return n.do(ctx, nil, func() error { return nil }) }

// State implements scsi.Backend.
func (n *Node) State() block.State {
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.id != c.owner && time.Since(c.stateAt) < c.Lag {
		return c.older
	}
	return c.state
}

// Confirm implements scsi.Backend.
func (n *Node) Confirm(ctx context.Context) error {
	return n.do(ctx, nil, func() error { return nil })
}

// SwapState implements scsi.Backend.
func (n *Node) SwapState(ctx context.Context, f block.Fence, old uint64, next []byte) (state block.State, err error) {
	err = n.do(ctx, &f, func() error {
		if n.c.state.Version != old {
			return block.ErrStale
		}
		n.c.older, n.c.stateAt = n.c.state, time.Now()
		n.c.state = block.State{Version: old + 1, Blob: bytes.Clone(next)}
		state = n.c.state
		return nil
	})
	return state, err
}

// State returns the newest state.
func (c *Cluster) State() block.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Link carries what a node asks the owner, with faults.
type Link struct {
	Cluster *Cluster
	From    int
	Serve   func(node int) *scsi.Unit
	// Fault, unless nil, says what is to happen to a request.
	Fault func() Fault
}

// Fault is what happens to a request between nodes.
type Fault struct {
	Delay      time.Duration // before it arrives
	LoseAnswer bool          // it is carried out, and the answer is lost, perhaps before
	Mute       bool          // it is carried out, and then the answer is lost
	Stray      time.Duration // if not 0: the sender gives up at once, and it arrives this much later
}

// Ask implements scsi.UnitConfig.AskOwner.
func (l *Link) Ask(ctx context.Context, request []byte) ([]byte, error) {
	owner := l.Cluster.Owner()
	if owner < 0 || owner == l.From {
		return nil, block.ErrUnavailable
	}
	var f Fault
	if l.Fault != nil {
		f = l.Fault()
	}
	serve := func(ctx context.Context) ([]byte, error) {
		answer, err := l.Serve(owner).ServePeer(ctx, fmt.Sprint(l.From), bytes.Clone(request))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", block.ErrUnavailable, err)
		}
		return answer, nil
	}
	if f.Stray > 0 {
		go func() {
			time.Sleep(f.Stray)
			_, _ = serve(context.Background())
		}()
		return nil, block.ErrUnknown
	}
	if f.Delay > 0 {
		time.Sleep(f.Delay)
	}
	type result struct {
		answer []byte
		err    error
	}
	done := make(chan result, 1)
	remote := context.WithoutCancel(ctx)
	go func() {
		answer, err := serve(remote)
		done <- result{answer, err}
	}()
	if f.LoseAnswer {
		return nil, block.ErrUnknown
	}
	select {
	case r := <-done:
		if f.Mute {
			return nil, block.ErrUnknown
		}
		return r.answer, r.err
	case <-ctx.Done(): // the owner goes on with it
		return nil, fmt.Errorf("%w: %w", block.ErrUnknown, ctx.Err())
	}
}
