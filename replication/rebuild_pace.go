package replication

import (
	"context"
	"sync"
	"time"

	"sanctuary/blockstore/block"
)

// A rebuild must not be felt by whoever uses the LUN, and must not take longer than it has to when nobody does. What its
// share of link and disks comes to in bytes nobody knows beforehand; but while one step of it is under way, it has of them
// what it can get. So its share is one of time: while the source's node or the receiver's is in use, each step is followed by a
// pause so long that all rebuilds of the receiver's node together work BusyPercent of the time; and the steps are short, so
// that a command finds at most a few of its blocks ahead of it. While nobody uses either node there are no pauses.
//
// BytesPerSecond is a bound of another kind, for links that are shared with others or paid for: it always counts, at the source.

// RebuildConfig is what rebuilds of a replica, and from it, need. Zero fields mean the default.
type RebuildConfig struct {
	// File keeps how far a rebuild is; empty: nowhere, one that this process does not end begins anew in the next.
	File string
	// BusyPercent is the share of the time rebuilds may work while the source's node or this one is in use: 1 to 100. Default 20.
	BusyPercent int
	// StepBytes is how much of the volume is compared at a time: a source that is lost costs as much. Default 256 MiB.
	StepBytes int64
	// SaveEvery is how much of a rebuild may be compared again after a crash. Default 5 s.
	SaveEvery time.Duration
	// BytesPerSecond bounds what this node sends for rebuilds, over all LUNs, at any time. Default 0: no bound.
	BytesPerSecond int64
}

func (c *RebuildConfig) setDefaults() {
	if c.BusyPercent == 0 {
		c.BusyPercent = DefaultRebuildPercent
	}
	if c.StepBytes == 0 {
		c.StepBytes = rebuildStepBytes
	}
	if c.SaveEvery == 0 {
		c.SaveEvery = rebuildSaveEvery
	}
}

// DefaultRebuildPercent is the default of RebuildConfig.BusyPercent.
const DefaultRebuildPercent = 20

const (
	// useBusy is how many reads and entries in a second, over all LUNs of a node, make it one in use. A single writer that
	// waits for each of its writes on a slow disk is somebody, too.
	useBusy = 10
	// useHold is for how long a node stays one in use: a rebuild that takes all it can get must not hide that somebody is there.
	useHold = 2 * time.Second
	useLook = 250 * time.Millisecond
	// minRest is the shortest pause that is made: shorter ones are put together.
	minRest = 2 * time.Millisecond
)

// use measures whether a node is in use.
type use struct {
	activity func() uint64

	mu     sync.Mutex
	looked time.Time
	last   uint64
	until  time.Time
}

func (u *use) busy() bool {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if passed := now.Sub(u.looked); passed >= useLook {
		n := u.activity()
		if !u.looked.IsZero() && float64(n-min(n, u.last)) > useBusy*passed.Seconds() {
			u.until = now.Add(useHold)
		}
		u.last, u.looked = n, now
	}
	return now.Before(u.until)
}

// activity is what all groups of the node have served and applied.
func (h *Host) activity() (n uint64) {
	for _, g := range h.all() {
		n += g.activity.Load()
	}
	return n
}

// rebuildPacers are a node's, over all its LUNs.
type rebuildPacers struct {
	work pacer // nanoseconds of work, as a receiver
	sent pacer // bytes, as a source
}

// limit holds an answer of n bytes back for as long as BytesPerSecond asks for.
func (p *rebuildPacers) limit(ctx context.Context, g *Group, n int) error {
	if g.cfg.Rebuild.BytesPerSecond <= 0 {
		return nil
	}
	return g.pause(ctx, p.sent.take(time.Now(), int64(n), g.cfg.Rebuild.BytesPerSecond))
}

func (g *Group) pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-g.ctx.Done():
		return block.ErrClosed
	}
}

// rest pauses after work, if somebody uses the source's node or this one.
func (c *comparison) rest(ctx context.Context) error {
	now := time.Now()
	worked := now.Sub(c.worked)
	if !c.busy && !c.g.host.use.busy() {
		c.worked = now
		return nil
	}
	if worked < minRest {
		return nil
	}
	// Beginning with the work: a hundredth of the time per percent.
	wait := c.g.host.rebuilds.work.take(c.worked, int64(worked), int64(time.Second)*int64(c.g.cfg.Rebuild.BusyPercent)/100)
	err := c.g.pause(ctx, wait-worked)
	c.worked = time.Now()
	return err
}
