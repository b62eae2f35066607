package journal

import (
	"sync"

	"github.com/hashicorp/raft"
)

// recent holds the newest entries of a log, contiguous, oldest dropped first when their payload exceeds limit bytes
// (-1: never). The entries it is given must not be changed afterwards: Raft, the transport and the state machine read
// them at the same time.
type recent struct {
	mu    sync.RWMutex
	limit int64
	bytes int64
	logs  []*raft.Log // indexes are consecutive
}

// entryOverheadBytes stands for what an entry costs beside its payload.
const entryOverheadBytes = 128

func cost(l *raft.Log) int64 { return int64(len(l.Data)+len(l.Extensions)) + entryOverheadBytes }

// add appends logs, first dropping whatever they overwrite or leave a gap behind.
func (c *recent) add(logs []*raft.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.logs); n > 0 {
		switch next := c.logs[n-1].Index + 1; {
		case logs[0].Index > next:
			c.drop(n)
		case logs[0].Index < next:
			c.cut(logs[0].Index)
		}
	}
	for _, l := range logs {
		c.logs = append(c.logs, l)
		c.bytes += cost(l)
	}
	n := 0
	for c.limit >= 0 && c.bytes > c.limit && n < len(c.logs)-1 {
		c.bytes -= cost(c.logs[n])
		n++
	}
	c.forget(n)
}

// drop removes the n oldest entries.
func (c *recent) drop(n int) {
	for _, l := range c.logs[:n] {
		c.bytes -= cost(l)
	}
	c.forget(n)
}

// forget lets go of the n oldest entries, whose cost has been subtracted.
func (c *recent) forget(n int) {
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
		c.bytes -= cost(c.logs[keep])
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
	defer c.mu.Unlock()
	c.drop(len(c.logs))
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
