package replication

import (
	"context"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// A node starts although the file system of its journal is full and the journal would have to go on in another segment (the header of the last one has rotted). What
// is read there is served by whoever can: the copy is one that is away, and comes back by itself once there is room. It can be stopped meanwhile.
func TestNodeStartsOnAFullFileSystem(t *testing.T) {
	for name, nodes := range map[string][]string{"two copies and a witness": {"a", "b", "w"}, "a single copy": {"a"}} {
		t.Run(name, func(t *testing.T) { startsOnAFullFileSystem(t, nodes) })
	}
}

func startsOnAFullFileSystem(t *testing.T, nodes []string) {
	c := crashableWith(t, &cluster{}, blockstore.MediaFile, nodes...)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	owner, down := c.owner(), "a"
	if len(nodes) > 1 {
		c.healthy(owner)
		down = map[string]string{"a": "b", "b": "a"}[owner]
	}
	c.writeAll(ctx, t, everyBlock(0, 1024, 1), 1) // more than a segment
	c.stop(down)
	folder := c.folders[down].Clone(crashdev.NewPower(-1))
	c.folders[down] = folder
	names, err := folder.List()
	if err != nil {
		t.Fatal(err)
	}
	for i := len(names) - 1; ; i-- {
		var b [8]byte
		if err := folder.Dev(names[i]).ReadAt(b[:], 0); err != nil {
			t.Fatal(err)
		}
		if string(b[:4]) == "SJs1" {
			folder.Dev(names[i]).FlipBit(8, 1)
			break
		}
		if err := folder.Remove(names[i]); err != nil { // one that is ready would do
			t.Fatal(err)
		}
	}
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Allocate {
			return vfs.ErrNoSpace
		}
		return nil
	})
	for range 2 {
		quickly(t, "start", func() { c.start(down, false) })
		if !c.nodes[down].journal.Tight() {
			t.Fatal("the journal has room")
		}
		if len(nodes) > 1 {
			if err := c.write(ctx, 1, 2); err != nil {
				t.Fatal(err)
			}
		} else {
			short, cancel := context.WithTimeout(ctx, 4*time.Second) // long enough for Raft to stand, which waits for its term
			if c.write(short, 1, 2) == nil {
				t.Fatal("a write did not wait for room")
			}
			cancel()
		}
		if err := c.group(down).Err(); err != nil {
			t.Fatal(err)
		}
		quickly(t, "stop", func() { c.stop(down) })
	}
	quickly(t, "start", func() { c.start(down, false) })
	folder.SetHook(nil)
	if err := c.write(ctx, 1, 3); err != nil {
		t.Fatal(err)
	}
	if len(nodes) > 1 {
		c.healthy(c.owner())
		compareCopies(t, c, "a", "b")
	}
	for n := range 1024 {
		want := uint64(1)
		if n == 1 {
			want = 3
		}
		if v, err := c.read(n); v != want || err != nil {
			t.Fatalf("block %d is of version %d, %v", n, v, err)
		}
	}
}

// quickly fails the test if f has not returned in a time in which it need not wait for anything.
func quickly(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: waits for room", what)
	}
}
