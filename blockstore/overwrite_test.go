package blockstore_test

import (
	"bytes"
	"math"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// The place of a snapshot's wrong block goes to a state that came of it. If that were the live one, which is written in place, a crash
// would leave the other one, which is right, with what was written to the live one.
func TestOverwriteLeavesTheOldPlaceToWhatIsNotWritten(t *testing.T) {
	machine := newSimulated(20*chunk, -1)
	w, err := runScript(machine, script{chunks: 20, steps: []action{write(0, 0, 4), snapshot(0), snapshot(0), rollback(0, 0), checkpoint(0)}})
	must(t, err)
	x := w.Members[0]
	wrong, right := x.Model.Snapshots()[0].ID, x.Model.Snapshots()[1].ID
	was := x.Model.Block(0)
	good := bytes.Repeat([]byte{7}, block.Size)
	done, err := x.Volume.Overwrite(wrong, 0, 1, good, math.MaxUint64)
	if done != 1 || err != nil {
		t.Fatalf("done %#x: %v", done, err)
	}
	if got := blocksOf(t, reader(t, x.Volume, right), 0, 1); !bytes.Equal(got, was) {
		t.Errorf("the other snapshot's block has become %x", got[:8])
	}
	must(t, write(0, 0, 1)(w))
	for seed := range uint64(20) { // some crashes leave what was written without a sync
		crashed := *machine
		crashed.dev = machine.dev.Clone(machine.power)
		crashed.Crash(seed)
		pool, err := crashed.Open()
		must(t, err)
		v, err := pool.Open(x.Name)
		must(t, err)
		must(t, x.Model.Replay(v, nil))
		if got := blocksOf(t, reader(t, v, right), 0, 1); !bytes.Equal(got, was) {
			t.Errorf("crash %d: the other snapshot's block has become %x", seed, got[:8])
		}
		if got := blocksOf(t, reader(t, v, wrong), 0, 1); !bytes.Equal(got, good) {
			t.Errorf("crash %d: what was put right has become %x", seed, got[:8])
		}
	}
}

// A block that does not match its checksum cannot be copied for others: it is refused, and the blocks beside it are not.
func TestOverwriteGoesOnBehindABlockThatIsBad(t *testing.T) {
	machine := newSimulated(20*chunk, -1)
	w, err := runScript(machine, script{chunks: 20, steps: []action{write(0, 0, 4), snapshot(0), snapshot(0), rollback(0, 0), checkpoint(0)}})
	must(t, err)
	x := w.Members[0]
	id := x.Model.Snapshots()[0].ID
	machine.dev.FlipBit(offsetOf(t, machine, x.Model.Block(1)), 3)
	good := bytes.Repeat([]byte{7}, 3*block.Size)
	done, err := x.Volume.Overwrite(id, 0, 0b111, good, math.MaxUint64)
	if done != 0b101 || err == nil {
		t.Fatalf("done %#x: %v", done, err)
	}
	got := blocksOf(t, reader(t, x.Volume, id), 0, 0b101)
	if !bytes.Equal(got, good[:2*block.Size]) {
		t.Errorf("the blocks beside it read as %x and %x", got[:8], got[block.Size:][:8])
	}
	var info blockstore.ChunkInfo
	if bad, err := reader(t, x.Volume, id).CheckChunk(0, &info); bad != 0b010 || err != nil {
		t.Errorf("bad blocks %#x: %v", bad, err)
	}
}

func offsetOf(t *testing.T, m *simulated, data []byte) int64 {
	t.Helper()
	buf := make([]byte, block.Size)
	for off := int64(0); off+block.Size <= m.dev.Size(); off += block.Size {
		must(t, m.dev.ReadAt(buf, off))
		if bytes.Equal(buf, data) {
			return off
		}
	}
	t.Fatal("the block is nowhere on the medium")
	return 0
}
