package blockstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/poolv1"
	"sanctuary/blockstore/vfs"
)

// A pool of format version 1 is read through poolv1. Opening its metadata file takes a lock that others may share, but for one who wants to write: only
// programs that know nothing but version 1 run on such a pool.

// errVersion1 says that a directory holds a pool of version 1.
var errVersion1 = errors.New("a pool of format version 1")

// poolDir says whether a path is that of a directory, or of a file whose metadata may lie beside it, and returns the directory.
func poolDir(path string) (dir string, ok bool) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return path, true
	}
	_, err := os.Stat(filepath.Join(filepath.Dir(path), poolv1.MetadataFile))
	return filepath.Dir(path), err == nil && filepath.Base(path) == dataFile
}

// mediumIn returns the medium of a pool of files, or errVersion1. other says what else is there.
func mediumIn(dir string) (path, other string, err error) {
	path = filepath.Join(dir, dataFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return "", "", fmt.Errorf("%w in %s: it has no file %q", ErrNoPool, dir, dataFile)
	}
	if _, err := os.Stat(filepath.Join(dir, poolv1.MetadataFile)); err != nil {
		return path, "", nil
	}
	f, err := vfs.OpenReadOnly(path)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = f.Close() }() // read-only: nothing to lose
	header := make([]byte, block.SectorSize)
	if err := f.ReadAt(header, 0); err != nil {
		return "", "", err
	}
	if string(header[:8]) == mediumMagic && le32(header[8:]) == FormatVersion {
		return path, "the upgrade from version 1 was cut off before its last step, which is harmless: the old metadata file is deleted at the next start", nil
	}
	return path, "", errVersion1
}

// inspectV1 looks at a pool of version 1.
func inspectV1(ctx context.Context, dir string, cfg InspectConfig) (*Inspected, error) {
	meta := filepath.Join(dir, poolv1.MetadataFile)
	w := &walk{in: &inspection{cfg: cfg}, report: &Inspected{FormatVersion: 1, Volumes: []InspectedVolume{}, Findings: []block.Finding{}, Walks: 1}}
	bad := func(volume string, err error) {
		w.find(block.Finding{
			Kind: "record", Path: meta, Offset: -1, Volume: volume, What: err.Error(), Data: "The pool cannot be upgraded, so all its volumes are lost on this node. The other copies are not touched by that.", Next: nextRebuild,
		})
	}
	old, err := poolv1.Open(dir)
	if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
		bad("", err)
		return w.report, nil
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = old.Close() }() // read-only: nothing to lose
	w.report.UUID, w.report.CapacityBytes = hex.EncodeToString(old.UUID[:]), old.CapacityBytes
	count, err := slotsFor(old.CapacityBytes)
	if err != nil {
		bad("", err)
		return w.report, nil
	}
	dev, err := vfs.OpenReadOnly(filepath.Join(dir, dataFile))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dev.Close() }()
	w.report.MediumBytes = dev.Size()
	header := make([]byte, block.SectorSize)
	if err := dev.ReadAt(header, 0); err != nil || !old.Owns(header) && len(old.Volumes) > 0 {
		w.find(block.Finding{
			Kind: "header", Path: cfg.Path, Offset: 0, What: "the data file is not the one that belongs to the metadata beside it, or its header is damaged", Data: "The pool is refused. If the two files do not belong together, nothing can be read from it.",
			Next: "Bring the two together that were created together; else let the replicas be rebuilt from other copies.",
		})
	}
	slots := newSlots(count)
	c := v1Check{w: w, dev: dev, slots: slots, pace: pace{perSecond: cfg.BytesPerSecond, start: time.Now()}}
	for _, o := range old.Volumes {
		v := InspectedVolume{Name: o.ID, Number: o.Number, SizeBytes: o.Geometry.Capacity.Bytes(), LogicalBlockBytes: o.Geometry.LogicalBlockBytes, Applied: o.Applied, Rebuilding: o.Inconsistent, Snapshots: []InspectedSnapshot{}}
		err := old.Chunks(o, func(chunk *poolv1.Chunk) error { return c.chunk(ctx, &v, chunk) })
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			bad(o.ID, err)
		}
		w.report.Volumes = append(w.report.Volumes, v)
	}
	w.report.Slots, w.report.UsedSlots = int64(count), int64(count-slots.free)
	return w.report, nil
}

// v1Check looks at the chunks of a pool of version 1.
type v1Check struct {
	w     *walk
	dev   vfs.Dev
	slots *slots
	pace  pace
}

func (c *v1Check) chunk(ctx context.Context, v *InspectedVolume, chunk *poolv1.Chunk) error {
	cfg, off := c.w.in.cfg, int64(chunk.Slot)*block.ChunkSize
	if cfg.Chunk != nil && (cfg.Volume == "" || cfg.Volume == v.Name) {
		told := InspectedChunk{Volume: v.Name, Chunk: chunk.Number, Index: chunk.Index, PageOffset: -1}
		if chunk.Slot != noSlot {
			told.Layers = []InspectedLayer{{Blocks: chunk.Valid, Slot: chunk.Slot, Offset: off}}
		}
		cfg.Chunk(told)
	}
	if chunk.Slot == noSlot {
		return ctx.Err()
	}
	v.AllocatedBytes += block.ChunkSize
	if int64(chunk.Number)*block.ChunkSize >= v.SizeBytes || !c.slots.mark(chunk.Slot) {
		c.w.find(block.Finding{
			Kind: "slot", Offset: off, Volume: v.Name, What: fmt.Sprintf("chunk %d is beyond the end of the volume, or its slot %d is used twice", chunk.Number, chunk.Slot),
			Data: "One of the two users has overwritten the other's data.", Next: nextReport,
		})
	}
	b := make([]byte, block.Size)
	for n := range block.BlocksPerChunk {
		if chunk.Valid>>n&1 == 0 {
			continue
		}
		v.StoredBytes += block.Size
		if !cfg.Data {
			continue
		}
		if err := c.pace.wait(ctx, block.Size); err != nil {
			return err
		}
		at := off + int64(n)*block.Size
		err := c.dev.ReadAt(b, at)
		c.w.report.CheckedBytes += block.Size
		if err == nil && block.Sum(b) == chunk.Sums[n] {
			continue
		}
		r := blockRange(chunk.Number, n, 1)
		f := block.Finding{
			Kind: "block", Offset: at, Volume: v.Name, What: "a block does not match its checksum",
			Data: fmt.Sprintf("Bytes %d to %d of the volume are damaged on this node. (Or they were written after log entry %d, and the node was killed: then the log writes them again.)", r.Offset(), r.Offset()+block.Size-1, v.Applied),
			Next: nextRepair,
		}
		if err != nil {
			f.Kind, f.What = "unreadable", fmt.Sprintf("the disk cannot read it: %v", err)
		}
		c.w.find(f)
	}
	return ctx.Err()
}
