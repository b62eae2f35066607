package replication

import "time"

// RebuildProgress is how far a rebuild is.
type RebuildProgress struct {
	Copied int64 `json:"copied"` // bytes of blocks that were fetched
	// Total is how many bytes are to be compared, as far as is known: what the states after the one that is being copied come to
	// is not. 0: the source cannot tell. Seen is how many have been.
	Total int64 `json:"total,omitempty"`
	Seen  int64 `json:"seen,omitempty"`
	// PerSecond is how many bytes were compared in a second, of late; 0: not known yet.
	PerSecond int64 `json:"per_second,omitempty"`
}

// ToGo is how many bytes are left to compare; 0 if that is not known.
func (p RebuildProgress) ToGo() int64 { return max(p.Total-p.Seen, 0) }

// Left is how long that takes at the present rate; 0 if that is not known.
func (p RebuildProgress) Left() time.Duration {
	if p.PerSecond == 0 {
		return 0
	}
	return time.Duration(float64(p.ToGo()) / float64(p.PerSecond) * float64(time.Second))
}

// rebuildRateEvery is the time the rate is an average of, and counts for half beside what it was before.
const rebuildRateEvery = time.Second

func (g *Group) rebuildAhead(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rebuild.done.Total = g.rebuild.done.Seen + n
}

func (g *Group) rebuildCopied(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rebuild.done.Copied += n
}

func (g *Group) rebuildSeen(n int64) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &g.rebuild
	r.done.Seen += n
	passed := now.Sub(r.rated)
	if passed < rebuildRateEvery {
		return
	}
	rate := int64(float64(r.done.Seen-r.ratedAt) / passed.Seconds())
	if r.done.PerSecond > 0 {
		rate = (rate + r.done.PerSecond) / 2
	}
	r.done.PerSecond, r.rated, r.ratedAt = rate, now, r.done.Seen
}
