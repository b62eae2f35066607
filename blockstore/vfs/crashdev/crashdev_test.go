package crashdev

import (
	"bytes"
	"errors"
	"testing"
)

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSyncedSurvivesAndUnsyncedIsLostTornOrReordered(t *testing.T) {
	const n = 4096
	d := New(3*n, NewPower(-1))
	must(t, d.WriteAt(fill('s', n), 0))
	must(t, d.Sync())
	must(t, d.WriteAt(fill('1', n), n))
	must(t, d.WriteAt(fill('2', n), n))
	seen := map[string]bool{}
	got := make([]byte, 2*n)
	for seed := range uint64(200) {
		c := d.CloneForCrash(seed, NewPower(-1))
		must(t, c.ReadAt(got, 0))
		if !bytes.Equal(got[:n], fill('s', n)) {
			t.Fatalf("seed %d: what was synced has changed", seed)
		}
		kinds := ""
		for at := n; at < 2*n; at += 512 {
			sector := got[at : at+512]
			if !bytes.Equal(sector, fill(sector[0], 512)) {
				t.Fatalf("seed %d: torn within a sector", seed)
			}
			if !bytes.Contains([]byte(kinds), sector[:1]) {
				kinds += string(sector[:1])
			}
		}
		if len(kinds) > 1 {
			kinds = "mixed"
		}
		seen[kinds] = true
		again := make([]byte, 2*n)
		must(t, d.CloneForCrash(seed, NewPower(-1)).ReadAt(again, 0))
		if !bytes.Equal(again, got) {
			t.Fatalf("seed %d does different damage the second time", seed)
		}
	}
	for _, kinds := range []string{"\x00", "1", "2", "mixed"} {
		if !seen[kinds] {
			t.Errorf("no seed left %q; seen %v", kinds, seen)
		}
	}
	must(t, d.ReadAt(got, 0))
	if !bytes.Equal(got[n:], fill('2', n)) {
		t.Error("the original has changed")
	}
}

func TestFailedSyncLosesDataThatALaterSyncDoesNotSave(t *testing.T) {
	d := New(4096, NewPower(-1))
	must(t, d.WriteAt(fill('x', 512), 0))
	broken := errors.New("broken")
	d.SetHook(func(k Kind, _, _ int64) error {
		if k == Sync {
			return broken
		}
		return nil
	})
	if err := d.Sync(); !errors.Is(err, broken) {
		t.Fatalf("got error %v", err)
	}
	d.SetHook(nil)
	must(t, d.Sync())
	got := make([]byte, 512)
	must(t, d.ReadAt(got, 0))
	if got[0] != 'x' {
		t.Error("the cache has forgotten the write")
	}
	must(t, d.CloneForCrash(1, NewPower(-1)).ReadAt(got, 0))
	if got[0] != 0 {
		t.Error("the write survived")
	}
}

func TestPowerFailsOnceForAllDevices(t *testing.T) {
	power := NewPower(2)
	a, b := New(4096, power), New(4096, power)
	must(t, a.WriteAt(fill('x', 512), 0))
	must(t, b.Sync())
	if err := b.WriteAt(fill('y', 512), 0); !errors.Is(err, ErrPowerLost) {
		t.Fatalf("got error %v", err)
	}
	for what, err := range map[string]error{
		"read": a.ReadAt(make([]byte, 1), 0), "write": a.WriteAt(make([]byte, 1), 0), "sync": a.Sync(), "discard": a.Discard(0, 1), "allocate": a.Allocate(0, 1),
	} {
		if !errors.Is(err, ErrPowerLost) {
			t.Errorf("%s without power: %v", what, err)
		}
	}
	if power.Spent() != 2 {
		t.Errorf("spent %d", power.Spent())
	}
	survived := 0
	got := make([]byte, 1)
	for seed := range uint64(50) { // the write during which it failed may have made it
		must(t, b.CloneForCrash(seed, NewPower(-1)).ReadAt(got, 0))
		if got[0] == 'y' {
			survived++
		}
	}
	if survived == 0 || survived == 50 {
		t.Errorf("the write in flight survived %d of 50 crashes", survived)
	}
}

func TestFlipBitIsLasting(t *testing.T) {
	d := New(4096, NewPower(-1))
	d.FlipBit(7, 3)
	got := make([]byte, 8)
	must(t, d.CloneForCrash(0, NewPower(-1)).ReadAt(got, 0))
	if !bytes.Equal(got, []byte{0, 0, 0, 0, 0, 0, 0, 8}) {
		t.Errorf("got %v", got)
	}
}

// TestCopiesGoTheirOwnWays changes a device and copies of it, whole pages and parts, each in its own way.
func TestCopiesGoTheirOwnWays(t *testing.T) {
	fill := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	d := New(1<<20, NewPower(-1))
	for _, off := range []int64{0, 3 * pageSize} {
		if err := errors.Join(d.WriteAt(fill(1, 2*pageSize), off), d.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.WriteAt(fill(1, 10), 200); err != nil { // of a page
		t.Fatal(err)
	}
	all := map[byte]*Dev{10: d, 20: d.Clone(NewPower(-1)), 30: d.CloneForCrash(1, NewPower(-1))}
	for round := range byte(3) {
		for id, dev := range all {
			own := id + round
			if err := errors.Join(dev.WriteAt(fill(own, 100), 50), dev.WriteAt(fill(own, pageSize), pageSize), dev.WriteAt(fill(own, pageSize), 3*pageSize+100)); err != nil {
				t.Fatal(err)
			}
			dev.FlipBit(int64(id), 0) // in the part of page 0 that is the same in all
			if round == 1 {
				if err := dev.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for id, dev := range all {
		own := id + 2
		got := make([]byte, 5*pageSize)
		if err := dev.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		want := fill(1, 5*pageSize)
		clear(want[2*pageSize : 3*pageSize])
		want[id] ^= 1 // three times
		copy(want[50:150], fill(own, 100))
		copy(want[pageSize:], fill(own, pageSize))
		copy(want[3*pageSize+100:], fill(own, pageSize))
		if !bytes.Equal(got, want) {
			t.Errorf("device %d is not what was made of it", id)
		}
	}
}
