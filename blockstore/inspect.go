package blockstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// Looking at a pool from outside: every structure is read and compared with every other, nothing is written, nothing is locked, and the pool may
// be running.
//
// A running pool does not stand still, and must not look damaged for that. A walk begins at one superblock. Pages that it leads to are not
// overwritten while it is the newest (see the package comment), and every pointer has the checksum of what it points at; so what was found whole is
// the state of that superblock, and what was not is damage if the superblocks are the same afterwards. If they are not, the walk is
// repeated, but for the leaves whose pointers have not changed, until one has ended before the next checkpoint. Blocks and their
// checksums are written in place at any time: see inspect_data.go.

// InspectConfig says what to look at, and how closely.
type InspectConfig struct {
	// Path is the directory of a pool of files, its data file, an image of a device, or a block device. Device replaces it.
	Path   string
	Device vfs.Dev

	// Data has every stored block compared with its checksum.
	Data bool
	// BytesPerSecond bounds the reading of data; 0: as fast as it goes.
	BytesPerSecond int64
	// Progress is called now and then while data are read; nil: never.
	Progress func(done, total int64)
	// Running says that a process may be using the medium, as vfs.Holder tells: then a block at odds with its checksum is looked at again later.
	Running bool
	// Settle is for how long, in a pool that is running and makes no checkpoint, a block must stay at odds with its checksum before that is called
	// damage. It must be longer than what is written waits for a checkpoint. Default: 2 minutes.
	Settle time.Duration
	// Rewritten says whether the log has an entry after the given one that writes the whole of some blocks; nil: the log is not known. It is asked about
	// blocks of a pool that is not running.
	Rewritten func(volume string, after uint64, blocks block.Range) bool

	// Chunk is called for each chunk of the volumes that Volume selects, in ascending order; nil: never.
	Chunk func(c InspectedChunk)
	// Volume selects one volume for Chunk; "": all.
	Volume string
}

const defaultSettle = 2 * time.Minute

// Inspected is what a pool holds, and what is wrong with it.
type Inspected struct {
	FormatVersion uint32            `json:"format_version"`
	UUID          string            `json:"uuid"`
	Generation    uint64            `json:"generation"` // of the newest superblock
	MediumBytes   int64             `json:"medium_bytes"`
	CapacityBytes int64             `json:"capacity_bytes"`
	Slots         int64             `json:"slots"`
	UsedSlots     int64             `json:"used_slots"`
	Pages         int64             `json:"pages"`
	UsedPages     int64             `json:"used_pages"`
	Volumes       []InspectedVolume `json:"volumes"`
	CheckedBytes  int64             `json:"checked_bytes"` // of data, compared with their checksums
	Notes         []string          `json:"notes,omitempty"`
	Findings      []block.Finding   `json:"findings"`
	MoreFindings  int64             `json:"more_findings,omitempty"` // that are not listed
	Walks         int               `json:"walks"`                   // until one was not overtaken by a checkpoint
}

// Sound says that nothing is wrong.
func (r *Inspected) Sound() bool { return len(r.Findings) == 0 }

// InspectedVolume is one volume as of its last checkpoint.
type InspectedVolume struct {
	Name              string              `json:"name"` // "": deleted, and kept for its clones
	Number            uint32              `json:"number"`
	SizeBytes         int64               `json:"size_bytes"`
	LogicalBlockBytes int                 `json:"logical_block_bytes"`
	Applied           uint64              `json:"applied"` // index of the newest log entry
	AllocatedBytes    int64               `json:"allocated_bytes"`
	StoredBytes       int64               `json:"stored_bytes"` // in the live volume
	Epoch             uint32              `json:"epoch"`
	Snapshots         []InspectedSnapshot `json:"snapshots"`
	Origin            uint32              `json:"origin,omitempty"`       // of a clone: the number of the volume it was made from
	OriginEpoch       uint32              `json:"origin_epoch,omitempty"` // and the epoch of its snapshot
	Rebuilding        bool                `json:"rebuilding,omitempty"`   // an import has begun and not ended
	LostBytes         int64               `json:"lost_bytes,omitempty"`   // of the live volume, because pages of its map are damaged
	Unreadable        bool                `json:"unreadable,omitempty"`   // its root is damaged
}

// InspectedSnapshot is one snapshot of a volume.
type InspectedSnapshot struct {
	Name          string `json:"name"`
	ID            string `json:"id"`
	Epoch         uint32 `json:"epoch"`
	Index         uint64 `json:"index"`
	SizeBytes     int64  `json:"size_bytes"`
	StoredBytes   int64  `json:"stored_bytes"`
	KeptForClones bool   `json:"kept_for_clones,omitempty"` // it was deleted
	BeforeRebuild bool   `json:"before_rebuild,omitempty"`  // no snapshot: what the volume held before the rebuild that is under way
}

// InspectedChunk is one entry of a volume's map.
type InspectedChunk struct {
	Volume     string           `json:"volume"`
	Chunk      uint32           `json:"chunk"`
	Index      uint64           `json:"index"` // of the entry that changed it last
	PageOffset int64            `json:"page_offset"`
	Layers     []InspectedLayer `json:"layers"`
}

// InspectedLayer is what an epoch has left of a chunk.
type InspectedLayer struct {
	Epoch  uint32 `json:"epoch"`
	Blocks uint64 `json:"blocks"` // bit n: block n
	Slot   uint32 `json:"slot"`   // 0: zeros
	Offset int64  `json:"offset"` // of the slot; -1: none
	Lost   bool   `json:"lost,omitempty"`
}

// Bounds of an inspection.
const (
	// maxFindings are listed; beyond that they are counted.
	maxFindings = 1000
	// maxWalks are begun while checkpoints come in between. A walk that is repeated reads only what has changed.
	maxWalks = 50
)

// readOnly makes sure that nothing is written to a medium that is looked at.
type readOnly struct{ vfs.Dev }

func (readOnly) WriteAt([]byte, int64) error { return vfs.ErrReadOnly }
func (readOnly) Sync() error                 { return vfs.ErrReadOnly }
func (readOnly) Discard(int64, int64) error  { return vfs.ErrReadOnly }

// Inspect looks at a pool. It writes nothing and locks nothing. It takes as much memory as opening the pool does, and 8 bytes for each slot in use. The error
// says why the medium could not be looked at: ErrNoPool, ErrVersion, vfs.ErrUnsteady, ctx's, or the system's; what is damaged is in the report.
func Inspect(ctx context.Context, cfg InspectConfig) (*Inspected, error) {
	if cfg.Settle == 0 {
		cfg.Settle = defaultSettle
	}
	dev, other := cfg.Device, ""
	if dev == nil {
		if dir, ok := poolDir(cfg.Path); ok {
			var err error
			cfg.Path, other, err = mediumIn(dir)
			if errors.Is(err, errVersion1) {
				r, err := inspectV1(ctx, dir, cfg)
				if err != nil {
					return nil, fmt.Errorf("inspect %s: %w", dir, err)
				}
				return r, nil
			}
			if err != nil {
				return nil, err
			}
		}
		f, err := vfs.OpenReadOnly(cfg.Path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // read-only: nothing to lose
		dev = f
	}
	in := &inspection{cfg: cfg, dev: readOnly{dev}}
	w, err := in.steadyWalk(ctx)
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", cfg.Path, err)
	}
	if cfg.Data {
		if w, err = in.checkData(ctx, w); err != nil {
			return nil, fmt.Errorf("inspect %s: %w", cfg.Path, err)
		}
	}
	if cfg.Chunk != nil {
		w.list(cfg)
	}
	if other != "" {
		w.note("%s", other)
	}
	w.report.Walks = in.walks
	return w.report, nil
}

// inspection is one call of Inspect.
type inspection struct {
	cfg   InspectConfig
	dev   vfs.Dev
	walks int
}

// steadyWalk walks until nothing is found, or no checkpoint came in between.
func (in *inspection) steadyWalk(ctx context.Context) (*walk, error) {
	var was *walk
	for range maxWalks {
		in.walks++
		w, err := in.walk(ctx, was)
		if err == nil && w.report.Sound() {
			return w, nil
		}
		now := in.readSuperblocks()
		if now.same(w.images) {
			return w, err
		}
		if err != nil && ctx.Err() != nil {
			return nil, err
		}
		was = w
	}
	return nil, fmt.Errorf("%w: %d times a checkpoint came in between: repeat it when less is written, or with the node stopped", vfs.ErrUnsteady, maxWalks)
}

// superblockImages are the four superblocks as they lie on the medium.
type superblockImages struct {
	b   [2][2][]byte
	err [2][2]error
}

func (in *inspection) readSuperblocks() *superblockImages {
	s := &superblockImages{}
	for i, copies := range superblockOffsets {
		for j, off := range copies {
			s.b[i][j] = make([]byte, pageBytes)
			s.err[i][j] = in.dev.ReadAt(s.b[i][j], off)
		}
	}
	return s
}

// same says whether nothing has been written to any of them.
func (s *superblockImages) same(o *superblockImages) bool {
	for i := range s.b {
		for j := range s.b[i] {
			if (s.err[i][j] == nil) != (o.err[i][j] == nil) || string(s.b[i][j]) != string(o.b[i][j]) {
				return false
			}
		}
	}
	return true
}

// newest returns the newest superblock, as readSuperblock does.
func (s *superblockImages) newest() (best superblock, found bool, newer error) {
	for i := range s.b {
		for j := range s.b[i] {
			got, err := decodeSuperblock(s.b[i][j])
			switch {
			case s.err[i][j] != nil:
			case errors.Is(err, ErrVersion):
				newer = err
			case err == nil && got.generation > best.generation:
				best, found = got, true
			}
		}
	}
	return best, found, newer
}
