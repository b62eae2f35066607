package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/vfs"
	"sanctuary/node/api"
	"sanctuary/replication/journal"
	"sanctuary/replication/journal/walv1/walv1test"
)

// takeover is a node's data directory with the log of one replica, and what that must hold.
type takeover struct {
	t       *testing.T
	dir     string // of the replica
	journal *journal.Journal
	folder  *vfs.Dir
	want    []*raft.Log
}

const takenOver = "lun.5"

func (o *takeover) check(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// older returns a data directory as an older program has left it.
func older(t *testing.T) *takeover {
	o := &takeover{t: t, dir: filepath.Join(t.TempDir(), "luns", "lun", "5")}
	number := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	old := walv1test.Log{
		Gone: 25, Values: map[string][]byte{"CurrentTerm": number(7), "LastVoteTerm": number(6), "LastVoteCand": []byte("beta/2")},
		Snapshot: raft.SnapshotMeta{ID: "1-30", Index: 30, Term: 1}, Body: []byte("body"),
	}
	for i := uint64(1); i <= 200; i++ {
		l := &raft.Log{Index: i, Term: 1 + i/60, Type: raft.LogCommand, Data: fmt.Appendf(make([]byte, 3000), "entry %d", i)}
		if i%7 == 0 {
			l.Extensions = []byte("extensions")
		}
		old.Entries = append(old.Entries, l)
	}
	o.check(walv1test.Write(filepath.Join(o.dir, oldJournal), old))
	o.want = old.Entries[25:]
	var err error
	o.folder, err = vfs.OpenDir(filepath.Join(filepath.Dir(o.dir), "..", "..", journalDir))
	o.check(err)
	o.restart()
	t.Cleanup(func() { _ = o.journal.Close() })
	return o
}

// restart is another start of the process, with the journal as the last one left it.
func (o *takeover) restart() {
	o.t.Helper()
	if o.journal != nil {
		o.check(o.journal.Close())
	}
	var err error
	o.journal, err = journal.Open(o.folder, journal.Options{SegmentBytes: 1 << 20, CacheBytes: 1})
	o.check(err)
}

// open opens the log as a node does that starts, and checks that everything is in it.
func (o *takeover) open() journal.Log {
	o.t.Helper()
	s := &replicas{n: &Node{journal: o.journal, log: slog.New(slog.DiscardHandler)}}
	if f := (replicaFile{LUN: "lun", Replica: "alpha/5", Started: true}); !s.hasLog(o.dir, f) {
		o.t.Fatal("the log counts as lost")
	}
	l, err := s.openLog(o.dir, takenOver)
	o.check(err)
	first, err1 := l.FirstIndex()
	last, err2 := l.LastIndex()
	if o.check(errors.Join(err1, err2)); first != 26 || last != o.want[len(o.want)-1].Index {
		o.t.Fatalf("log is %d..%d", first, last)
	}
	for _, want := range o.want {
		var got raft.Log
		o.check(l.GetLog(want.Index, &got))
		if got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) {
			o.t.Fatalf("entry %d: %+v", want.Index, got)
		}
	}
	for key, want := range map[string]uint64{"CurrentTerm": 7, "LastVoteTerm": 6} {
		if got, err := l.GetUint64([]byte(key)); got != want || err != nil {
			o.t.Fatalf("%s is %d, %v", key, got, err)
		}
	}
	if cand, err := l.Get([]byte("LastVoteCand")); string(cand) != "beta/2" || err != nil {
		o.t.Fatalf("voted for %q, %v", cand, err)
	}
	if meta, body, ok := l.Snapshots().Newest(); !ok || meta.Index != 30 || string(body) != "body" {
		o.t.Fatalf("snapshot %+v %q %t", meta, body, ok)
	}
	for _, name := range []string{oldJournal, importedJournal} {
		if !missing(filepath.Join(o.dir, name)) {
			o.t.Fatalf("%s is still there", name)
		}
	}
	return l
}

// TestLogOfAnOlderProgramIsTakenOver: at the first start, and after a kill at any step of it. Nothing of the old log is lost, nothing that is written afterwards
// is undone by what is left of it, and it is gone in the end.
func TestLogOfAnOlderProgramIsTakenOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		until func(o *takeover) // what happened before the process was killed
	}{
		{"first start", func(*takeover) {}},
		{"killed while it was imported", func(o *takeover) {
			l, err := o.journal.Log(takenOver)
			o.check(errors.Join(err, l.SetUint64([]byte("CurrentTerm"), 9)))
			for i := uint64(20); i <= 30; i++ { // the older program was gone back to, and has cut its log off meanwhile
				o.check(l.StoreLogs([]*raft.Log{{Index: i, Term: 1, Data: []byte("from an earlier attempt")}}))
			}
		}},
		{"killed before it was renamed", func(o *takeover) { o.check(o.journal.Import(takenOver, filepath.Join(o.dir, oldJournal))) }},
		{"killed before it was deleted", func(o *takeover) {
			o.check(o.journal.Import(takenOver, filepath.Join(o.dir, oldJournal)))
			o.check(os.Rename(filepath.Join(o.dir, oldJournal), filepath.Join(o.dir, importedJournal)))
		}},
		{"killed while it was deleted", func(o *takeover) {
			o.check(o.journal.Import(takenOver, filepath.Join(o.dir, oldJournal)))
			o.check(os.Rename(filepath.Join(o.dir, oldJournal), filepath.Join(o.dir, importedJournal)))
			o.check(os.RemoveAll(filepath.Join(o.dir, importedJournal, "wal")))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := older(t)
			c.until(o)
			o.restart()
			l := o.open()
			next := &raft.Log{Index: 201, Term: 7, Type: raft.LogCommand, Data: []byte("after the move")}
			o.check(l.StoreLogs([]*raft.Log{next}))
			o.want = append(o.want, next)
			o.restart()
			o.open()
		})
	}
}

// TestDamagedLogOfAnOlderProgramIsNotTakenOver: the replica does not start with less than it had, and the old log stays.
func TestDamagedLogOfAnOlderProgramIsNotTakenOver(t *testing.T) {
	o := older(t)
	segments, err := filepath.Glob(filepath.Join(o.dir, oldJournal, "wal", "*.wal"))
	o.check(err)
	raw, err := os.ReadFile(segments[1])
	o.check(err)
	raw[len(raw)/3] ^= 1
	o.check(os.WriteFile(segments[1], raw, 0o600))
	s := &replicas{n: &Node{journal: o.journal, log: slog.New(slog.DiscardHandler)}}
	if _, err := s.openLog(o.dir, takenOver); err == nil {
		t.Fatal("a damaged log was taken over")
	}
	if missing(filepath.Join(o.dir, oldJournal)) {
		t.Fatal("the old log is gone")
	}
}

// makeOlder turns a node's data directory into what an older program would have left.
func makeOlder(t *testing.T, dir string) (logs []string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := ReadStored(dir)
	check(err)
	folder, err := vfs.OpenDir(s.Journal)
	check(err)
	j, err := journal.Open(folder, journal.Options{})
	check(err)
	for _, r := range s.Replicas {
		l, err := j.Log(r.Log)
		check(err)
		old := walv1test.Log{Values: map[string][]byte{}}
		first, err1 := l.FirstIndex()
		last, err2 := l.LastIndex()
		check(errors.Join(err1, err2))
		for i := first; i <= last && last > 0; i++ {
			e := &raft.Log{}
			check(l.GetLog(i, e))
			old.Entries = append(old.Entries, e)
		}
		for _, key := range []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"} {
			v, err := l.Get([]byte(key))
			if check(err); len(v) > 0 {
				old.Values[key] = v
			}
		}
		old.Snapshot, old.Body, _ = l.Snapshots().Newest()
		name, incarnation, _ := strings.Cut(r.Log, ".")
		path := filepath.Join(dir, "luns", name, incarnation, oldJournal)
		check(walv1test.Write(path, old))
		logs = append(logs, path)
	}
	check(j.Close())
	check(os.RemoveAll(s.Journal))
	return logs
}

// TestClusterOfAnOlderProgramGoesOn: all nodes at once, with the same replicas, and what was written.
func TestClusterOfAnOlderProgramGoesOn(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 64 << 20, Media: "file", Open: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	healthy := func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 2 }
	before := c.lun(cl, "vm1", healthy)
	d := openDisk(t, before)
	block := func(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%015d\n", n), 256) }
	for n := range 50 {
		if _, err := d.WriteAt(ctx, block(n), int64(n)*4096); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	var logs []string
	for name, cfg := range c.cfgs {
		c.stop(name)
		old := makeOlder(t, cfg.DataDir)
		if len(old) != 1 {
			t.Fatalf("%s has the logs %v", name, old)
		}
		logs = append(logs, old...)
	}
	c.start("witness", "beta", "alpha")
	after := c.lun(c.client(), "vm1", healthy)
	ids := func(l api.LUN) (ids []string) {
		for _, r := range l.Replicas {
			ids = append(ids, r.ID)
		}
		slices.Sort(ids)
		return ids
	}
	if !slices.Equal(ids(before), ids(after)) {
		t.Errorf("the replicas were %v, and are %v", ids(before), ids(after))
	}
	d = openDisk(t, after)
	defer d.Close()
	for n := range 50 {
		got := make([]byte, 4096)
		if _, err := d.ReadAt(ctx, got, int64(n)*4096); err != nil || !bytes.Equal(got, block(n)) {
			t.Fatalf("block %d: %q, %v", n, got[:16], err)
		}
	}
	for _, path := range logs {
		if !missing(path) {
			t.Errorf("%s is still there", path)
		}
	}
}
