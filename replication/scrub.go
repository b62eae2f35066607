package replication

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// The scrub finds what is wrong with a copy before somebody needs it. Each replica goes through its own volume, live contents
// first, then every snapshot from the oldest on: it reads each stored block, and what does not match its checksum is repaired
// (repair.go). The owner's scrub has all copies compared as it goes (scrub_compare.go): that finds what no checksum tells.
//
// It is in nobody's way: it reads one chunk at a time, holds no range lock unless there is something to repair, keeps to a
// rate that all scrubs of the node share, and to a quarter of it while the LUN is used. It goes on where it was when the process
// ended (scrub_state.go). A replica that is not exact waits.

// ScrubConfig is what a replica's scrub needs.
type ScrubConfig struct {
	// Settings are asked for at every step, so a change counts at once. nil: this replica is not scrubbed.
	Settings func() ScrubSettings
	// File keeps where the scrub is; empty: nowhere, it begins anew in each process.
	File string
	// Retry is the time between attempts to repair what could not be. Default a minute.
	Retry time.Duration
}

// ScrubSettings set the pace. Zero fields mean the default.
type ScrubSettings struct {
	BytesPerSecond int64         // of one node, over all LUNs. Default 32 MiB
	Interval       time.Duration // from the beginning of one pass to that of the next. Default a week
	Paused         bool
}

// Defaults of ScrubSettings.
const (
	DefaultScrubRate     = 32 << 20
	DefaultScrubInterval = 7 * 24 * time.Hour
)

const (
	scrubIdle       = time.Second     // how soon a change of the settings, or of the owner, is noticed
	scrubQuiet      = 5 * time.Second // the same of a LUN that is quiet
	scrubAsk        = 5 * time.Second // how often the owner asks the others how far they are
	scrubAskQuiet   = time.Minute     // the same of a LUN that is quiet and not being scrubbed
	scrubBusy       = 50              // reads and entries in a second from which a LUN is in use
	scrubYield      = 4               // how much slower it goes then
	scrubStepBytes  = 4 << 10         // what a step costs that reads nothing
	defaultRetry    = time.Minute
	scrubFineChunks = 64 // chunks that are compared with one entry
)

// scrub is one replica's. The loop's goroutine alone moves the cursor.
type scrub struct {
	wake chan struct{} // capacity 1: a pass was asked for

	mu       sync.Mutex
	cursor   scrubCursor
	percent  float64
	waits    string // why the copies are not compared
	captures []capture
	compared uint64
	diverged uint64
	mended   uint64
	findings []Divergence
	peers    map[raft.ServerID]ScrubStatus // owner: as last heard. Whoever has answered once knows OpCompare
}

// pacer spreads bytes over time.
type pacer struct {
	mu   sync.Mutex
	next time.Time
}

// take returns how long to wait now, after n bytes.
func (p *pacer) take(now time.Time, n, perSecond int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(perSecond) * float64(time.Second)))
	return p.next.Sub(now)
}

// scrubLoop is the replica's scrub for as long as the group lives.
func (g *Group) scrubLoop() {
	g.loadCursor()
	defer g.saveCursor(true)
	g.noteLost()
	loop := scrubber{g: g, retried: time.Now()}
	for {
		select {
		case <-time.After(loop.once(g.ctx)):
		case <-g.scrub.wake:
		case <-g.ctx.Done():
			return
		}
	}
}

// scrubber is what the loop knows besides the cursor.
type scrubber struct {
	g        *Group
	retried  time.Time
	asked    time.Time
	looked   time.Time // when activity was looked at
	activity uint64
	busy     bool
	lost     bool      // what was lost at the start is noted, and this replica may repair it
	pass     time.Time // when the pass began that the following are about
	mapped   uint32    // chunks before it have had their part of the map checked in this pass
	compared chunkKey  // chunks before it, in its state, have been compared in this pass, or are in missed
	missed   []span    // what could not be compared, for a copy was out of sync or did not answer
}

// span is n chunks.
type span struct {
	first chunkKey
	n     uint32
}

const (
	// maxMissed bounds scrubber.missed; what is beyond it is left to the next pass. Neighbours are one.
	maxMissed = 256
	// missedChunks is how much of it is made up for at a time: 4 GiB.
	missedChunks = 256 * scrubFineChunks
)

// once does one step and returns how long to wait before the next.
func (s *scrubber) once(ctx context.Context) time.Duration {
	g, now := s.g, time.Now()
	retry := g.cfg.Scrub.Retry
	if retry == 0 {
		retry = defaultRetry
	}
	if now.Sub(s.retried) >= retry || s.mayFetch(ctx) {
		s.retried = now
		g.mendLeft(ctx)
		g.compareAgain(ctx)
		s.compareMissed(ctx)
	}
	if g.cfg.Scrub.Settings == nil {
		return min(scrubIdle, retry)
	}
	if g.tenure.Load() != nil && now.Sub(s.asked) >= g.scrubAskEvery() {
		s.asked = now
		g.askScrubs(ctx, false)
	}
	set := g.cfg.Scrub.Settings()
	if set.BytesPerSecond <= 0 {
		set.BytesPerSecond = DefaultScrubRate
	}
	if set.Interval <= 0 {
		set.Interval = DefaultScrubInterval
	}
	if set.Paused || g.Err() != nil || !g.exact(ctx) || !g.passDue(now, set.Interval) {
		if g.stillness() != nil {
			return min(scrubQuiet, retry)
		}
		return min(scrubIdle, retry)
	}
	s.look(now)
	cost := max(s.step(ctx), scrubStepBytes)
	if s.busy {
		cost *= scrubYield
	}
	g.saveCursor(false)
	return g.host.scrubs.take(now, cost, set.BytesPerSecond)
}

// look measures whether the LUN is used.
func (s *scrubber) look(now time.Time) {
	n := s.g.activity.Load()
	if passed := now.Sub(s.looked); passed >= time.Second/4 {
		s.busy = !s.looked.IsZero() && float64(n-s.activity) > scrubBusy*passed.Seconds()
		s.activity, s.looked = n, now
	}
}

// step looks at the next chunk, or passes over what is not stored, and returns the bytes it has read.
func (s *scrubber) step(ctx context.Context) int64 {
	g := s.g
	at, from := g.position()
	if !at.Started.Equal(s.pass) {
		s.pass, s.compared, s.mapped = at.Started, chunkKey{}, 0
	}
	key := chunkKey{snapshot: from, chunk: at.Chunk}
	r, err := g.stateOf(from)
	if err != nil {
		g.moveOn(at, true)
		return 0
	}
	chunks := uint32((r.Geometry().Capacity.Bytes() + block.ChunkSize - 1) / block.ChunkSize)
	if at.Chunk >= chunks {
		g.moveOn(at, true)
		return 0
	}
	span := unstored(r, at.Chunk, chunks)
	if key.live() && at.Chunk >= s.mapped {
		return s.checkMap()
	}
	s.compare(ctx, key, max(span, min(scrubFineChunks, chunks-at.Chunk)))
	if span > 0 {
		at.Chunk += span
		g.moveOn(at, false)
		return 0
	}
	n, err := g.scrubChunk(ctx, key)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, block.ErrNoSnapshot) {
			g.log.Warn("the scrub could not look at a chunk", "where", key.String(), "error", err)
		}
		if errors.Is(err, block.ErrClosed) || errors.Is(err, blockstore.ErrInconsistent) || errors.Is(err, block.ErrFailed) {
			return 0 // the same again, once the replica is whole
		}
	}
	at.Chunk++
	at.Bytes += n
	g.moveOn(at, false)
	return n
}

// compare has chunks compared by the owner, unless they have been in this pass.
func (s *scrubber) compare(ctx context.Context, key chunkKey, n uint32) {
	end := key.plus(n)
	if s.compared.snapshot == key.snapshot {
		key.chunk = max(key.chunk, s.compared.chunk)
	}
	if key.chunk >= end.chunk {
		return
	}
	s.compared = end
	t := s.g.tenure.Load()
	if t == nil {
		return
	}
	s.compareSpan(ctx, t, span{key, end.chunk - key.chunk})
}

// compareSpan compares, and notes what is left to do.
func (s *scrubber) compareSpan(ctx context.Context, t *tenure, c span) {
	done, err := s.g.compareChunks(ctx, t, c.first, c.n)
	if errors.Is(err, block.ErrNoSnapshot) { // here: it has been deleted
		return
	}
	s.g.scrub.mu.Lock()
	s.g.scrub.waits = ""
	if err != nil {
		s.g.scrub.waits = err.Error()
	}
	s.g.scrub.mu.Unlock()
	if err == nil {
		return
	}
	left := span{c.first.plus(done), c.n - done}
	if last := len(s.missed) - 1; last >= 0 && s.missed[last].first.plus(s.missed[last].n) == left.first {
		s.missed[last].n += left.n
	} else if len(s.missed) < maxMissed {
		s.missed = append(s.missed, left)
	}
}

// compareMissed makes up for what could not be compared.
func (s *scrubber) compareMissed(ctx context.Context) {
	t := s.g.tenure.Load()
	if t == nil {
		s.missed = nil // whoever owns the LUN now has its own
		return
	}
	missed := s.missed
	s.missed = nil
	budget := uint32(missedChunks)
	for _, c := range missed {
		now := min(c.n, budget)
		budget -= now
		if now > 0 {
			s.compareSpan(ctx, t, span{c.first, now})
		}
		if now < c.n {
			s.missed = append(s.missed, span{c.first.plus(now), c.n - now})
		}
	}
}

// unstored returns how many chunks from this one on hold nothing.
func unstored(r blockstore.Reader, chunk, chunks uint32) uint32 {
	n := min(chunks-chunk, block.MaxCompareChunks)
	start := int64(chunk) * block.ChunkSize
	want := block.BytesRange(start, min(int64(n)*block.ChunkSize, r.Geometry().Capacity.Bytes()-start))
	allocated, same, err := r.Allocated(want)
	switch {
	case err != nil || allocated: // what is bad is looked at block by block
		return 0
	case same == want.Count:
		return n
	}
	return uint32(same.Bytes() / block.ChunkSize)
}

// scrubChunk reads a chunk and repairs what is bad in it.
func (g *Group) scrubChunk(ctx context.Context, key chunkKey) (bytes int64, err error) {
	bad, err := g.badBlocks(key)
	if err != nil {
		return 0, err
	}
	g.repairs.good(key, bad)
	if bad == 0 {
		return block.ChunkSize, nil
	}
	_, err = g.mendChunk(ctx, key)
	return block.ChunkSize, err
}

// mendChunk repairs what is bad in a chunk, under the lock rule if this is the owner.
func (g *Group) mendChunk(ctx context.Context, key chunkKey) (left uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*repairWithin)
	defer cancel()
	rule := repairRule{}
	if t := g.tenure.Load(); t != nil && key.live() {
		lock, err := g.locks.lock(ctx, key.chunkRange())
		if err != nil {
			return 0, err
		}
		defer g.locks.unlock(lock)
		rule.held = t
	}
	bad, err := g.badBlocks(key)
	if err != nil {
		return 0, err
	}
	return g.mend(ctx, key, bad, rule)
}

// mendLeft tries again what could not be repaired, and forgets what is good by now.
func (g *Group) mendLeft(ctx context.Context) {
	for _, key := range g.repairs.chunks() {
		if ctx.Err() != nil || !g.exact(ctx) {
			return
		}
		bad, err := g.badBlocks(key)
		switch {
		case errors.Is(err, block.ErrNoSnapshot), err == nil && bad == 0:
			g.repairs.good(key, 0)
		case err == nil:
			g.repairs.good(key, bad)
			_, _ = g.mendChunk(ctx, key) // mend has told
		}
	}
}
