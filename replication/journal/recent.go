package journal

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// recent holds the newest entries of a log, contiguous. The entries it is given must not be changed afterwards: Raft, the transport and
// the state machine read them at the same time.
type recent struct {
	shared *budget       // nil: nothing is ever dropped but by who owns it
	keep   atomic.Uint64 // entries after it are nowhere else: they stay
	place  *list.Element // in shared; guarded by its mu

	mu    sync.RWMutex
	bytes int64
	logs  []*raft.Log // indexes are consecutive
}

// budget bounds what all recents of a journal hold, in bytes. What was added longest ago goes first, of the group that has been quiet for longest.
type budget struct {
	limit int64
	bytes atomic.Int64

	mu    sync.Mutex
	order list.List // of *recent, the quietest first
}

// entryOverheadBytes stands for what an entry costs beside its payload.
const entryOverheadBytes = 128

func cost(l *raft.Log) int64 { return int64(len(l.Data)+len(l.Extensions)) + entryOverheadBytes }

// added notes that r has got something, and drops what is too much.
func (b *budget) added(r *recent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.place == nil {
		r.place = b.order.PushBack(r)
	} else {
		b.order.MoveToBack(r.place)
	}
	for e := b.order.Front(); e != nil && b.bytes.Load() > b.limit; {
		quiet, next := e.Value.(*recent), e.Next()
		if left := quiet.shrink(b.bytes.Load() - b.limit); left == 0 {
			b.order.Remove(e)
			quiet.place = nil
		}
		e = next
	}
}

func (b *budget) gone(r *recent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.place != nil {
		b.order.Remove(r.place)
		r.place = nil
	}
}

// shrink drops the oldest entries, as far as they are on disk, until that many bytes have come free. It returns how many entries are left.
func (c *recent) shrink(bytes int64) (left int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, keep := 0, c.keep.Load()
	for freed := int64(0); n < len(c.logs) && freed < bytes && c.logs[n].Index <= keep; n++ {
		freed += cost(c.logs[n])
	}
	c.drop(n)
	return len(c.logs)
}

func (c *recent) count(bytes int64) {
	c.bytes += bytes
	if c.shared != nil {
		c.shared.bytes.Add(bytes)
	}
}

// add appends logs, first dropping whatever they overwrite or leave a gap behind.
func (c *recent) add(logs []*raft.Log) {
	c.mu.Lock()
	if n := len(c.logs); n > 0 {
		switch next := c.logs[n-1].Index + 1; {
		case logs[0].Index > next || logs[0].Index < c.logs[0].Index:
			c.drop(n)
		case logs[0].Index < next:
			c.cut(logs[0].Index)
		}
	}
	for _, l := range logs {
		c.logs = append(c.logs, l)
		c.count(cost(l))
	}
	c.mu.Unlock()
	if c.shared != nil && c.shared.bytes.Load() > c.shared.limit || c.shared != nil && len(logs) > 0 && c.quiet() {
		c.shared.added(c)
	}
}

// quiet says that shared does not know of it, or may take it for quieter than it is: looked at now and then only.
func (c *recent) quiet() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.logs)%64 == 1
}

// drop removes the n oldest entries.
func (c *recent) drop(n int) {
	for _, l := range c.logs[:n] {
		c.count(-cost(l))
	}
	clear(c.logs[:n])
	c.logs = c.logs[n:]
	if len(c.logs) == 0 {
		c.logs = nil
	}
}

// cut removes the entries from index on.
func (c *recent) cut(index uint64) {
	keep := len(c.logs)
	for keep > 0 && c.logs[keep-1].Index >= index {
		keep--
		c.count(-cost(c.logs[keep]))
		c.logs[keep] = nil
	}
	c.logs = c.logs[:keep]
}

func (c *recent) get(index uint64, out *raft.Log) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.logs) == 0 || index < c.logs[0].Index || index > c.logs[len(c.logs)-1].Index {
		return false
	}
	*out = *c.logs[index-c.logs[0].Index]
	return true
}

func (c *recent) deleteRange(lo, hi uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.logs) == 0 {
		return
	}
	first, last := c.logs[0].Index, c.logs[len(c.logs)-1].Index
	switch {
	case hi < first || lo > last:
	case lo <= first:
		c.drop(int(min(hi, last) - first + 1))
	default:
		c.cut(lo)
	}
}

func (c *recent) reset() {
	c.mu.Lock()
	c.drop(len(c.logs))
	c.mu.Unlock()
	if c.shared != nil {
		c.shared.gone(c)
	}
}

// bounds returns the first and last index held, 0 and 0 if none.
func (c *recent) bounds() (first, last uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.logs) == 0 {
		return 0, 0
	}
	return c.logs[0].Index, c.logs[len(c.logs)-1].Index
}

// held returns the cost of what is held, in bytes.
func (c *recent) held() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.bytes
}
