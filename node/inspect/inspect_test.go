package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/command"
	"sanctuary/replication/journal"
)

const (
	lunID   = "0cf473b1-8b42-44b4-9b4f-fc2dfcdbe5cc"
	volume  = lunID + ".5"
	replica = "alpha/5"
)

// dataDir is a node's data directory with one replica, made by the packages that a node uses.
type dataDir struct {
	t      *testing.T
	path   string
	pool   *blockstore.Pool
	volume *blockstore.Volume
	disk   *journal.Journal
	log    journal.Log
}

func (d *dataDir) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *dataDir) json(name string, v any) {
	d.t.Helper()
	b, err := json.Marshal(v)
	d.check(err)
	path := filepath.Join(d.path, name)
	d.check(os.MkdirAll(filepath.Dir(path), 0o700))
	d.check(os.WriteFile(path, b, 0o600))
}

func (d *dataDir) replicaDir() string { return filepath.Join("luns", lunID, "5") }
func (d *dataDir) journal() string    { return filepath.Join(d.path, "journal") }

// openJournal opens the node's journal and the replica's log in it.
func (d *dataDir) openJournal() {
	d.t.Helper()
	folder, err := vfs.OpenDir(d.journal())
	d.check(err)
	d.disk, err = journal.Open(folder, journal.Options{SegmentBytes: 1 << 20})
	d.check(err)
	d.log, err = d.disk.Log(volume)
	d.check(err)
	d.check(d.log.SetUint64([]byte("CurrentTerm"), 2))
}

func newDataDir(t *testing.T) *dataDir {
	t.Helper()
	d := &dataDir{t: t, path: t.TempDir()}
	d.json("node.json", map[string]any{"version": 1, "cluster": "lab", "node": "alpha", "id": "41107afb-a9c2-4824-87a6-04f02d19cd69"})
	d.json(filepath.Join(d.replicaDir(), "replica.json"), map[string]any{"version": 1, "lun": lunID, "replica": replica, "media": "file", "started": true})
	d.check(os.Mkdir(filepath.Join(d.path, "catalog"), 0o700))
	var err error
	d.pool, err = blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: filepath.Join(d.path, "pool"), CapacityBytes: 16 << 20})
	d.check(err)
	d.volume, err = d.pool.Create(volume, block.Geometry{Capacity: block.CountOf(8 << 20), LogicalBlockBytes: 512})
	d.check(err)
	d.openJournal()
	t.Cleanup(func() {
		d.check(d.disk.Close())
		d.check(d.pool.Close())
	})
	return d
}

// write is an entry of the log that is applied, if it was accepted in the term it was committed in.
func (d *dataDir) write(first, n int64, fill byte, fence uint64) {
	d.t.Helper()
	data := bytes.Repeat([]byte{fill}, int(n*block.Size))
	op := block.Op{Kind: block.OpWrite, Range: block.BytesRange(first*block.Size, n*block.Size), Data: data, Sums: block.AppendSums(nil, data)}
	last, err := d.log.LastIndex()
	d.check(err)
	b, err := command.Encode(fence, 0, []block.Op{op})
	d.check(err)
	d.check(d.log.StoreLogs([]*raft.Log{{Index: last + 1, Term: 2, Type: raft.LogCommand, Data: b}}))
	if fence == 2 {
		d.check(d.volume.Apply(last+1, []block.Op{op}))
	}
}

func (d *dataDir) checkpoint() {
	d.t.Helper()
	_, err := d.volume.Checkpoint(context.Background())
	d.check(err)
}

// mark notes a snapshot, up to which the volume is said to be durable.
func (d *dataDir) mark(index uint64) {
	d.t.Helper()
	k, err := d.log.Snapshots().Create(1, index, 2, raft.Configuration{}, 1, nil)
	d.check(err)
	_, err = fmt.Fprintf(k, `{"version":1,"lun":"%s","epoch":1,"applied":%d}`, lunID, index)
	d.check(err)
	d.check(k.Close())
}

// killed returns a copy of the directory as it is, as if the node had been killed.
func (d *dataDir) killed() string {
	d.t.Helper()
	dir := d.t.TempDir()
	d.check(os.CopyFS(dir, os.DirFS(d.path)))
	return dir
}

func look(t *testing.T, cfg Config) *Report {
	t.Helper()
	cfg.Data = true
	r, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDataDirOfANodeThatRuns(t *testing.T) {
	d := newDataDir(t)
	d.write(0, 64, 1, 2)
	d.checkpoint()
	d.mark(1)
	r := look(t, Config{Paths: []string{d.path}})
	if !r.Sound || len(r.Pools) != 1 || len(r.Journals) != 1 || len(r.Catalogs) != 1 || r.Pools[0].InUse != os.Getpid() || r.Pools[0].Volumes[0].Name != volume ||
		r.Journals[0].Replicas[volume] != replica || len(r.Journals[0].Groups) != 1 || r.Journals[0].Groups[0].Last != 1 || r.Pools[0].CheckedBytes != 64*block.Size {
		t.Errorf("%+v", r)
	}
}

// TestDataDirOfANodeThatWasKilled: what was written after the checkpoint does not match its checksum, and the log writes it again.
func TestDataDirOfANodeThatWasKilled(t *testing.T) {
	d := newDataDir(t)
	d.write(0, 64, 1, 2)
	d.checkpoint()
	d.write(3, 2, 2, 2)
	dir := d.killed()
	r := look(t, Config{Paths: []string{dir}})
	if !r.Sound || len(r.Pools[0].Notes) != 1 || !strings.Contains(r.Pools[0].Notes[0], "2 blocks") {
		t.Errorf("%+v", r)
	}
	r = look(t, Config{Paths: []string{filepath.Join(dir, "pool")}})
	if r.Sound || len(r.Findings) != 2 || !strings.Contains(r.Findings[0].Data, "the node was killed") {
		t.Errorf("the pool alone: %+v", r.Findings)
	}
	f, err := os.OpenFile(filepath.Join(dir, "pool", "data"), os.O_RDWR, 0)
	d.check(err)
	_, err = f.WriteAt([]byte("rot"), r.Findings[0].Offset+10*block.Size)
	d.check(errors.Join(err, f.Close()))
	if r := look(t, Config{Paths: []string{dir}}); r.Sound || len(r.Findings) != 1 || r.Findings[0].Kind != "block" || r.Findings[0].Volume != volume {
		t.Errorf("a block that no entry writes: %+v", r.Findings)
	}
}

// TestEntriesThatChangeNothingExcuseNothing: an entry of another term is not applied, and so writes no block again.
func TestEntriesThatChangeNothingExcuseNothing(t *testing.T) {
	d := newDataDir(t)
	d.write(0, 64, 1, 2)
	d.checkpoint()
	d.write(3, 1, 2, 2)
	dir := d.killed()
	pool := filepath.Join(dir, "pool")
	at := look(t, Config{Paths: []string{pool}}).Findings[0].Offset
	d2 := &dataDir{t: t, path: dir}
	d2.check(os.RemoveAll(d2.journal()))
	d2.openJournal()
	d2.write(60, 1, 9, 1)
	d2.write(3, 1, 2, 1)
	d2.check(d2.disk.Close())
	if r := look(t, Config{Paths: []string{dir}}); len(r.Findings) != 1 || r.Findings[0].Kind != "block" || r.Findings[0].Offset != at {
		t.Errorf("%+v", r.Findings)
	}
}

func TestDataDirFindsWhatDoesNotFitTogether(t *testing.T) {
	for _, c := range []struct {
		name, kind, what string
		spoil            func(d *dataDir)
	}{
		{"volume older than its journal", "replica", "has applied entry 2, and the journal says that it was durable up to 3", func(d *dataDir) { d.mark(3) }},
		{"mark of a newer program", "snapshot", "version 7", func(d *dataDir) {
			k, err := d.log.Snapshots().Create(1, 1, 2, raft.Configuration{}, 1, nil)
			d.check(err)
			_, err = k.Write([]byte(`{"version":7}`))
			d.check(errors.Join(err, k.Close()))
		}},
		{"journal gone", "replica", "the log of replica alpha/5 is missing", func(d *dataDir) { d.check(os.Rename(d.journal(), filepath.Join(d.t.TempDir(), "j"))) }},
		{"log gone", "replica", "the log of replica alpha/5 is missing", func(d *dataDir) {
			d.check(d.log.Close())
			d.check(d.disk.Remove(volume))
		}},
		{"log damaged", "entry", "entry 2 cannot be read", func(d *dataDir) {
			r, err := Run(d.t.Context(), Config{Paths: []string{d.journal()}, Entry: func(e Entry) {
				if e.Index == 2 {
					f, err := os.OpenFile(filepath.Join(d.journal(), e.File), os.O_RDWR, 0)
					d.check(err)
					_, err = f.WriteAt([]byte("rot"), e.Offset+99)
					d.check(errors.Join(err, f.Close()))
				}
			}})
			d.check(err)
			if !r.Sound {
				d.t.Fatalf("%+v", r)
			}
			d.write(7, 1, 3, 2) // and it goes on, so that it is no torn end
			d.checkpoint()
		}},
		{"replica.json", "replica", "replica.json", func(d *dataDir) {
			d.check(os.WriteFile(filepath.Join(d.path, d.replicaDir(), "replica.json"), []byte("{"), 0o600))
		}},
		{"node.json", "identity", "does not decode", func(d *dataDir) { d.check(os.WriteFile(filepath.Join(d.path, "node.json"), []byte("{"), 0o600)) }},
		{"catalog gone", "identity", "the catalog is missing", func(d *dataDir) { d.check(os.Remove(filepath.Join(d.path, "catalog"))) }},
		{"pools.json", "pools", "is damaged", func(d *dataDir) { d.check(os.WriteFile(filepath.Join(d.path, "pools.json"), []byte("{"), 0o600)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDataDir(t)
			d.write(0, 64, 1, 2)
			d.write(3, 2, 2, 2)
			d.checkpoint()
			c.spoil(d)
			r := look(t, Config{Paths: []string{d.path}})
			if r.Sound || len(r.Findings) != 1 || r.Findings[0].Kind != c.kind || !strings.Contains(r.Findings[0].What, c.what) || r.Findings[0].Data == "" || r.Findings[0].Next == "" {
				t.Errorf("%+v", r.Findings)
			}
		})
	}
}

func TestDataDirTellsWhatItDidNotLookAt(t *testing.T) {
	d := newDataDir(t)
	d.json("pools.json", map[string]any{"version": 1, "pools": []any{
		map[string]any{"name": "slow", "id": "x", "media": "file", "path": filepath.Join(d.path, "nowhere"), "class": "hdd"},
		map[string]any{"name": "ram1", "id": "y", "media": "ram", "class": "ram"},
	}})
	d.check(os.MkdirAll(filepath.Join(d.path, "luns", lunID, "9"), 0o700))
	r := look(t, Config{Paths: []string{d.path}})
	if notes := strings.Join(r.Notes, "\n"); !r.Sound || len(r.Pools) != 1 || !strings.Contains(notes, "pool slow is not there") || !strings.Contains(notes, "9 was never completed") {
		t.Errorf("%+v", r)
	}
	d.check(os.Rename(filepath.Join(d.path, "pool"), filepath.Join(d.path, "elsewhere")))
	r = look(t, Config{Paths: []string{d.path}})
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "where pool file lies") || len(r.Pools) != 0 {
		t.Errorf("%+v", r)
	}
	if r := look(t, Config{Paths: []string{d.path, filepath.Join(d.path, "elsewhere")}}); len(r.Pools) != 1 || r.Pools[0].Volumes[0].Name != volume {
		t.Errorf("%+v", r)
	}
}

// TestDataDirOfAnOlderProgram: logs that are to be moved yet are not looked at, and no damage; nor is what they may write again.
func TestDataDirOfAnOlderProgram(t *testing.T) {
	d := newDataDir(t)
	d.write(0, 64, 1, 2)
	d.checkpoint()
	d.write(3, 2, 2, 2)
	dir := d.killed()
	d.check(os.RemoveAll(filepath.Join(dir, "journal")))
	old := filepath.Join(dir, d.replicaDir(), "journal")
	d.check(os.MkdirAll(filepath.Join(old, "wal"), 0o700))
	if r := look(t, Config{Paths: []string{dir}}); !r.Sound || len(r.Journals) != 0 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "version 1 of the journal kept it, in "+old) {
		t.Errorf("%+v", r)
	}
	d.check(os.RemoveAll(old))
	if r := look(t, Config{Paths: []string{dir}}); r.Sound {
		t.Errorf("no log at all: %+v", r)
	}
}

// TestDataDirOfANodeThatDeletesAReplica: its log goes before replica.json does.
func TestDataDirOfANodeThatDeletesAReplica(t *testing.T) {
	d := newDataDir(t)
	d.write(0, 64, 1, 2)
	d.checkpoint()
	d.check(d.log.Close())
	d.check(d.disk.Remove(volume))
	begun := false
	r := look(t, Config{Paths: []string{d.path}, Progress: func(what string, _, _ int64) {
		if strings.HasPrefix(what, "journal") && !begun {
			begun = true
			d.check(os.RemoveAll(filepath.Join(d.path, d.replicaDir())))
		}
	}})
	for _, f := range r.Findings {
		if f.Kind == "replica" {
			t.Errorf("%+v", f)
		}
	}
	if !begun {
		t.Error("no journal was looked at")
	}
}

func TestPathsAreFoundOut(t *testing.T) {
	d := newDataDir(t)
	for path, want := range map[string]Kind{
		"": DataDir, "pool": Pool, "pool/data": Pool, "journal": Journal,
	} {
		path = filepath.Join(d.path, path)
		if got, err := Detect(path); got != want || err != nil {
			t.Errorf("%s is a %s, %v; want %s", path, got, err, want)
		}
		if r := look(t, Config{Paths: []string{path}}); !r.Sound || len(r.Pools)+len(r.Journals) == 0 {
			t.Errorf("%s: %+v", path, r)
		}
	}
	unreadable := (*UnreadableError)(nil)
	for _, cfg := range []Config{
		{Paths: []string{t.TempDir()}},
		{Paths: []string{filepath.Join(d.path, d.replicaDir())}}, // the log is not there any more
		{Paths: []string{filepath.Join(d.path, "nothing")}},
		{Paths: []string{filepath.Join(d.path, "node.json")}}, // no pool
		{Paths: []string{d.path}, Kind: Pool},
		{Paths: []string{filepath.Join(d.path, "pool")}, Kind: Journal},
		{Paths: []string{d.journal()}, Kind: DataDir},
	} {
		if r, err := Run(t.Context(), cfg); !errors.As(err, &unreadable) {
			t.Errorf("%+v: %+v, %v", cfg, r, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Config{Paths: []string{d.path}}); !errors.Is(err, context.Canceled) || errors.As(err, &unreadable) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRewrittenBlocksAreWhole(t *testing.T) {
	l := &logs{chunks: map[uint32]uint64{}}
	l.add(block.BytesRange(63*block.Size, 66*block.Size))
	l.add(block.BytesRange(1<<30, longBytes))
	l.journals, l.volume = map[string]string{"v": "nowhere"}, "v"
	for n, want := range map[int64]bool{62: false, 63: true, 64: true, 127: true, 128: true, 129: false, 1 << 18: true, 1<<18 + longBytes/block.Size - 1: true, 1<<18 + longBytes/block.Size: false} {
		if got := l.rewritten("v", 0, block.BytesRange(n*block.Size, block.Size)); got != want {
			t.Errorf("block %d is rewritten: %t", n, got)
		}
	}
	if l.rewritten("w", 0, block.BytesRange(0, block.Size)) {
		t.Error("a volume without a journal is rewritten")
	}
}
