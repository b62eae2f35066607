package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

func TestContestsTakeTurnsAndAreComparedRunByRun(t *testing.T) {
	t.Parallel()
	var log []string
	did := func(what string) func(context.Context) error {
		return func(context.Context) error { log = append(log, what); return nil }
	}
	entry := func(title string, iops ...float64) entrant {
		n := 0
		return entrant{title, func(context.Context) (output, error) {
			log = append(log, title)
			side := rw{TotalIOs: 1, IOPS: iops[n]}
			side.Latency.Percentile = map[string]float64{"50.000000": 1e3, "99.000000": 2e3}
			n++
			return output{Jobs: []outputJob{{Read: side}}}, nil
		}}
	}
	c := contest{
		name: "a load", wanted: "≥ 0.85", prepare: did("prepare"), before: did("before"),
		entrants: []entrant{entry("raw", 100, 200), entry("store", 90, 160), entry("direct", 10, 40)},
	}
	var rows strings.Builder
	if err := c.hold(t.Context(), options{runs: 2}, "file", &rows); err != nil {
		t.Fatal(err)
	}
	if want := []string{"prepare", "before", "raw", "before", "store", "before", "direct", "before", "store", "before", "direct", "before", "raw"}; !slices.Equal(log, want) {
		t.Errorf("what happened: %q, want %q", log, want)
	}
	// What lies between is processor time.
	for i, want := range [][2]string{
		{"| a load | file | raw | 150 | 0.0 | 1.0 | 2.0 | ", " | 1 |  |"},
		{"| a load | file | store | 125 | 0.0 | 1.0 | 2.0 | ", " | 0.85 (0.80–0.90) | ≥ 0.85 |"},
		{"| a load | file | direct | 25 | 0.0 | 1.0 | 2.0 | ", " | 0.15 (0.10–0.20) |  |"},
	} {
		row := strings.Split(rows.String(), "\n")[i]
		if !strings.HasPrefix(row, want[0]) || !strings.HasSuffix(row, want[1]) {
			t.Errorf("row %q, want %q and %q", row, want[0], want[1])
		}
	}
}

// TestEngineDoesWhatIsMeasured looks at the volume after each of the loads.
func TestEngineDoesWhatIsMeasured(t *testing.T) {
	t.Parallel()
	const bytesOf = 16 * mib
	ctx := t.Context()
	m, err := newMedium(options{cache: t.TempDir(), storeBytes: bytesOf}, fileMedium)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEngine(ctx, m.config, bytesOf)
	if err != nil {
		t.Fatal(err)
	}
	allocated := func(what string, want int64) {
		t.Helper()
		if got := e.volume.Usage().AllocatedBytes; got != want || e.volume.Durable() != e.volume.Applied() {
			t.Errorf("%s: %d bytes are allocated, want %d; durable %d of %d", what, got, want, e.volume.Durable(), e.volume.Applied())
		}
	}
	allocated("filled", bytesOf)
	if first, err := e.begins(); err != nil || first == 0 {
		t.Errorf("the volume begins at %d, %v", first, err)
	}
	if err := e.reopen(m.forget); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, mib)
	if err := e.volume.ReadAt(block.BytesRange(3*mib, mib), got); err != nil || !bytes.Equal(got, e.data) {
		t.Errorf("after reopening: %v, or other data", err)
	}
	out, err := e.overwrite(ctx)
	if err != nil || out.Jobs[0].Write.TotalIOs != overwriteRounds*bytesOf/block.ChunkSize/2 {
		t.Errorf("overwriting: %+v, %v", out, err)
	}
	allocated("overwritten", bytesOf)
	if _, err = e.overwriteAfterSnapshot(ctx); err != nil {
		t.Fatal(err)
	}
	allocated("after a snapshot that is gone", bytesOf)
	if err := e.pile(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(e.volume.Snapshots()); n != snapshots || e.volume.Usage().AllocatedBytes == bytesOf {
		t.Errorf("%d snapshots, usage %+v", n, e.volume.Usage())
	}
	if _, err := e.begins(); err == nil {
		t.Error("scattered over its medium, and said to lie there in order")
	}
	view, err := e.volume.View(e.view)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []blockstore.Reader{e.volume, view} {
		if out, err := e.read(ctx, r, 1); err != nil {
			t.Errorf("%+v, %v", out, err)
		}
	}
	if err := errors.Join(e.close(), m.close()); err != nil {
		t.Error(err)
	}
}
