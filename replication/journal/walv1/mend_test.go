package journal

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"

	"sanctuary/blockstore/block"
)

// closing is a journal at the moment in which its first segment was closed by the write of entry index.
type closing struct {
	t             *testing.T
	dir           string
	path, table   string // of the segment, and of the table of segments
	before, after []byte // the segment
	tableBefore   []byte
	entries       []*raft.Log
	segmentBytes  int
}

func newClosing(t *testing.T) *closing {
	w := newWritten(t, 6, 64<<10)
	c := &closing{t: t, dir: w.dir, table: filepath.Join(w.dir, walFolder, metadb.FileName), segmentBytes: w.segmentBytes}
	w.check(w.j.SetUint64([]byte("CurrentTerm"), 1))
	c.path = filepath.Join(w.dir, walFolder, segmentName(types.SegmentInfo{BaseIndex: 1, ID: 0}))
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		w.check(err)
		return b
	}
	for index := uint64(1); ; index++ {
		c.before, c.tableBefore = read(c.path), read(c.table)
		e := w.entry(index, 1, 3)
		c.entries = append(c.entries, e)
		w.check(w.j.StoreLogs([]*raft.Log{e}))
		end, err := endOf(c.path, types.SegmentInfo{BaseIndex: 1})
		w.check(err)
		if end.last != index {
			t.Fatalf("entry %d was stored, the end is %+v", index, end)
		}
		if end.index != 0 {
			break
		}
	}
	w.close()
	c.after = read(c.path)
	return c
}

// crashed leaves the journal as if only this had reached the disk, and no more of the table than before the write.
func (c *closing) crashed(segment []byte) {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, walFolder, "*.wal"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, path := range files {
		if err := os.Remove(path); err != nil {
			c.t.Fatal(err)
		}
	}
	for path, b := range map[string][]byte{c.path: segment, c.table: c.tableBefore} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}

// goesOn opens the journal, which must hold the first last entries, stores more, and opens it again.
func (c *closing) goesOn(last uint64) {
	c.t.Helper()
	entries := c.entries[:last:last]
	for round := range 3 {
		j, err := Open(c.dir, Options{SegmentBytes: c.segmentBytes, CacheBytes: 1})
		if err != nil {
			c.t.Fatalf("round %d: %v", round, err)
		}
		if got, err := j.LastIndex(); err != nil || got != uint64(len(entries)) {
			c.t.Fatalf("round %d: the last entry is %d, %v; want %d", round, got, err, len(entries))
		}
		for i, e := range entries {
			var l raft.Log
			if err := j.GetLog(uint64(i)+1, &l); err != nil || !bytes.Equal(l.Data, e.Data) {
				c.t.Fatalf("round %d: entry %d: %v", round, i+1, err)
			}
		}
		for range 3 {
			e := &raft.Log{Index: uint64(len(entries)) + 1, Term: 1, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(round) + 1}, 9000)}
			if err := j.StoreLogs([]*raft.Log{e}); err != nil {
				c.t.Fatalf("round %d: %v", round, err)
			}
			entries = append(entries, e)
		}
		if err := j.Close(); err != nil {
			c.t.Fatal(err)
		}
	}
}

// Without what mend does, the log would refuse every write from here on.
func TestLogGoesOnAfterACrashThatClosedASegment(t *testing.T) {
	c := newClosing(t)
	c.crashed(c.after)
	c.goesOn(uint64(len(c.entries)))
	// Killed again, once the table had been told.
	c.crashed(c.after)
	table := &metadb.BoltMetaDB{}
	if err := mend(filepath.Join(c.dir, walFolder), table); err != nil {
		t.Fatal(err)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	c.goesOn(uint64(len(c.entries)))
}

// A power cut in the midst of the write that closes a segment: any of its sectors may have reached the disk, and others not.
func TestLogGoesOnAfterAPowerCutWhileASegmentIsClosed(t *testing.T) {
	c := newClosing(t)
	end, err := endOf(c.path, types.SegmentInfo{BaseIndex: 1})
	if err != nil {
		t.Fatal(err)
	}
	var sectors []int64 // in which the write changed something
	for off := int64(0); off < end.counts; off += block.SectorSize {
		to := min(off+block.SectorSize, int64(len(c.after)))
		if off >= int64(len(c.before)) || !bytes.Equal(c.before[off:to], c.after[off:min(to, int64(len(c.before)))]) {
			sectors = append(sectors, off)
		}
	}
	if len(sectors) < 10 {
		t.Fatalf("%d sectors were written", len(sectors))
	}
	cut := func(lost func(i int) bool) {
		t.Helper()
		image, whole := bytes.Clone(c.after), true
		for i, off := range sectors {
			if !lost(i) {
				continue
			}
			whole = false
			old := make([]byte, block.SectorSize)
			if off < int64(len(c.before)) {
				copy(old, c.before[off:])
			}
			copy(image[off:], old)
		}
		last := uint64(len(c.entries))
		if !whole {
			last--
		}
		c.crashed(image)
		c.goesOn(last)
	}
	for n := range sectors {
		cut(func(i int) bool { return i == n })
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		cut(func(int) bool { return rnd.IntN(3) == 0 })
	}
}
