package node

import (
	"context"
	"sync"
	"time"

	"sanctuary/blockstore"
	"sanctuary/node/api"
)

// spaceView is what a LUN and its snapshots hold, as it was counted last. Counting walks the map, about a second for a TiB, so
// lists show what is known, and have it counted anew in the background when it is no longer fresh.
type spaceView struct {
	mu    sync.Mutex
	known *api.LUNSpace
	index uint64        // blockstore.Volume.Changes when it was counted
	next  time.Time     // not counted anew before
	stale time.Time     // counted anew from then on though the LUN has not changed: a clone may have
	busy  chan struct{} // closed when the count that is under way has ended
}

const (
	spaceFresh = time.Second
	spaceStale = 30 * time.Second
	spaceShare = 20                     // a count may take a twentieth of the time at most
	spaceWait  = time.Minute            // for one count
	spaceSoon  = 100 * time.Millisecond // how long a list waits for counts that end soon
)

// count has the space counted if it is not fresh, and returns a channel that is closed when that has ended, nil if nothing is
// under way.
func (v *spaceView) count(run *running) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	now, index := time.Now(), run.volume.Changes()
	if v.busy != nil || now.Before(v.next) || index == v.index && now.Before(v.stale) {
		return v.busy
	}
	done := make(chan struct{})
	v.busy = done
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), spaceWait)
		defer cancel()
		started := time.Now()
		counted, err := run.group.Space(ctx)
		v.mu.Lock()
		defer v.mu.Unlock()
		if err == nil {
			view := lunSpace(counted, time.Now())
			v.known, v.index = &view, index
		}
		rest := spaceShare * time.Since(started)
		v.next, v.stale = time.Now().Add(max(spaceFresh, rest)), time.Now().Add(max(spaceStale, rest))
		v.busy = nil
		close(done)
	}()
	return done
}

func (v *spaceView) get() *api.LUNSpace {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.known
}

// countSpace has the space of LUNs that are served here counted where it is not fresh, and waits a moment for it.
func (s service) countSpace(ctx context.Context, luns ...string) {
	var all []<-chan struct{}
	for _, id := range luns {
		if run := s.n.replicas.get(id); run != nil && run.volume != nil && run.group.Serving() {
			if c := run.space.count(run); c != nil {
				all = append(all, c)
			}
		}
	}
	soon := time.NewTimer(spaceSoon)
	defer soon.Stop()
	for _, c := range all {
		select {
		case <-c:
		case <-soon.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func spaceOfState(x blockstore.StateSpace) api.Space {
	return api.Space{
		LogicalBytes: x.LogicalBytes, StoredBytes: x.StoredBytes, ExclusiveBytes: x.ExclusiveBytes, SharedBytes: x.StoredBytes - x.ExclusiveBytes,
	}
}

func lunSpace(x blockstore.Space, at time.Time) api.LUNSpace {
	out := api.LUNSpace{Space: spaceOfState(x.Live), Snapshots: len(x.Snapshots), KeptBytes: x.KeptBytes, AsOf: at}
	for _, s := range x.Snapshots {
		out.SnapshotsBytes += s.ExclusiveBytes
	}
	return out
}
