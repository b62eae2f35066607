package blockstore_test

import (
	"bytes"
	"errors"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs/crashdev"
)

// reader is a state of a volume.
func reader(t *testing.T, v *blockstore.Volume, id block.SnapshotID) blockstore.Reader {
	t.Helper()
	if id == (block.SnapshotID{}) {
		return v
	}
	w, err := v.View(id)
	must(t, err)
	return w
}

// blocksOf reads blocks of a chunk; beyond the end they are zeros.
func blocksOf(t *testing.T, r blockstore.Reader, chunk uint32, blocks uint64) []byte {
	t.Helper()
	var out []byte
	for ; blocks != 0; blocks &= blocks - 1 {
		at := block.BytesRange(int64(chunk)*block.ChunkSize+int64(bits.TrailingZeros64(blocks))*block.Size, block.Size)
		buf := make([]byte, block.Size)
		if at.Check(r.Geometry().Capacity) == nil {
			must(t, r.ReadAt(at, buf))
		}
		out = append(out, buf...)
	}
	return out
}

// A damaged page of the map loses blocks of the live state and of snapshots. Each comes back by itself, in any order but that the live one
// is first, and no state ever reads what another one holds: not before, not meanwhile, not after a power cut.
func TestWhatADamagedMapPageHasLostComesBackBlockByBlock(t *testing.T) {
	r := newRottenOf(t, script{chunks: 60, steps: []action{
		write(0, 0, 130), snapshot(0), write(0, 30, 70), snapshot(0), write(0, 40, 3), zero(0, 60, 5), snapshot(0), rollback(0, 1), write(0, 64, 20),
		snapshot(0), write(0, 90, 20), checkpoint(0), clone(0, 2), write(1, 3, 3), snapshot(1), write(1, 0, 2), snapshot(1), zero(1, 1, 3), checkpoint(1),
		unsnap(0, 2), reclaim(0), reopenPool(),
	}})
	good := *r.machine
	good.dev = good.dev.Clone(crashdev.NewPower(-1))
	whole := r.openAll(t, &good)
	restored := 0
	for i, off := range r.other {
		if storetest.RaceEnabled && i%2 == 1 {
			continue
		}
		machine := *r.machine
		machine.dev = machine.dev.Clone(crashdev.NewPower(-1))
		machine.dev.FlipBit(off+100, 1)
		pool, err := machine.Open()
		must(t, err)
		before, rnd := restored, rand.New(rand.NewPCG(uint64(i), 7))
		for n, x := range r.world.Members {
			v, err := pool.Open(x.Name)
			must(t, err)
			lost := v.LostChunks(1 << 20)
			live := slices.ContainsFunc(lost, func(l blockstore.LostChunk) bool { return l.Snapshot == block.SnapshotID{} })
			if live != (len(v.Lost()) > 0) {
				t.Errorf("page at %d: %d lost chunks, and %v is lost", off, len(lost), v.Lost())
			}
			used := pool.Usage().AllocatedBytes
			for len(lost) > 0 {
				at := rnd.IntN(len(lost))
				l := &lost[at]
				bit := uint64(1) << bits.TrailingZeros64(l.Blocks)
				data := blocksOf(t, reader(t, whole[n], l.Snapshot), l.Chunk, bit)
				_, err := v.Repair(l.Snapshot, l.Chunk, bit, data, block.NoIndex)
				if errors.Is(err, blockstore.ErrLiveFirst) {
					at = slices.IndexFunc(lost, func(o blockstore.LostChunk) bool {
						return o.Snapshot == block.SnapshotID{} && o.Chunk == l.Chunk && o.Blocks&bit != 0
					})
					if at < 0 {
						t.Fatalf("page at %d: %v, but the live block is there", off, err)
					}
					l = &lost[at]
					data = blocksOf(t, reader(t, whole[n], l.Snapshot), l.Chunk, bit)
					_, err = v.Repair(l.Snapshot, l.Chunk, bit, data, block.NoIndex)
				}
				switch {
				case errors.Is(err, block.ErrOutOfRange): // the last chunk goes beyond the end
				case err != nil:
					t.Fatalf("page at %d: repair of %v: %v", off, *l, err)
				case !bytes.Equal(blocksOf(t, reader(t, v, l.Snapshot), l.Chunk, bit), data):
					t.Fatalf("page at %d: %v does not read as repaired", off, *l)
				default:
					restored++
				}
				if restored%97 == 0 {
					if err := x.Model.CompareRightOrCorrupt(v); err != nil {
						t.Fatalf("page at %d, meanwhile: %v", off, err)
					}
				}
				if restored%400 == 0 { // the damage is part of the map by now
					_, err := v.Checkpoint(ctx)
					must(t, err)
				}
				if l.Blocks &^= bit; l.Blocks == 0 {
					lost = slices.Delete(lost, at, at+1)
				}
			}
			if len(v.LostChunks(1)) > 0 {
				t.Fatalf("page at %d: %v is still lost", off, v.LostChunks(9))
			}
			if more := pool.Usage().AllocatedBytes - used; more > 12*chunk {
				t.Errorf("page at %d: what was lost took %d chunks", off, more/chunk)
			}
			_, err = v.Checkpoint(ctx)
			must(t, err)
		}
		if restored == before {
			continue // it was no page of the map
		}
		machine.Crash(uint64(i))
		for _, v := range r.openAll(t, &machine) {
			for more := true; more; {
				more, err = v.Reclaim(1000)
				must(t, err)
			}
		}
		must(t, r.compareAgain(&machine))
	}
	if restored == 0 {
		t.Error("nothing was lost")
	}
	t.Logf("%d blocks restored", restored)
}

// compareAgain opens the pool once more, as of its last checkpoint.
func (r *rotten) compareAgain(machine *simulated) error {
	pool, err := machine.Open()
	if err != nil {
		return err
	}
	for _, x := range r.world.Members {
		v, err := pool.Open(x.Name)
		if err == nil {
			err = errors.Join(x.Model.CompareBlocks(v), x.Model.CompareSnapshots(v))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
