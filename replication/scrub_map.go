package replication

import (
	"context"

	"sanctuary/blockstore/block"
)

// The scrub also looks at what says where blocks lie. While the program runs the map is in memory: what has rotted of it on the
// medium is written anew from there (blockstore.Volume.CheckMap). What had rotted before the program started is lost, block by block,
// for this copy; the others have it, and it is fetched from them at once instead of when somebody reads it.

// noteLost has what was lost at the start repaired.
func (g *Group) noteLost() {
	blocks := 0
	for _, l := range g.cfg.Store.LostChunks(maxLeft) {
		key := chunkKey{snapshot: l.Snapshot, chunk: l.Chunk}
		r, err := g.stateOf(key.snapshot)
		if err != nil {
			continue // deleted meanwhile
		}
		if g.repairs.found(key, l.Blocks&key.blocksOf(block.Range{Count: r.Geometry().Capacity})) {
			blocks++
		}
	}
	if blocks > 0 {
		g.log.Warn("pages of this copy's map were damaged: what they spoke of is fetched from the other copies, and until then not served from here", "chunks", blocks)
		g.cfg.OnChange()
	}
}

// mayFetch says once, as soon as this replica may repair, that there is something to fetch.
func (s *scrubber) mayFetch(ctx context.Context) bool {
	if s.lost || len(s.g.repairs.chunks()) > 0 && !s.g.exact(ctx) {
		return false
	}
	s.lost = true
	return len(s.g.repairs.chunks()) > 0
}

// checkMap looks at the next piece of the map on the medium, and returns the bytes it has read.
func (s *scrubber) checkMap() int64 {
	g := s.g
	c, err := g.cfg.Store.CheckMap(s.mapped)
	s.mapped = max(c.Next, s.mapped)
	if c.Damaged > 0 {
		g.repairs.pages(c.Damaged)
		g.log.Warn("pages of metadata are damaged on the medium; they have been written anew from memory", "pages", c.Damaged, "error", err)
		g.cfg.OnChange()
	} else if err != nil {
		g.log.Warn("the scrub could not look at metadata", "error", err)
	}
	return c.Bytes
}
