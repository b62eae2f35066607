package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"sanctuary/blockstore/block"
)

// scrubCursor is where a scrub is, and what its file holds (docs/FORMATS.md). A file that is lost, or cannot be read, only
// means beginning again.
type scrubCursor struct {
	Version   int       `json:"version"`
	Running   bool      `json:"running"`
	Snapshot  uint64    `json:"snapshot"` // index of the snapshot it is in; 0: the live contents
	Chunk     uint32    `json:"chunk"`    // the next one
	Bytes     int64     `json:"bytes"`    // read in this pass
	Started   time.Time `json:"started"`
	Completed time.Time `json:"completed"` // the newest pass that reached the end

	saved     time.Time
	requested bool
}

const (
	scrubCursorVersion = 1
	// scrubSaveEvery is how much of a pass may be done again after a crash.
	scrubSaveEvery = 10 * time.Second
	maxFindings    = 16
)

func (c scrubCursor) live() bool { return c.Snapshot == 0 }

func (g *Group) loadCursor() {
	s := &g.scrub
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.cfg.Scrub.File == "" {
		return
	}
	raw, err := os.ReadFile(g.cfg.Scrub.File)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var c scrubCursor
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err == nil && c.Version != scrubCursorVersion {
		err = fmt.Errorf("version %d, this program reads version %d", c.Version, scrubCursorVersion)
	}
	if err != nil {
		g.log.Warn("where the scrub was is not known; it begins again", "file", g.cfg.Scrub.File, "error", err)
		return
	}
	s.cursor = c
}

// saveCursor writes the file, if it is time to.
func (g *Group) saveCursor(now bool) {
	s := &g.scrub
	s.mu.Lock()
	due := g.cfg.Scrub.File != "" && (now || time.Since(s.cursor.saved) >= scrubSaveEvery) && !s.cursor.Started.IsZero()
	if due {
		s.cursor.saved = time.Now()
	}
	c := s.cursor
	s.mu.Unlock()
	if !due {
		return
	}
	c.Version = scrubCursorVersion
	raw, err := json.Marshal(c)
	if err == nil {
		err = replaceFile(g.cfg.Scrub.File, raw)
	}
	if err != nil {
		g.log.Warn("where the scrub is was not saved", "file", g.cfg.Scrub.File, "error", err)
	}
}

func replaceFile(name string, raw []byte) error {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// active says whether a pass is under way, or asked for.
func (c *scrubCursor) active() bool { return c.Running || c.requested }

// passDue says whether a pass is under way, and begins one if it is time.
func (g *Group) passDue(now time.Time, interval time.Duration) bool {
	s := &g.scrub
	s.mu.Lock()
	c := &s.cursor
	begin := c.requested || !c.Running && (c.Started.IsZero() || now.Sub(c.Started) >= interval || now.Before(c.Started))
	if begin {
		*c = scrubCursor{Running: true, Started: now, Completed: c.Completed}
	}
	due := c.Running
	s.mu.Unlock()
	if begin {
		g.log.Info("the scrub begins a pass")
		g.saveCursor(true)
	}
	return due
}

// position returns the cursor and the snapshot it is in. Of a snapshot that has been deleted meanwhile the next one is taken.
func (g *Group) position() (scrubCursor, block.SnapshotID) {
	s := &g.scrub
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursor
	if c.live() {
		return c, block.SnapshotID{}
	}
	for _, snap := range g.cfg.Store.Snapshots() {
		if snap.Index >= c.Snapshot {
			if snap.Index > c.Snapshot {
				c.Snapshot, c.Chunk = snap.Index, 0
			}
			return c, snap.ID
		}
	}
	c.Chunk = ^uint32(0) // none is left: its end has been reached
	return c, block.SnapshotID{}
}

// moveOn sets the cursor; end says that what it is in has come to its end.
func (g *Group) moveOn(c scrubCursor, end bool) {
	snaps := g.cfg.Store.Snapshots()
	phase, chunks := 0, max(1, uint32((g.capacity().Bytes()+block.ChunkSize-1)/block.ChunkSize))
	done := end
	for i, snap := range snaps {
		if snap.Index <= c.Snapshot {
			phase = i + 1
		} else if end && done {
			c.Snapshot, c.Chunk, done, phase = snap.Index, 0, false, i+1
		}
	}
	s := &g.scrub
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cursor.requested || !s.cursor.Started.Equal(c.Started) { // a new pass was asked for
		return
	}
	s.percent = 100 * (float64(phase) + min(1, float64(c.Chunk)/float64(chunks))) / float64(len(snaps)+1)
	c.saved = s.cursor.saved
	if done {
		c.Running, c.Snapshot, c.Chunk, c.Completed = false, 0, 0, time.Now()
		c.saved = time.Time{} // with the next save
		s.percent = 100
		g.log.Info("the scrub has completed a pass", "bytes", c.Bytes, "took", c.Completed.Sub(c.Started))
	}
	s.cursor = c
}

// ScrubStatus is how a replica's scrub is getting on.
type ScrubStatus struct {
	Version   int       `json:"version"` // 1
	Replica   string    `json:"replica"`
	Enabled   bool      `json:"enabled"`
	Paused    bool      `json:"paused"`
	Running   bool      `json:"running"`
	Percent   float64   `json:"percent"` // of the pass under way, or the last one
	Bytes     int64     `json:"bytes"`   // read in it
	Started   time.Time `json:"started"`
	Completed time.Time `json:"completed"` // zero: none yet
	// Blocks that do not match their checksums, whoever found them.
	Repair RepairStatus `json:"repair"`
	// Of the owner: comparisons of all copies since it started.
	Compared uint64       `json:"compared"` // chunks
	Diverged uint64       `json:"diverged"` // blocks that were not the same on all copies
	Mended   uint64       `json:"mended"`   // of those, made the same
	Waits    string       `json:"waits,omitempty"`
	Findings []Divergence `json:"findings,omitempty"` // the newest ones, oldest first
	// ComparesSnapshots: it answers questions about snapshots. Older programs do not.
	ComparesSnapshots bool `json:"compares_snapshots"`
}

// ScrubStatus returns this replica's.
func (g *Group) ScrubStatus() ScrubStatus {
	s := &g.scrub
	s.mu.Lock()
	defer s.mu.Unlock()
	return ScrubStatus{
		Version: 1, Replica: string(g.cfg.Self.ID), Enabled: g.cfg.Scrub.Settings != nil, Running: s.cursor.active(),
		Percent: s.percent, Bytes: s.cursor.Bytes, Started: s.cursor.Started, Completed: s.cursor.Completed, Repair: g.repairs.status(),
		Compared: s.compared, Diverged: s.diverged, Mended: s.mended, Waits: s.waits, Findings: append([]Divergence(nil), s.findings...),
		ComparesSnapshots: true, Paused: g.scrubPaused(),
	}
}

func (g *Group) scrubPaused() bool {
	return g.cfg.Scrub.Settings != nil && g.cfg.Scrub.Settings().Paused
}

// ScrubStatuses returns this replica's and, on the owner, what it last heard of the others'.
func (g *Group) ScrubStatuses() []ScrubStatus {
	out := []ScrubStatus{g.ScrubStatus()}
	if g.tenure.Load() == nil {
		return out
	}
	g.mu.Lock()
	members := make([]Member, 0, len(g.members))
	for _, m := range g.members {
		members = append(members, m)
	}
	g.mu.Unlock()
	g.scrub.mu.Lock()
	defer g.scrub.mu.Unlock()
	for _, m := range members {
		if st, ok := g.scrub.peers[m.ID]; ok && m.ID != g.cfg.Self.ID {
			out = append(out, st)
		}
	}
	return out
}

// StartScrub begins a pass on every data replica that can be reached; one that is under way begins again. Only the owner does it.
func (g *Group) StartScrub(ctx context.Context) error {
	if _, err := g.owned(); err != nil {
		return err
	}
	g.requestPass()
	return g.askScrubs(ctx, true)
}

func (g *Group) requestPass() {
	g.scrub.mu.Lock()
	g.scrub.cursor.requested = true
	g.scrub.mu.Unlock()
	select {
	case g.scrub.wake <- struct{}{}:
	default:
	}
}

type scrubRequest struct {
	Version int    `json:"version"` // 1
	LUN     string `json:"lun"`
	Start   bool   `json:"start,omitempty"`
}

// scrubAskEvery is how long what the others have said will do. What a setting has changed here is soon so there: until they have said so, they are
// asked often.
func (g *Group) scrubAskEvery() time.Duration {
	if g.stillness() == nil {
		return scrubAsk
	}
	paused, copies := g.scrubPaused(), g.copies()
	s := &g.scrub
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cursor.active() {
		return scrubAsk
	}
	for _, m := range copies {
		if p, known := s.peers[m.ID]; !known || p.Running || p.Paused != paused {
			return scrubAsk
		}
	}
	return scrubAskQuiet
}

// askScrubs asks the other data replicas how far they are, or to begin.
func (g *Group) askScrubs(ctx context.Context, start bool) error {
	req, err := json.Marshal(scrubRequest{Version: 1, LUN: g.cfg.LUN, Start: start})
	if err != nil {
		return err
	}
	var failed error
	for _, m := range g.copies() {
		if !g.host.mux.Up(m.Node) {
			failed = errors.Join(failed, fmt.Errorf("node %s cannot be reached", m.Node))
			continue
		}
		within, cancel := context.WithTimeout(ctx, 2*time.Second)
		raw, err := g.host.mux.Call(within, m.Node, methodScrub, req)
		cancel()
		var st ScrubStatus
		if err == nil {
			err = json.Unmarshal(raw, &st)
		}
		if err == nil && st.Replica != string(m.ID) {
			err = fmt.Errorf("replica %s answered for %s", st.Replica, m.ID)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("scrub on node %s: %w", m.Node, err))
			continue
		}
		g.scrub.mu.Lock()
		g.scrub.peers[m.ID] = st
		g.scrub.mu.Unlock()
	}
	return failed
}

// copies returns the other data members, as far as they are known.
func (g *Group) copies() (out []Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.members {
		if !m.Witness && m.ID != g.cfg.Self.ID {
			out = append(out, m)
		}
	}
	return out
}

func (h *Host) serveScrub(_ context.Context, _ string, raw []byte) ([]byte, error) {
	var req scrubRequest
	if err := json.Unmarshal(raw, &req); err != nil {
		return nil, fmt.Errorf("malformed request: %w", err)
	}
	g, err := h.group(req.LUN)
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil {
		return nil, errNoReplica
	}
	if req.Start {
		g.requestPass()
	}
	return json.Marshal(g.ScrubStatus())
}
