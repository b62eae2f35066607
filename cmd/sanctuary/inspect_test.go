package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/command"
	"sanctuary/replication/journal"
)

// inspectable makes a node's data directory in dir, with a LUN, a snapshot of it and a clone, closed.
func inspectable(t *testing.T, dir string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const lun = "0cf473b1-8b42-44b4-9b4f-fc2dfcdbe5cc"
	replica := filepath.Join(dir, "luns", lun, "1")
	check(os.MkdirAll(replica, 0o700))
	check(os.Mkdir(filepath.Join(dir, "catalog"), 0o700))
	check(os.WriteFile(filepath.Join(dir, "node.json"), []byte(`{"version":1,"cluster":"lab","node":"alpha","id":"x"}`), 0o600))
	check(os.WriteFile(filepath.Join(replica, "replica.json"), []byte(`{"version":1,"lun":"`+lun+`","replica":"alpha/1","media":"file","started":true}`), 0o600))
	pool, err := blockstore.OpenPool(blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: filepath.Join(dir, "pool"), CapacityBytes: 16 << 20})
	check(err)
	v, err := pool.Create(lun+".1", block.Geometry{Capacity: block.CountOf(4 << 20), LogicalBlockBytes: 512})
	check(err)
	folder, err := vfs.OpenDir(filepath.Join(dir, "journal"))
	check(err)
	disk, err := journal.Open(folder, journal.Options{SegmentBytes: 1 << 20})
	check(err)
	j, err := disk.Log(lun + ".1")
	check(err)
	check(j.SetUint64([]byte("CurrentTerm"), 4))
	index := uint64(0)
	entry := func(fence uint64, ops ...block.Op) {
		index++
		b, err := command.Encode(fence, 0, ops)
		check(err)
		check(j.StoreLogs([]*raft.Log{{Index: index, Term: 3, Type: raft.LogCommand, Data: b}}))
		if fence == 3 {
			check(v.Apply(index, ops))
		} else {
			check(v.Apply(index, nil))
		}
	}
	write := func(first, n int64) block.Op {
		data := bytes.Repeat([]byte("sanctuary."), int(n)*block.Size/10+1)[:n*block.Size]
		return block.Op{Kind: block.OpWrite, Range: block.BytesRange(first*block.Size, n*block.Size), Data: data, Sums: block.AppendSums(nil, data)}
	}
	id := block.SnapshotID{0xaa, 15: 1}
	entry(3, write(0, 70), block.Op{Kind: block.OpZero, Range: block.BytesRange(8*block.Size, block.Size)})
	entry(3, block.SnapshotOp(block.SnapshotSpec{ID: id, Name: "monday"}))
	entry(3, write(2, 1))
	entry(2, write(9, 1))
	clone, err := pool.Clone("clone.2", lun+".1", id)
	check(err)
	check(clone.Apply(1, []block.Op{write(128, 3)}))
	check(errors.Join(disk.Close(), pool.Close()))
}

// TestInspectCommandLines runs inspect on what lies on the disk, sound and not, and compares what it prints with a file.
func TestInspectCommandLines(t *testing.T) {
	sound, dir := t.TempDir(), t.TempDir()
	inspectable(t, sound)
	flip := func(path string, off int64) func(t *testing.T) {
		return func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(dir, path))
			if err == nil {
				b[off] ^= 1
				err = os.WriteFile(filepath.Join(dir, path), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, line string
		spoil      func(t *testing.T)
		interrupt  bool
	}{
		{name: "sound", line: "inspect DIR --data"},
		{name: "pool", line: "inspect pool DIR/pool"},
		{name: "pool-file-verbose", line: "inspect DIR/pool/data --data --verbose --volume clone.2"},
		{name: "journal-verbose", line: "inspect journal DIR/journal -v"},
		{name: "json", line: "inspect DIR --data -o json"},
		{name: "superblock", line: "inspect DIR", spoil: flip("pool/data", 32<<10)},
		{name: "block", line: "inspect DIR --data --rate 1GiB", spoil: flip("pool/data", 1<<20+1<<19+1<<18+99)},
		{name: "log-gone", line: "inspect DIR", spoil: func(t *testing.T) {
			if err := os.RemoveAll(filepath.Join(dir, "journal")); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "entry-text", line: "inspect DIR", spoil: flip("journal/0000000000000001.journal", 50_000)},
		{name: "entry", line: "inspect DIR -o json", spoil: flip("journal/0000000000000001.journal", 50_000)},
		{name: "not-there", line: "inspect DIR/nothing"},
		{name: "nothing-known", line: "inspect DIR/luns"},
		{name: "not-a-pool", line: "inspect pool DIR/node.json"},
		{name: "no-path", line: "inspect"},
		{name: "help", line: "inspect --help"},
		{name: "interrupted", line: "inspect DIR", interrupt: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(sound))); err != nil {
				t.Fatal(err)
			}
			if c.spoil != nil {
				c.spoil(t)
			}
			var out, errOut bytes.Buffer
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.interrupt {
				cancel()
			}
			code := execute(ctx, strings.Fields(strings.ReplaceAll(c.line, "DIR", dir)), environment{out: &out, err: &errOut, in: strings.NewReader(""), getenv: func(string) string { return "" }})
			var got strings.Builder
			line(&got, "$ sanctuary %s", c.line)
			got.WriteString(out.String())
			for _, l := range strings.SplitAfter(errOut.String(), "\n") {
				if l != "" {
					got.WriteString("! " + l)
				}
			}
			line(&got, "exit status %d", code)
			text := strings.ReplaceAll(got.String(), dir, "DIR")
			text = regexp.MustCompile(`\b[0-9a-f]{32}\b`).ReplaceAllStringFunc(text, func(id string) string {
				if strings.HasPrefix(id, "aa0") { // the snapshot's
					return id
				}
				return "UUID"
			})
			compare(t, filepath.Join("testdata", "cli", "inspect-"+c.name+".txt"), text)
		})
	}
}
