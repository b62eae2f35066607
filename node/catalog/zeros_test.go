package catalog

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// A LUN has zero detection from the start or later. Only then do older programs not know the catalog any more, nor what is said of the others.
func TestZeroDetectionIsSetWithTheLUNOrLater(t *testing.T) {
	m := closed(t)
	before := m.Version
	plain := mirrored(9, "vm9")
	if b, err := EncodeChange(plain); err != nil || strings.Contains(string(b), "zero") {
		t.Fatalf("%s, %v", b, err)
	}
	m, _ = must(t, m, plain)
	if _, r := must(t, m, &SetZeroDetection{LUN: uid(9)}); r.Changed || m.Version != before || m.LUNs[uid(9)].ZeroDetection {
		t.Fatalf("off by default: %+v, version %d", r, m.Version)
	}
	with := mirrored(10, "vm10")
	with.ZeroDetection = true
	for name, c := range map[string]Change{"made with it": with, "set later": &SetZeroDetection{LUN: uid(9), On: true}} {
		next, r := must(t, m, c)
		if !r.Changed || !r.LUN.ZeroDetection || next.Version != versionZeros {
			t.Fatalf("%s: %+v, version %d", name, r, next.Version)
		}
		b, err := encodeSnapshot(next)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeSnapshot(bytes.NewReader(b), "lab")
		if err != nil || !back.LUNs[r.LUN.ID].ZeroDetection {
			t.Fatalf("%s: from a snapshot: %v", name, err)
		}
		if again, r := must(t, next, c); r.Changed || again != next {
			t.Fatalf("%s, twice: %+v", name, r)
		}
		off, r := must(t, next, &SetZeroDetection{LUN: r.LUN.ID})
		if !r.Changed || off.LUNs[r.LUN.ID].ZeroDetection {
			t.Fatalf("off: %+v", r)
		}
	}
	if _, _, err := Apply(m, m.Index+1, &SetZeroDetection{LUN: uid(99), On: true}); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}
