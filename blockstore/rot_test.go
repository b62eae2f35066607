package blockstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/storetest"
	"sanctuary/blockstore/vfs/crashdev"
)

// rotten is a pool that was closed, with snapshots and a clone, on a medium that is about to rot.
type rotten struct {
	machine *simulated
	world   *storetest.World
	data    []int64 // offsets of 4 KiB that hold an initiator's data, now or at some time
	other   []int64 // of those that hold anything else but zeros
}

func newRotten(t *testing.T) *rotten {
	t.Helper()
	return newRottenOf(t, script{chunks: 30, steps: []action{
		write(0, 0, 130), write(1, 5, 60), snapshot(0), write(0, 30, 70), checkpoint(0), clone(0, 0), write(2, 3, 3), snapshot(2),
		zero(0, 128, 2), checkpoint(1), write(0, 64, 64), snapshot(0), write(0, 1, 1), unsnap(0, 0), reclaim(0), checkpoint(0), write(0, 2, 2),
		state(0), state(1), write(2, 70, 9), reopenPool(),
	}})
}

func newRottenOf(t *testing.T, s script) *rotten {
	t.Helper()
	r := &rotten{machine: newSimulated(s.chunks*chunk, -1)}
	var err error
	r.world, err = runScript(r.machine, s)
	must(t, err)
	must(t, r.world.CompareAll())
	must(t, r.world.Pool.Close())
	written := map[string]bool{}
	for _, x := range r.world.Members {
		for _, e := range x.Model.Journal {
			for _, op := range e.Ops {
				for at := 0; !op.Kind.Blob() && at < len(op.Data); at += block.Size {
					written[string(op.Data[at:at+block.Size])] = true
				}
			}
		}
	}
	dev, buf := r.machine.dev.Clone(r.machine.power), make([]byte, block.Size)
	for off := int64(0); off+block.Size <= dev.Size(); off += block.Size {
		must(t, dev.ReadAt(buf, off))
		switch {
		case written[string(buf)]:
			r.data = append(r.data, off)
		case !bytes.Equal(buf, make([]byte, block.Size)):
			r.other = append(r.other, off)
		}
	}
	return r
}

// flip opens the pool with one bit flipped and says what that has led to.
func (r *rotten) flip(off int64, bit uint) (outcome string, err error) {
	machine := *r.machine
	machine.dev = machine.dev.Clone(crashdev.NewPower(-1))
	machine.dev.FlipBit(off, bit)
	corrupt := (*block.CorruptError)(nil)
	pool, err := machine.Open()
	if err != nil {
		if !errors.As(err, &corrupt) {
			return "", fmt.Errorf("open of the pool: %w", err)
		}
		return "refused", nil
	}
	outcome = "right"
	for _, x := range r.world.Members {
		v, err := pool.Open(x.Name)
		if errors.As(err, &corrupt) {
			outcome = "volume refused"
			continue
		}
		if err != nil {
			return "", fmt.Errorf("open of %s: %w", x.Name, err)
		}
		if v.Durable() < x.Durable {
			return "", fmt.Errorf("%s is durable at %d, has said %d", x.Name, v.Durable(), x.Durable)
		}
		if err := x.Model.CompareRightOrCorrupt(v); err != nil {
			return "", fmt.Errorf("%s: %w", x.Name, err)
		}
		lost := v.Lost()
		if len(lost) > 0 {
			outcome = "lost"
		}
		for _, l := range lost {
			if !l.Aligned() || l.Check(v.Geometry().Capacity) != nil || l.Count == 0 {
				return "", fmt.Errorf("%s has lost %v", x.Name, l)
			}
			for s := l.Start; s < l.End(); s += block.SectorsPerBlock {
				if err := v.ReadAt(block.Range{Start: s, Count: 1}, make([]byte, 512)); !errors.As(err, &corrupt) {
					return "", fmt.Errorf("%s has lost %v; read of sector %d: %w", x.Name, l, s, err)
				}
			}
		}
		if outcome == "right" && x.Model.CompareBlocks(v) != nil {
			outcome = "corrupt"
		}
		if err := heal(x, v); err != nil {
			return outcome, fmt.Errorf("%s: %w", x.Name, err)
		}
		must := []error{v.Close()}
		if v, err = pool.Open(x.Name); err == nil && len(v.Lost()) > 0 {
			must = append(must, fmt.Errorf("%s has still lost %v", x.Name, v.Lost()))
		}
		if err := errors.Join(append(must, err)...); err != nil {
			return outcome, err
		}
		if err := x.Model.CompareBlocks(v); err != nil {
			return outcome, fmt.Errorf("%s, healed and opened again: %w", x.Name, err)
		}
	}
	if err := pool.Failed(); err != nil {
		return "", err
	}
	return outcome, pool.Close()
}

// heal writes whole blocks over those that are corrupt, one by one.
func heal(x *storetest.Member, v *blockstore.Volume) error {
	index, buf, corrupt := v.Applied(), make([]byte, block.Size), (*block.CorruptError)(nil)
	for n := range uint64(x.Model.Blocks()) {
		r := block.BytesRange(int64(n)*block.Size, block.Size)
		if err := v.ReadAt(r, buf); !errors.As(err, &corrupt) {
			continue
		}
		op := block.Op{Kind: block.OpZero, Range: r}
		if data := x.Model.Block(n); !bytes.Equal(data, make([]byte, block.Size)) {
			op = block.Op{Kind: block.OpWrite, Range: r, Data: data, Sums: block.AppendSums(nil, data)}
		}
		index++
		if err := v.Apply(index, []block.Op{op}); err != nil {
			return err
		}
		if err := v.ReadAt(r, buf); err != nil {
			return fmt.Errorf("block %d after it was written: %w", n, err)
		}
	}
	if lost := v.Lost(); len(lost) > 0 {
		return fmt.Errorf("lost %v though all of it was written", lost)
	}
	return x.Model.CompareBlocks(v)
}

// TestRotIsReportedNeverReturned flips one bit anywhere in a pool, most often in what describes the data.
func TestRotIsReportedNeverReturned(t *testing.T) {
	r := newRotten(t)
	rnd := rand.New(rand.NewPCG(1, 1))
	seen := map[string]int{}
	flip := func(off int64) {
		off += rnd.Int64N(block.Size)
		outcome, err := r.flip(off, uint(rnd.IntN(8)))
		if err != nil {
			t.Errorf("byte %d flipped (%s): %v", off, outcome, err)
		}
		seen[outcome]++
	}
	every := 8
	if storetest.RaceEnabled {
		every = 80
	}
	for i, off := range r.other {
		if i%(every/8) == 0 {
			flip(off)
		}
	}
	for i, off := range r.data {
		if i%every == 0 {
			flip(off)
		}
	}
	if seen["corrupt"] == 0 || seen["lost"] == 0 && !storetest.RaceEnabled || seen["refused"]+seen["volume refused"] > maxRefused {
		t.Errorf("outcomes seen: %v", seen)
	}
	t.Logf("outcomes of %d flipped bits in what describes the data and some in it: %v", len(r.other), seen)
}

// maxRefused bounds the flipped bits after which a pool or a volume cannot be opened: there are two of everything small.
const maxRefused = 0
