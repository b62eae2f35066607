package journal

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// frames returns the frames of a segment.
func (w *written) frames(name string) (out []frame) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	w.check(err)
	sequence, _ := segmentSequence(name)
	for at := int64(blockBytes); ; {
		f, _, err := parseFrame(b[at:], at, sequence, w.j.id)
		if err != nil {
			return out
		}
		out, at = append(out, f), f.at+f.bytes
	}
}

// flip changes one bit.
func (w *written) flip(name string, off int64) { w.edit(name, func(b []byte) { b[off] ^= 1 }) }

// flipAll changes one bit of the payload of every record for which it is asked to.
func (w *written) flipAll(name string, which func(r record) bool) {
	w.t.Helper()
	frames := w.frames(name)
	w.edit(name, func(b []byte) {
		for _, f := range frames {
			for _, r := range f.records {
				r.data = b[r.offset : r.offset+r.dataBytes]
				r.exts = b[r.offset+r.dataBytes:][:r.extBytes]
				if which(r) {
					b[r.offset] ^= 1
				}
			}
		}
	})
}

// stored writes to a log of a journal that was closed.
func (w *written) stored(logs ...*raft.Log) {
	w.t.Helper()
	w.open()
	w.check(w.log("a").StoreLogs(logs))
	w.close()
}

func (w *written) set(key string, value uint64) {
	w.t.Helper()
	w.open()
	w.check(w.log("a").SetUint64([]byte(key), value))
	if key == keyVoteTerm {
		w.check(w.log("a").Set([]byte(keyVoteCandidate), []byte("x")))
	}
	w.close()
}

// TestInspectFindsDamageByItsPlace spoils one thing after the other in a journal of three segments, of which log a is in all.
func TestInspectFindsDamageByItsPlace(t *testing.T) {
	name := segmentName
	type found struct {
		kind  string
		where string // number of the segment, or name of the log; "": neither
		what  string
		data  string
	}
	named := func(r record) bool { return r.kind == kindGroup && string(r.data) == "a" }
	ninth := func(r record) bool {
		return r.kind == kindStable && bytes.Equal(r.data, []byte{0, 0, 0, 0, 0, 0, 0, 9})
	}
	first := func(which func(r record) bool) func(r record) bool {
		done := false
		return func(r record) bool {
			this := !done && which(r)
			done = done || this
			return this
		}
	}
	const forgotten = "The replica may have forgotten"
	suspect := []found{{"log", "a", "is not known", forgotten}, {"log", "b", "is not known", forgotten}}
	for _, c := range []struct {
		name  string
		spoil func(w *written, last uint64)
		want  []found
	}{
		{"segment missing", func(w *written, _ uint64) { w.check(os.Remove(filepath.Join(w.dir, name(2)))) }, []found{
			{"journal", "", "the segments between " + name(1) + " and " + name(3) + " are missing", "No replica on this node can go on"},
		}},
		{"segment cut off", func(w *written, _ uint64) { w.check(os.Truncate(filepath.Join(w.dir, name(2)), minSegmentBytes/2)) }, append([]found{
			{"journal", "2", "the last frames", dataUnknown}, {"journal", "2", "the footer", dataUnknown},
		}, suspect...)},
		{"segment emptied", func(w *written, _ uint64) { w.edit(name(2), func(b []byte) { clear(b) }) }, append([]found{
			{"journal", "2", "has neither a header nor", dataUnknown}, {"journal", "2", "the last frames", dataUnknown}, {"journal", "2", "the footer", dataUnknown},
		}, suspect...)},
		{"first frame of the last segment", func(w *written, _ uint64) { w.flip(name(3), blockBytes+8) }, []found{{"journal", "3", "a frame", dataKnown}}},
		{"two frames in a row", func(w *written, _ uint64) {
			f := w.frames(name(3))
			w.flip(name(3), f[4].at+8)
			w.flip(name(3), f[5].at+8)
		}, append([]found{{"journal", "3", "a frame", dataUnknown}}, suspect...)},
		{"name of a log, in one place", func(w *written, _ uint64) { w.flipAll(name(3), first(named)) }, []found{{"journal", "3", "the name", dataKnown}}},
		{"name of a log, in the first segment", func(w *written, _ uint64) { w.flipAll(name(1), first(named)) }, []found{{"journal", "1", "the name", dataKnown}}},
		{"name of a log, everywhere", func(w *written, _ uint64) {
			for i := range uint64(3) {
				w.flipAll(name(i+1), named)
			}
		}, []found{
			{"journal", "1", "the name", dataNames},
			{"journal", "1", "the name", dataNames},
			{"journal", "2", "the name", dataNames},
			{"journal", "2", "the name", dataNames},
			{"journal", "3", "the name", dataNames},
			{"journal", "3", "the name", dataNames},
		}},
		{"term, in one place", func(w *written, _ uint64) {
			w.set("CurrentTerm", 9)
			w.flipAll(name(3), first(ninth))
		}, []found{{"journal", "3", "a value of term or vote", dataKnown}}},
		{"term, in both places", func(w *written, _ uint64) {
			w.set("CurrentTerm", 9)
			w.flipAll(name(3), ninth)
		}, []found{{"journal", "3", "a value", dataKnown}, {"journal", "3", "a value", dataKnown}, {"log", "a", "term or vote", forgotten}}},
		{"footer and an entry", func(w *written, _ uint64) {
			w.flip(name(2), minSegmentBytes-blockBytes+9)
			w.flip(name(2), int64(w.frames(name(2))[6].records[0].offset))
		}, []found{{"journal", "2", "the footer", dataKnown}, {"entry", "2", "entry ", dataEntry}}},
		{"older term", func(w *written, _ uint64) { w.set("CurrentTerm", 1) }, []found{{"vote", "a", "the current term is 1, the last vote was in term 0, and the log ends in term 2", "two owners"}}},
		{"vote of the future", func(w *written, _ uint64) { w.set(keyVoteTerm, 9) }, []found{{"vote", "a", "the last vote was in term 9", "two owners"}}},
		{"log without its beginning", func(w *written, _ uint64) {
			w.open()
			w.check(w.log("a").DeleteRange(1, 20))
			w.close()
		}, []found{{"log", "a", "begins with entry 21, and its newest snapshot ends with entry 5", dataLog}}},
		{"terms in the wrong order", func(w *written, last uint64) { w.stored(w.entry(last+1, 1, 1)) }, []found{{"entry", "3", "is of term 1, and the one before it of term 2", dataLog}}},
		{"entry that is none", func(w *written, last uint64) {
			w.stored(&raft.Log{Index: last + 1, Term: 2, Type: raft.LogCommand, Data: []byte("nonsense")})
		}, []found{{"entry", "3", "does not decode", dataLog}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWritten(t, 5)
			w.check(w.store("a", 100, 1))
			w.check(w.store("b", 3, 1))
			w.check(w.store("a", 150, 2))
			w.check(w.snapshot("a", 5, 1))
			w.check(w.log("a").DeleteRange(1, 4))
			w.close()
			clean, _ := inspect(t, w.dir)
			if !clean.Sound() || len(clean.Segments) != 3 {
				t.Fatalf("%+v", clean)
			}
			c.spoil(w, group(t, clean, "a").Last)
			r, _ := inspect(t, w.dir)
			if len(r.Findings) != len(c.want) {
				t.Fatalf("found %+v, want %d", r.Findings, len(c.want))
			}
			for i, f := range r.Findings {
				want, path := c.want[i], w.dir
				if n, err := strconv.ParseUint(c.want[i].where, 10, 64); err == nil {
					path = filepath.Join(w.dir, name(n))
				} else if f.Volume != want.where {
					t.Errorf("found %+v, want it to be about log %q", f, want.where)
				}
				if f.Kind != want.kind || f.Path != path || !strings.Contains(f.What, want.what) || !strings.Contains(f.Data, want.data) || f.Next == "" {
					t.Errorf("found %+v, want %+v", f, want)
				}
			}
		})
	}
}

// TestInspectKnowsWhatANodeThatStartedHasMended: damage that a start has found and replication has mended is no damage any more.
func TestInspectKnowsWhatANodeThatStartedHasMended(t *testing.T) {
	w := newWritten(t, 6)
	w.check(w.store("a", 20, 1))
	w.close()
	_, entries := inspect(t, w.dir)
	w.flip(entries[7].File, entries[7].Offset+100)
	if r, shown := inspect(t, w.dir); len(r.Findings) != 1 || len(shown) != len(entries)-1 {
		t.Fatalf("%+v, %d entries shown", r.Findings, len(shown))
	}
	w.open()
	damaged := w.log("a").Damaged()
	if len(damaged) != 1 || damaged[0].Index != 8 {
		t.Fatalf("%+v", damaged)
	}
	if r, _ := inspect(t, w.dir); len(r.Findings) != 1 || r.Findings[0].Kind != "entry" {
		t.Fatalf("after the start: %+v", r.Findings)
	}
	data := bytes.Clone(mustRead(t, filepath.Join(w.dir, entries[7].File))[entries[7].Offset:][:entries[7].DataBytes])
	data[100] ^= 1
	w.check(w.log("a").Mend(&raft.Log{Index: 8, Term: 1, Type: raft.LogCommand, Data: data}))
	w.wantSound("a", 1, 20)
	w.close()
	w.wantSound("a", 1, 20)
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
