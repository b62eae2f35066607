package replication

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// crash ends nodes at once, and leaves on their disks what a killed process leaves: nothing is written any more, no checkpoint
// is made, no file is closed in order.
func (c *cluster) crash(nodes ...string) {
	c.t.Helper()
	for _, name := range nodes {
		c.nodes[name].mux.Close()
	}
	for _, name := range nodes {
		dir, aside := filepath.Join(c.dir, name), filepath.Join(c.dir, name+".crashed")
		if err := c.nodes[name].group.Close(); err != nil {
			c.t.Errorf("close %s: %v", name, err)
		}
		for try := 1; ; try++ { // a segment that was being prepared gets its name meanwhile, once
			out, err := exec.Command("cp", "-a", "--sparse=always", dir, aside).CombinedOutput()
			if err == nil {
				break
			}
			if rerr := os.RemoveAll(aside); try == 3 || rerr != nil {
				c.t.Fatalf("%v: %s%v", err, out, rerr)
			}
		}
		c.stop(name)
		if err := errors.Join(os.RemoveAll(dir), os.Rename(aside, dir)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// journalFiles are the files of a node's journal, the one that was written to last at the end.
func (c *cluster) journalFiles(node string) (files []string) {
	c.t.Helper()
	type aged struct {
		name string
		at   time.Time
	}
	var all []aged
	err := filepath.WalkDir(filepath.Join(c.dir, node, "journal"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		all = append(all, aged{path, info.ModTime()})
		return err
	})
	if err != nil || len(all) == 0 {
		c.t.Fatalf("no journal of %s: %v", node, err)
	}
	slices.SortStableFunc(all, func(a, b aged) int { return a.at.Compare(b.at) })
	for _, f := range all {
		files = append(files, f.name)
	}
	return files
}

// rotJournal flips a bit of the newest stored copy of a block's contents in the journal.
func (c *cluster) rotJournal(node string, n int, version uint64) {
	c.t.Helper()
	for _, name := range slices.Backward(c.journalFiles(node)) {
		raw, err := os.ReadFile(name)
		if err != nil {
			c.t.Fatal(err)
		}
		if at := bytes.LastIndex(raw, tagged(n, version)); at >= 0 {
			raw[at+1234] ^= 4
			if err := os.WriteFile(name, raw, 0o600); err != nil {
				c.t.Fatal(err)
			}
			return
		}
	}
	c.t.Fatalf("block %d of version %d is in no file of the journal of %s", n, version, node)
}

// tearJournal leaves behind the journal's end what a write leaves that was cut off: half of something.
func (c *cluster) tearJournal(node string) {
	c.t.Helper()
	for _, name := range slices.Backward(c.journalFiles(node)) {
		raw, err := os.ReadFile(name)
		if err != nil {
			c.t.Fatal(err)
		}
		end := (len(bytes.TrimRight(raw, "\x00")) + block.Size - 1) / block.Size * block.Size
		if end == 0 || end+2*block.Size > len(raw) {
			continue
		}
		copy(raw[end:], raw[end-block.Size:end-block.Size/2]) // looks like the last frame, and is not whole
		copy(raw[end+block.Size:], bytes.Repeat([]byte{0xa5}, 700))
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			c.t.Fatal(err)
		}
		return
	}
	c.t.Fatalf("there is no room behind the end of the journal of %s", node)
}

const (
	blackoutBlocks = 512 // 2 MiB that are there and do not change
	blackoutHot    = 24  // blocks that do
)

// The power is gone everywhere at once, in the middle of writing. The nodes return in any order, some late, one never, one with
// a damaged journal, one without its disk: the LUN is back by itself with everything that was acknowledged, and nobody is sent
// what had not changed.
func TestBlackout(t *testing.T) {
	var proxies []*counted
	c := &cluster{pool: 32 << 20, geometry: block.Geometry{Capacity: block.CountOf(16 << 20), LogicalBlockBytes: 512}}
	proxied := sync.OnceFunc(func() {
		for _, to := range []string{"a", "b"} {
			proxies = append(proxies, newCounted(t, func() string { return c.addrs[to] }))
		}
	})
	c.resolve = func(from, to string) string {
		proxied()
		if i := slices.Index([]string{"a", "b"}, to); i >= 0 && from != "w" {
			return proxies[i].l.Addr().String()
		}
		return c.addrs[to]
	}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c.writeAll(ctx, t, everyBlock(0, blackoutBlocks, 1), 1)
	acked := make([]uint64, blackoutHot)
	for n := range acked {
		acked[n] = 1
	}
	written := uint64(1)
	for _, x := range []struct {
		name   string
		back   []string // "owner" and "copy" as they are before; the others never return, until the next round
		late   string   // returns when the LUN is served
		damage func(node string)
		of     string
		empty  bool // the damaged one has nothing any more
	}{
		{name: "the owner first", back: []string{"owner", "copy", "w"}},
		{name: "the witness first", back: []string{"w", "copy", "owner"}},
		{name: "the owner late", back: []string{"copy", "w"}, late: "owner"},
		{name: "the copy late", back: []string{"w", "owner"}, late: "copy"},
		{name: "the witness never", back: []string{"copy", "owner"}},
		{name: "the copy never", back: []string{"owner", "w"}},
		{name: "the owner never", back: []string{"copy", "w"}},
		{name: "the owner's journal is torn at its end", back: []string{"owner", "copy", "w"}, damage: c.tearJournal, of: "owner"},
		{name: "the copy's journal is torn at its end", back: []string{"copy", "w"}, late: "owner", damage: c.tearJournal, of: "copy"},
		{name: "the owner's journal has rotted", back: []string{"owner", "copy", "w"}, of: "owner", damage: func(node string) { c.rotJournal(node, 3, acked[3]) }},
		{name: "the copy's journal has rotted", back: []string{"w", "copy", "owner"}, of: "copy", damage: func(node string) { c.rotJournal(node, 5, acked[5]) }},
		{name: "the copy has an empty disk", back: []string{"owner", "w"}, of: "copy", empty: true},
		{name: "the owner has an empty disk", back: []string{"w", "copy"}, of: "owner", empty: true},
	} {
		ok := t.Run(x.name, func(t *testing.T) {
			c.t = t
			owner := c.owner()
			eventually(t, "healthy before", func() bool { return c.group(owner).Status().Health == HealthHealthy })
			names := map[string]string{"owner": owner, "copy": map[string]string{"a": "b", "b": "a"}[owner], "w": "w"}
			for n := range acked { // so that each has an entry of its own to be damaged
				written++
				if err := c.write(ctx, n, written); err != nil {
					t.Fatal(err)
				}
				acked[n] = written
			}
			// What is under way when the power goes.
			var load sync.WaitGroup
			under, stop := context.WithCancel(ctx)
			g, tried := c.group(owner), written+1
			for n := range acked {
				load.Go(func() {
					if g.Write(under, g.Fence(), blockRange(n), tagged(n, tried)) == nil {
						acked[n] = tried
					}
				})
			}
			c.crash("a", "b", "w")
			stop()
			load.Wait()
			written = tried
			if x.damage != nil {
				x.damage(names[x.of])
			}
			var want []Member
			for _, p := range proxies {
				p.mu.Lock()
				p.conns = nil
				p.mu.Unlock()
			}
			for _, n := range x.back {
				c.start(names[n], false)
			}
			now := c.owner()
			for n := range acked {
				got, err := c.read(n)
				if err != nil || got != acked[n] && got != tried {
					t.Errorf("block %d is %d, %v; acknowledged %d", n, got, err, acked[n])
				}
			}
			for _, n := range names { // those that were never to return, for the next round
				switch {
				case c.nodes[n] != nil:
				case x.empty && n == names[x.of]:
					if err := os.RemoveAll(filepath.Join(c.dir, n)); err != nil {
						t.Fatal(err)
					}
					want = c.rename(n, map[string]string{"copy": "2", "owner": "3"}[x.of])
					if err := c.startJoining(n); err != nil {
						t.Fatal(err)
					}
				default:
					c.start(n, false)
				}
			}
			eventually(t, "healthy again", func() bool {
				if now = c.owner(); want != nil && !c.settled(now, want, 1) {
					return false
				}
				return c.group(now).Status().Health == HealthHealthy
			})
			compareCopies(t, c, "a", "b")
			for _, n := range []int{blackoutHot, blackoutBlocks / 2, blackoutBlocks - 1} {
				if got, err := c.read(n); err != nil || got != 1 {
					t.Errorf("block %d, which nobody has changed, is %d, %v", n, got, err)
				}
			}
			sent := int64(0)
			for _, p := range proxies {
				p.mu.Lock()
				for _, n := range p.conns {
					sent += n.Load()
				}
				p.mu.Unlock()
			}
			t.Logf("%d KiB went between the copies", sent>>10)
			if all := int64(blackoutBlocks * block.Size); !x.empty && sent > all/2 || x.empty && sent < all {
				t.Errorf("%d KiB went between the copies, which have %d KiB", sent>>10, all>>10)
			}
		})
		c.t = t
		if !ok {
			return
		}
	}
}
