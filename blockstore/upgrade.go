package blockstore

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/poolv1"
	"sanctuary/blockstore/vfs"
)

// upgradeFromV1 turns a pool of format version 1 into one of the present version, in place: its data stays where it is, and
// checksums and metadata get a place behind it. Until the header of the data file is written, in one sector, the pool is of version 1 as
// it was; a crash before that means doing it again. Only then does the old metadata file go. A pool that is not of version 1
// is left alone.
func upgradeFromV1(dir string) (err error) {
	old, err := poolv1.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("upgrade of a pool of version 1: %w", err)
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	slots, err := slotsFor(old.CapacityBytes)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, dataFile)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("the metadata of a pool are there and its data are not: %w", err)
	}
	r := planRegion(int64(slots+1)*block.ChunkSize, slots)
	r.data = block.ChunkSize // slot numbers are those of version 1
	dev, err := vfs.OpenFile(vfs.FileConfig{Path: path, SizeBytes: r.end()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	sector := make([]byte, block.SectorSize)
	if err := dev.ReadAt(sector, 0); err != nil {
		return err
	}
	switch {
	case string(sector) == string(encodeMediumHeader(old.UUID)): // done, but for the last step
	case old.Owns(sector) || len(old.Volumes) == 0:
		if err := upgrade(dev, old, r); err != nil {
			return fmt.Errorf("upgrade of a pool of version 1: %w", err)
		}
	default:
		return errors.New("the data do not belong to the metadata beside them: bring the two together that were created together")
	}
	if err := os.Remove(filepath.Join(dir, poolv1.MetadataFile)); err != nil {
		return err
	}
	return vfs.SyncDir(dir)
}

func upgrade(dev vfs.Dev, old *poolv1.Pool, r region) error {
	blank := make([]byte, pageBytes)
	for _, copies := range superblockOffsets { // of an attempt that was cut off
		for _, off := range copies {
			if err := dev.WriteAt(blank, off); err != nil {
				return err
			}
		}
	}
	p := newPool(dev)
	p.useLayout(superblock{uuid: old.UUID, nextVolume: old.NextVolume, capacityBytes: int64(r.slots) * block.ChunkSize, regions: []region{r}})
	for _, o := range old.Volumes {
		v := newVolume(p, o.Number, o.ID, o.Geometry)
		v.applied.Store(o.Applied)
		v.floor.Store(o.Floor)
		v.inconsistent.Store(o.Inconsistent)
		v.state.Store(&o.State)
		v.dirty = true
		if err := old.Chunks(o, v.takeOver); err != nil {
			return fmt.Errorf("volume %s: %w", o.ID, err)
		}
		if err := v.commit(v.capture()); err != nil {
			return err
		}
	}
	if err := p.publish(p.pages.newWriter(p.nextGeneration()), func(*catalogueState) error { return nil }); err != nil {
		return err
	}
	if err := dev.WriteAt(encodeMediumHeader(old.UUID), 0); err != nil {
		return err
	}
	return dev.Sync()
}

// takeOver adds a chunk to the map of a volume that nobody else has.
func (v *Volume) takeOver(c *poolv1.Chunk) error {
	if c.Number >= v.m.chunks.Load() || c.Slot != 0 && !v.pool.slots.mark(c.Slot) {
		return damaged(fmt.Sprintf("map entry of chunk %d", c.Number))
	}
	l, at := v.leafOf(c.Number)
	if c.Slot != noSlot {
		l.slot[at], l.epoch[at], l.valid[at] = c.Slot, v.lineage.Load().epoch, c.Valid
		v.allocatedChunks.Add(1)
		v.stored.Add(int64(bits.OnesCount64(c.Valid)))
		if err := v.pool.sums.set(c.Slot, 0, block.BlocksPerChunk, c.Sums[:]); err != nil {
			return err
		}
	}
	v.touch(l, c.Number, c.Index, true)
	return nil
}
