package command

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"sanctuary/blockstore/block"
)

func sample() []block.Op {
	data := bytes.Repeat([]byte{0xA5}, 2*block.Size)
	pattern := bytes.Repeat([]byte{7}, block.Size)
	return []block.Op{
		{Kind: block.OpWrite, Range: block.BytesRange(8192, 8192), Data: data, Sums: block.AppendSums(nil, data)},
		{Kind: block.OpZero, Range: block.BytesRange(0, 4096)},
		{Kind: block.OpFill, Range: block.BytesRange(65536, 65536), Data: pattern, Sums: block.AppendSums(nil, pattern)},
		{Kind: block.OpState, Data: []byte("keys"), StateVersion: 7},
		block.SnapshotOp(block.SnapshotSpec{ID: block.SnapshotID{1, 2, 3}, Name: "before the upgrade", Created: 1764228000123}),
		block.DeleteSnapshotOp(block.SnapshotID{4}),
		block.RollbackOp(block.SnapshotID{5}),
	}
}

func TestEntrySurvivesEncoding(t *testing.T) {
	buf, err := Encode(3, 99, sample())
	if err != nil {
		t.Fatal(err)
	}
	if len(buf) != Size(sample()) {
		t.Fatalf("encoded %d bytes, Size says %d", len(buf), Size(sample()))
	}
	e, err := Decode(buf)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(1<<20, false); err != nil {
		t.Fatal(err)
	}
	if e.Fence != 3 || e.Proposal != 99 || len(e.Ops) != len(sample()) {
		t.Fatalf("got %+v", e)
	}
	for i, want := range sample() {
		got := e.Ops[i]
		if got.Kind != want.Kind || got.Range != want.Range || !bytes.Equal(got.Data, want.Data) || got.StateVersion != want.StateVersion {
			t.Errorf("operation %d: got %+v", i, got)
		}
		if len(want.Sums) > 0 && !reflect.DeepEqual(got.Sums, want.Sums) {
			t.Errorf("operation %d: sums %x, want %x", i, got.Sums, want.Sums)
		}
	}
}

// A witness's log holds entries without data: none of them may ever be taken for an empty change.
func TestEveryDamageIsFound(t *testing.T) {
	buf, err := Encode(3, 99, sample())
	if err != nil {
		t.Fatal(err)
	}
	check := func(b []byte) error {
		e, err := Decode(b)
		if err != nil {
			return err
		}
		return e.Verify(1<<20, false)
	}
	for _, n := range []int{0, 1, 39, 40, len(buf) / 2, len(buf) - 1} {
		if err := check(buf[:n]); !errors.Is(err, ErrFormat) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for bit := 0; bit < len(buf)*8; bit += 13 {
		bad := bytes.Clone(buf)
		bad[bit/8] ^= 1 << (bit % 8)
		if check(bad) == nil {
			t.Fatalf("flipped bit %d went unnoticed", bit)
		}
	}
}

func TestEncodeRefusesWhatDecodeWouldNotRead(t *testing.T) {
	big := make([]byte, 2<<20)
	if _, err := Encode(1, 1, []block.Op{{Kind: block.OpWrite, Range: block.BytesRange(0, 2<<20), Data: big, Sums: block.AppendSums(nil, big)}}); err == nil {
		t.Error("an entry of 2 MiB was encoded")
	}
	if _, err := Encode(1, 1, []block.Op{{Kind: block.OpWrite, Range: block.BytesRange(0, 4096), Data: big[:4096]}}); err == nil {
		t.Error("a write without checksums was encoded")
	}
}

// What is in an entry about snapshots must be all there and nothing else, or it would mean another snapshot.
func TestMalformedOperationsOnSnapshotsAreFound(t *testing.T) {
	whole := sample()[4:]
	for name, op := range map[string]block.Op{
		"without an ID":   block.SnapshotOp(block.SnapshotSpec{Name: "x"}),
		"without a name":  block.SnapshotOp(block.SnapshotSpec{ID: block.SnapshotID{1}}),
		"no snapshot":     {Kind: block.OpSnapshot, Data: whole[0].Data[:20]},
		"half an ID":      {Kind: block.OpRollback, Data: whole[2].Data[:8]},
		"more than an ID": {Kind: block.OpDeleteSnapshot, Data: append(bytes.Clone(whole[1].Data), 0)},
		"with a range":    {Kind: block.OpRollback, Data: whole[2].Data, Range: block.BytesRange(0, 4096)},
	} {
		buf, err := Encode(3, 99, []block.Op{op})
		if err != nil {
			t.Fatal(err)
		}
		e, err := Decode(buf)
		if err != nil {
			t.Fatal(err)
		}
		if e.Verify(1<<20, false) == nil {
			t.Errorf("an operation %s was accepted", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	buf, _ := Encode(3, 99, sample())
	f.Add(buf)
	f.Add(buf[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := Decode(b); err == nil {
			_ = e.Verify(1<<20, false)
		}
	})
}
