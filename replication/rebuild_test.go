package replication

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// writeAll writes blocks at once, as far as the proposer lets them.
func (c *cluster) writeAll(ctx context.Context, t *testing.T, blocks []int, v uint64) {
	t.Helper()
	var all sync.WaitGroup
	slots := make(chan struct{}, 64)
	failed := atomic.Pointer[error]{}
	for _, n := range blocks {
		slots <- struct{}{}
		all.Go(func() {
			if err := c.write(ctx, n, v); err != nil {
				failed.Store(&err)
			}
			<-slots
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
}

func everyBlock(first, end, stride int) (blocks []int) {
	for n := first; n < end; n += stride {
		blocks = append(blocks, n)
	}
	return blocks
}

// awayFor stops the copy, changes blocks without it, and sees to it that the owner's log begins after that.
func (c *cluster) awayFor(ctx context.Context, t *testing.T, changed []int, v uint64) (owner, away string) {
	t.Helper()
	owner = c.owner()
	away = map[string]string{"a": "b", "b": "a"}[owner]
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	compareCopies(t, c, "a", "b")
	c.stop(away)
	c.writeAll(ctx, t, changed, v)
	last, _ := c.group(owner).cfg.Journal.LastIndex()
	c.cutLog(ctx, t, owner, last, changed, v)
	return owner, away
}

// cutLog writes blocks again, with what they hold, until the owner cannot send an entry any more.
func (c *cluster) cutLog(ctx context.Context, t *testing.T, owner string, index uint64, blocks []int, v uint64) {
	t.Helper()
	g := c.group(owner)
	eventually(t, "the owner's log is cut", func() bool {
		c.writeAll(ctx, t, blocks, v)
		g.dueCheckpoint()
		return g.cfg.Journal.GetLog(index, &raft.Log{}) != nil
	})
}

// counted passes connections on and counts what goes over each of them, in both directions.
type counted struct {
	t       *testing.T
	to      func() string
	l       net.Listener
	mu      sync.Mutex
	conns   []*atomic.Int64
	running sync.WaitGroup
}

func newCounted(t *testing.T, to func() string) *counted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &counted{t: t, to: to, l: l}
	p.running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.pass(in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.running.Wait()
	})
	return p
}

func (p *counted) pass(in net.Conn) {
	out, err := net.Dial("tcp", p.to())
	if err != nil {
		in.Close()
		return
	}
	n := &atomic.Int64{}
	p.mu.Lock()
	p.conns = append(p.conns, n)
	p.mu.Unlock()
	var both sync.WaitGroup
	for _, d := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			_, _ = io.Copy(countingWriter{d[0], n}, d[1])
			in.Close()
			out.Close()
		})
	}
	both.Wait()
}

type countingWriter struct {
	net.Conn
	n *atomic.Int64
}

func (w countingWriter) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	return w.Conn.Write(b)
}

// bulk is what went over the connection with the most on it, and over others with much: of a rebuild that was interrupted. all is what went over every one.
func (p *counted) bulk() (bulk, all int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := int64(0)
	for _, c := range p.conns {
		sent := c.Load()
		all += sent
		most = max(most, sent)
		if sent > 64<<10 {
			bulk += sent
		}
	}
	return max(bulk, most), all
}

// What goes over the connection for transfers, headers, requests, comparing and all, is at most 2 % more than the blocks that have
// changed; also where a chunk of 256 KiB has a single one.
func TestRebuildSendsLittleBesidesWhatHasChanged(t *testing.T) {
	const size, perChunk = 256 << 20, block.BlocksPerChunk
	all := size / block.Size
	for name, changed := range map[string][]int{
		"one block of each chunk":     everyBlock(5, all, perChunk),
		"one block of each group":     everyBlock(3, all/8, 8),
		"whole chunks":                append(everyBlock(perChunk, 9*perChunk, 1), everyBlock(all-9*perChunk, all-perChunk, 1)...),
		"a few blocks here and there": everyBlock(7, all, 100*perChunk),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
			defer cancel()
			c := &cluster{
				limits: Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10}, pool: 2 * size,
				geometry: block.Geometry{Capacity: block.CountOf(size), LogicalBlockBytes: 512},
			}
			var proxies [2]*counted
			proxied := sync.OnceFunc(func() {
				for i, to := range []string{"a", "b"} {
					proxies[i] = newCounted(t, func() string { return c.addrs[to] })
				}
			})
			c.resolve = func(from, to string) string {
				proxied()
				switch {
				case from == "b" && to == "a":
					return proxies[0].l.Addr().String()
				case from == "a" && to == "b":
					return proxies[1].l.Addr().String()
				}
				return c.addrs[to]
			}
			newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
			c.writeAll(ctx, t, append([]int{0}, changed...), 1)
			owner, away := c.awayFor(ctx, t, changed, 2)
			to := proxies[map[string]int{"a": 0, "b": 1}[owner]]
			to.mu.Lock()
			to.conns = nil
			to.mu.Unlock()
			first, _ := c.group(owner).cfg.Journal.FirstIndex()
			last, _ := c.group(owner).cfg.Journal.LastIndex()
			inLog := first > 0 && first <= last
			c.start(away, false)
			eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
			compareCopies(t, c, "a", "b")
			bytes := int64(len(changed)) * block.Size
			sent, all := to.bulk()
			copied := c.group(away).Status().Copied
			t.Logf("%d bytes sent for %d that have changed: %+.2f %%", sent, bytes, 100*float64(sent-bytes)/float64(bytes))
			// On a busy machine the rebuild may have been interrupted, and what was copied before that has only been counted on its way; or the
			// log was cut in the middle of what is written again until it is, and the rest comes from the log.
			if copied > bytes || copied == 0 || copied < bytes && all < bytes && !inLog {
				t.Errorf("%d bytes of blocks were copied, %d have changed", copied, bytes)
			}
			const handshake = 16 << 10 // of the connection, and the pins
			if sent > bytes+bytes/50+handshake {
				t.Errorf("%d bytes were sent for %d that have changed", sent, bytes)
			}
		})
	}
}

// A receiver that is killed in the middle goes on where it was, and compares again only what has changed since. What no
// checkpoint of the volume has made durable does not count.
func TestKilledReceiverGoesOnWhereItWas(t *testing.T) {
	for name, full := range map[string]bool{"with checkpoints": false, "without": true} {
		t.Run(name, func(t *testing.T) { killedReceiver(t, full) })
	}
}

func killedReceiver(t *testing.T, full bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	c := &cluster{
		limits:  Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 256 << 10},
		rebuild: RebuildConfig{StepBytes: 4 * block.ChunkSize, SaveEvery: 1},
	}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	changed := everyBlock(1, 64<<20/block.Size, block.BlocksPerChunk) // in each of 256 chunks
	c.writeAll(ctx, t, append([]int{0}, changed...), 1)
	owner, away := c.awayFor(ctx, t, changed, 2)
	const chunks, killedAt = 256, 100
	var compared atomic.Int64
	at, held := make(chan struct{}), make(chan struct{})
	resume := sync.OnceFunc(func() { close(held) })
	t.Cleanup(resume)
	c.wrapStore = func(_ string, s Store) Store {
		return &importing{Store: s, full: full && compared.Load() == 0, check: func() {
			if compared.Add(1) == killedAt {
				close(at)
				<-held
			}
		}}
	}
	c.start(away, false)
	<-at
	// What is there now is what a killed process leaves behind.
	saved := filepath.Join(c.dir, "as-killed")
	if err := os.CopyFS(saved, os.DirFS(filepath.Join(c.dir, away))); err != nil {
		t.Fatal(err)
	}
	if p := c.group(away).Status(); p.Total != chunks*block.ChunkSize || p.Seen < (killedAt-8)*block.ChunkSize || p.ToGo() == 0 {
		t.Errorf("progress: %+v", p.RebuildProgress)
	}
	resume()
	c.stop(away)
	if err := errors.Join(os.RemoveAll(filepath.Join(c.dir, away)), os.Rename(saved, filepath.Join(c.dir, away))); err != nil {
		t.Fatal(err)
	}
	again := []int{1 + 3*block.BlocksPerChunk, 1 + 50*block.BlocksPerChunk, 1 + 200*block.BlocksPerChunk}
	c.writeAll(ctx, t, again, 3)
	compared.Store(killedAt + 1)
	c.start(away, false)
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	compareCopies(t, c, "a", "b")
	left := int64(chunks - killedAt)
	if full {
		left = chunks
	}
	// And those of the step it was killed in, and those that were written since.
	if n := compared.Load() - killedAt - 1; n < left || n > left+2*4+int64(len(again)) {
		t.Errorf("%d chunks were compared after the process was killed at the %dth of %d, want %d or a few more", n, killedAt, chunks, left)
	}
	if v := version(t, c.nodes[away].vol, again[0]); v != 3 {
		t.Errorf("block %d is of version %d", again[0], v)
	}
	if _, err := os.Stat(c.group(away).cfg.Rebuild.File); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cursor is still there: %v", err)
	}
}

// The owner dies in the middle, another copy takes over: the rebuild goes on from that one, where it was.
func TestRebuildGoesOnFromTheNextOwner(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	c := &cluster{
		limits:  Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 256 << 10},
		rebuild: RebuildConfig{StepBytes: 4 * block.ChunkSize},
	}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "c", "w") // whoever is rebuilt has no vote: two of three are left
	changed := everyBlock(1, 64<<20/block.Size, block.BlocksPerChunk)
	c.writeAll(ctx, t, append([]int{0}, changed...), 1)
	owner, away := c.owner(), "c"
	if owner == away {
		away = "a"
	}
	other := map[string]string{"ab": "c", "ac": "b", "ba": "c", "bc": "a", "ca": "b", "cb": "a"}[owner+away]
	eventually(t, "all in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	c.stop(away)
	c.writeAll(ctx, t, changed, 2)
	last, _ := c.group(owner).cfg.Journal.LastIndex()
	for _, n := range []string{owner, other} { // whoever serves it must not have it in the log
		eventually(t, n+" has it", func() bool { return c.nodes[n].vol.Applied() >= last })
	}
	c.cutLog(ctx, t, owner, last, changed, 2)
	var compared atomic.Int64
	at, held := make(chan struct{}), make(chan struct{})
	resume := sync.OnceFunc(func() { close(held) })
	t.Cleanup(resume)
	c.wrapStore = func(_ string, s Store) Store {
		return &importing{Store: s, check: func() {
			if compared.Add(1) == 100 {
				close(at)
				<-held
			}
		}}
	}
	c.start(away, false)
	<-at
	c.stop(owner)
	eventually(t, "the other owns it", func() bool { return c.group(other).Status().Serving })
	resume()
	eventually(t, "the copy is whole", func() bool {
		return !c.group(away).Status().Rebuilding && c.group(other).Status().Health != HealthUnavailable
	})
	if n := compared.Load(); n < 256 || n > 256+4+2 {
		t.Errorf("%d chunks of 256 were compared in all", n)
	}
	c.wrapStore = nil
	c.start(owner, false)
	eventually(t, "all in sync", func() bool { return c.group(other).Status().Health == HealthHealthy })
	compareCopies(t, c, other, away)
}

// An owner of an older program tells nothing by which a block that is the same could be known: all blocks of chunks that have changed are fetched.
func TestRebuildFromAnOlderProgram(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	c := &cluster{
		limits:  Limits{JournalKeepBytes: 1, CheckpointBytes: 256 << 10},
		without: []string{methodRebuildCount, methodRebuildHashes, methodRebuildGroups},
	}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	changed := everyBlock(1, 2000, 2*block.BlocksPerChunk)
	c.writeAll(ctx, t, everyBlock(0, 2048, 1), 1)
	owner, away := c.awayFor(ctx, t, changed, 2)
	c.start(away, false)
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	compareCopies(t, c, "a", "b")
	if got := c.group(away).Status().Copied; got != int64(len(changed))*block.ChunkSize {
		t.Errorf("%d bytes travelled for %d chunks", got, len(changed))
	}
}
