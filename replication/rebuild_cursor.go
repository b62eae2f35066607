package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// rebuildCursor is what a receiver knows of its half-copied volume: for each chunk, as of when it is. A rebuild that was
// interrupted, here or at its source, goes on with that: of what had been compared only what has changed since is compared
// again, whoever the source is now. It claims less than there is, never more:
//
//   - "As of index I" says that every block of the chunk is what the log says at I or later. Copying never makes that false:
//     what is copied is newer. Nor does a crash, though it may leave blocks torn that were imported after the last checkpoint:
//     those are of chunks the source has changed since I, which are compared whole.
//   - A chunk that was compared is as of the pin. That is written down only after a checkpoint of the volume.
//   - Exactly a snapshot (State) are the chunks before the position while that snapshot is being copied. Nothing else is
//     written to them before it has been imported.
//
// The file is written before the volume is marked inconsistent, and removed when it is whole again. One of an earlier rebuild
// would still be true but for State; Began tells it apart. One that is lost, or cannot be read, means comparing everything.
type rebuildCursor struct {
	Version int           `json:"version"`
	LUN     string        `json:"lun"`
	Epoch   uint64        `json:"epoch"`
	Replica string        `json:"replica"`
	Began   uint64        `json:"began"` // what the volume had applied when it was marked inconsistent
	Spans   []rebuildSpan `json:"spans"` // ascending; the last one ends at math.MaxUint32
	Sum     uint32        `json:"crc32c"`
}

// rebuildSpan is a run of chunks, from the end of the span before it.
type rebuildSpan struct {
	Until uint32           `json:"until"` // the first chunk behind it
	Since uint64           `json:"since"` // as of this index
	State block.SnapshotID `json:"-"`     // exactly this snapshot, if not zero
	Named string           `json:"state,omitempty"`
}

const (
	rebuildCursorVersion = 1
	// maxRebuildSpans bounds a cursor. Every interruption may add a span; beyond it the last ones become one that claims less.
	maxRebuildSpans  = 16
	rebuildSaveEvery = 5 * time.Second
	rebuildStepBytes = 256 << 20
	endOfChunks      = math.MaxUint32
)

func (g *Group) newRebuildCursor(since uint64) *rebuildCursor {
	return &rebuildCursor{
		Version: rebuildCursorVersion, LUN: g.cfg.LUN, Epoch: g.cfg.Epoch, Replica: string(g.cfg.Self.ID),
		Began: g.cfg.Store.Applied(), Spans: []rebuildSpan{{Until: endOfChunks, Since: since}},
	}
}

// at returns the span a chunk is in.
func (c *rebuildCursor) at(chunk uint32) rebuildSpan {
	for _, s := range c.Spans {
		if chunk < s.Until {
			return s
		}
	}
	return c.Spans[len(c.Spans)-1]
}

// passed says what all chunks before one are now.
func (c *rebuildCursor) passed(chunk uint32, since uint64, state block.SnapshotID) {
	spans := []rebuildSpan{{Until: chunk, Since: since, State: state}}
	for _, s := range c.Spans {
		if s.Until > chunk {
			spans = append(spans, s)
		}
	}
	for len(spans) > maxRebuildSpans {
		last := &spans[len(spans)-2]
		*last = rebuildSpan{Until: endOfChunks, Since: min(last.Since, spans[len(spans)-1].Since)}
		spans = spans[:len(spans)-1]
	}
	c.Spans = spans
}

func (c *rebuildCursor) sum() (uint32, error) {
	bare := *c
	bare.Sum = 0
	raw, err := json.Marshal(bare)
	return block.Sum(raw), err
}

// loadRebuildCursor returns where an interrupted rebuild was, and a cursor that knows nothing if that is not known.
func (g *Group) loadRebuildCursor() *rebuildCursor {
	nothing := g.newRebuildCursor(0)
	if g.cfg.Rebuild.File == "" {
		return nothing
	}
	raw, err := os.ReadFile(g.cfg.Rebuild.File)
	if errors.Is(err, os.ErrNotExist) {
		return nothing
	}
	c := &rebuildCursor{}
	if err == nil {
		err = c.decode(raw)
	}
	if err == nil && (c.LUN != g.cfg.LUN || c.Epoch != g.cfg.Epoch || c.Replica != string(g.cfg.Self.ID) || c.Began != g.cfg.Store.Applied()) {
		err = fmt.Errorf("it is of replica %s of LUN %s, epoch %d, entry %d", c.Replica, c.LUN, c.Epoch, c.Began)
	}
	if err != nil {
		g.log.Warn("how far the rebuild was is not known; it compares everything", "file", g.cfg.Rebuild.File, "error", err)
		return nothing
	}
	return c
}

func (c *rebuildCursor) decode(raw []byte) error {
	if err := json.Unmarshal(raw, c); err != nil {
		return err
	}
	if c.Version != rebuildCursorVersion {
		return fmt.Errorf("version %d, this program reads version %d", c.Version, rebuildCursorVersion)
	}
	sum, err := c.sum()
	if err == nil && sum != c.Sum {
		err = errors.New("it does not match its checksum")
	}
	if err == nil && (len(c.Spans) == 0 || c.Spans[len(c.Spans)-1].Until != endOfChunks) {
		err = errors.New("its spans end too early")
	}
	for i := range c.Spans {
		s := &c.Spans[i]
		if i > 0 && s.Until <= c.Spans[i-1].Until {
			err = errors.Join(err, errors.New("its spans are not in order"))
		}
		if s.Named != "" {
			var named error
			s.State, named = block.ParseSnapshotID(s.Named)
			err = errors.Join(err, named)
		}
	}
	return err
}

// saveRebuildCursor makes what was imported durable, and then says so.
func (g *Group) saveRebuildCursor(ctx context.Context, c *rebuildCursor) error {
	if g.cfg.Rebuild.File == "" {
		return nil
	}
	copied := *c
	copied.Spans = append([]rebuildSpan(nil), c.Spans...)
	for i := range copied.Spans {
		if s := &copied.Spans[i]; s.State != (block.SnapshotID{}) {
			s.Named = s.State.String()
		} else {
			s.Named = ""
		}
	}
	if g.cfg.Store.Inconsistent() {
		if _, err := g.cfg.Store.Checkpoint(ctx); err != nil {
			return err
		}
	}
	var err error
	if copied.Sum, err = copied.sum(); err != nil {
		return err
	}
	raw, err := json.Marshal(copied)
	if err != nil {
		return err
	}
	if err := replaceFile(g.cfg.Rebuild.File, raw); err != nil {
		return err
	}
	return vfs.SyncDir(filepath.Dir(g.cfg.Rebuild.File))
}

// dropRebuildCursor removes the file: the volume is whole.
func (g *Group) dropRebuildCursor() {
	if g.cfg.Rebuild.File == "" {
		return
	}
	err := os.Remove(g.cfg.Rebuild.File)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err = errors.Join(err, vfs.SyncDir(filepath.Dir(g.cfg.Rebuild.File))); err != nil {
		g.log.Warn("the rebuild's cursor was not removed", "file", g.cfg.Rebuild.File, "error", err)
	}
}
