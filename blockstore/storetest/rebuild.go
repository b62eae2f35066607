package storetest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

func changed(t *testing.T, v *blockstore.Volume, since uint64) []int {
	t.Helper()
	var got []int
	must(t, v.Changed(since, func(r block.Range) error {
		if r.Offset()%chunk != 0 || r.End() > block.Sector(geometry.Capacity) {
			t.Errorf("range %v is no chunk of the volume", r)
		}
		for off := r.Offset(); off < r.Offset()+r.Bytes(); off += chunk {
			got = append(got, int(off/chunk))
		}
		return nil
	}))
	return got
}

func testChanged(t *testing.T, m Medium) {
	p := open(t, m.New(t, 8*chunk))
	v, model := create(t, p, "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 1), model.Write(64, 1), model.Write(256, 3))  // 1: chunks 0, 1, 4
	step(t, v, model, model.Write(130, 1))                                         // 2: chunk 2
	step(t, v, model, model.Zero(64, 64))                                          // 3: frees chunk 1
	step(t, v, model, model.Zero(64, 64), model.Zero(0, 0), model.SetState(0, "")) // 4: no block
	want := map[uint64][]int{0: {0, 1, 2, 4}, 1: {1, 2}, 2: {1}, 3: nil, 4: nil}
	for range 2 {
		for since, chunks := range want {
			if got := changed(t, v, since); !slices.Equal(got, chunks) {
				t.Errorf("changed since %d: chunks %v, want %v", since, got, chunks)
			}
		}
		must(t, v.Close())
		var err error
		v, err = p.Open("v")
		must(t, err)
	}
	enough := errors.New("enough")
	wantError(t, "fn's error", v.Changed(0, func(block.Range) error { return enough }), enough)
}

func testChunkInfo(t *testing.T, m Medium) {
	v, model := create(t, open(t, m.New(t, 8*chunk)), "v"), NewModel(geometry)
	step(t, v, model, model.Write(65, 2), model.Fill(67, 1))
	step(t, v, model, model.Zero(66, 1))
	var info blockstore.ChunkInfo
	must(t, v.ChunkInfo(1, &info))
	if info.Valid != 1<<1|1<<3 || info.Index != 2 {
		t.Errorf("valid %#x, index %d", info.Valid, info.Index)
	}
	for n, sum := range info.Sums {
		want := uint32(0)
		if info.Valid>>n&1 == 1 {
			want = block.Sum(model.Block(uint64(64 + n)))
		}
		if sum != want {
			t.Errorf("checksum of block %d is %#x, want %#x", n, sum, want)
		}
	}
	must(t, v.ChunkInfo(3, &info))
	if info != (blockstore.ChunkInfo{}) {
		t.Errorf("chunk that was never written: %+v", info)
	}
}

func testImport(t *testing.T, m Medium) {
	ctx := t.Context()
	machine := m.New(t, 16*chunk)
	p := open(t, machine)
	v, model := create(t, p, "v"), NewModel(geometry)
	step(t, v, model, model.Write(0, 70), model.SetState(0, "old"))
	must(t, v.Changed(0, func(block.Range) error { return nil }))
	if err := v.Import([]block.Op{model.Write(0, 1)}); err == nil {
		t.Fatal("Import without BeginImport: no error")
	}
	if err := v.EndImport(ctx, 9, block.State{}); err == nil {
		t.Fatal("EndImport without BeginImport: no error")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	wantError(t, "BeginImport with a context that has ended", v.BeginImport(ended), context.Canceled)
	if v.Inconsistent() {
		t.Fatal("inconsistent without an import")
	}

	must(t, v.BeginImport(ctx))
	imported := []block.Op{model.Write(0, 2), model.Zero(64, 64), model.Fill(130, 3)}
	state := block.State{Version: 7, Blob: []byte("new")}
	half := func() {
		t.Helper()
		if !v.Inconsistent() || v.Applied() != 1 {
			t.Fatalf("inconsistent %v, applied %d", v.Inconsistent(), v.Applied())
		}
		wantError(t, "apply", v.Apply(2, nil), blockstore.ErrInconsistent)
		wantError(t, "read", v.ReadAt(blocks(0, 1), make([]byte, block.Size)), blockstore.ErrInconsistent)
		wantError(t, "changed", v.Changed(0, nil), blockstore.ErrInconsistent)
		_, _, err := v.Allocated(blocks(0, 1))
		wantError(t, "allocated", err, blockstore.ErrInconsistent)
		must(t, v.ChunkInfo(0, new(blockstore.ChunkInfo)))
	}
	half()
	must(t, v.Import(imported))
	if m.Lasts {
		for _, checkpoint := range []bool{false, true} {
			if checkpoint {
				_, err := v.Checkpoint(ctx)
				must(t, err)
			}
			machine.Crash(3)
			p = open(t, machine)
			var err error
			v, err = p.Open("v")
			must(t, err)
			half()
			must(t, v.BeginImport(ctx))
			must(t, v.Import(imported))
		}
	}
	if err := v.Import([]block.Op{model.SetState(0, "")}); err == nil {
		t.Fatal("import of a state: no error")
	}
	if err := v.EndImport(ctx, 0, state); err == nil {
		t.Fatal("import as of an entry before the applied one: no error")
	}
	must(t, v.EndImport(ctx, 20, state))
	model.Commit(20, imported)
	model.state = state
	check := func() {
		t.Helper()
		if v.Inconsistent() || v.Durable() != 20 {
			t.Fatalf("inconsistent %v, durable %d", v.Inconsistent(), v.Durable())
		}
		compare(t, v, model)
		// What the import did not write may have another index at its source: everything below 20 has to be compared.
		if got := changed(t, v, 19); len(got) != int(v.Chunks()) {
			t.Errorf("changed since 19: %v, want all", got)
		}
		if got := changed(t, v, 20); len(got) != 0 {
			t.Errorf("changed since 20: %v, want none", got)
		}
	}
	check()
	if m.Lasts {
		machine.Crash(5)
		p = open(t, machine)
	} else {
		must(t, v.Close())
	}
	var err error
	v, err = p.Open("v")
	must(t, err)
	check()
	step(t, v, model, model.Write(200, 1))
	if got := changed(t, v, 20); !slices.Equal(got, []int{3}) {
		t.Errorf("changed since 20: %v, want chunk 3", got)
	}
}
