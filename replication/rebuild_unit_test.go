package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// A cursor never claims more than is true of any chunk, however often a rebuild is interrupted.
func TestRebuildCursorClaimsNoMoreThanIsTrue(t *testing.T) {
	t.Parallel()
	snapshots := []block.SnapshotID{{}, {1}, {2}}
	rapid.Check(t, func(t *rapid.T) {
		const chunks = 40
		began := rapid.Uint64Range(0, 9).Draw(t, "began")
		c := &rebuildCursor{Spans: []rebuildSpan{{Until: endOfChunks, Since: began}}}
		type truth struct {
			since uint64
			state block.SnapshotID
		}
		have := slices.Repeat([]truth{{since: began}}, chunks)
		index := began
		for range rapid.IntRange(1, 60).Draw(t, "interruptions") {
			index++
			now := truth{index, rapid.SampledFrom(snapshots).Draw(t, "state")}
			at := uint32(rapid.IntRange(1, chunks).Draw(t, "passed"))
			for i := range at {
				have[i] = now
			}
			if at == chunks {
				at = endOfChunks
			}
			c.passed(at, now.since, now.state)
			if len(c.Spans) > maxRebuildSpans || c.Spans[len(c.Spans)-1].Until != endOfChunks {
				t.Fatalf("spans %+v", c.Spans)
			}
			for i := range uint32(chunks) {
				s := c.at(i)
				if s.Since > have[i].since || s.State != (block.SnapshotID{}) && s.State != have[i].state {
					t.Fatalf("chunk %d is %+v, the cursor says %+v", i, have[i], s)
				}
				if i < at && (s.Since != now.since || s.State != now.state) {
					t.Fatalf("chunk %d was passed at %+v, the cursor says %+v", i, now, s)
				}
			}
		}
	})
}

// A cursor that is damaged, or of something else, says nothing.
func TestRebuildCursorThatIsNotItsOwnIsNotBelieved(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	if err := c.write(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the copy has applied something", func() bool { return c.nodes["a"].vol.Applied() > 0 })
	g := c.group("a")
	cursor := g.newRebuildCursor(7)
	cursor.passed(3, 9, block.SnapshotID{5})
	save := func() []byte {
		t.Helper()
		if err := g.saveRebuildCursor(t.Context(), cursor); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(g.cfg.Rebuild.File)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	raw := save()
	if got := g.loadRebuildCursor(); !slices.EqualFunc(got.Spans, cursor.Spans, func(a, b rebuildSpan) bool {
		return a.Until == b.Until && a.Since == b.Since && a.State == b.State
	}) {
		t.Fatalf("read %+v, want %+v", got.Spans, cursor.Spans)
	}
	nothing := func(what string) {
		t.Helper()
		if got := g.loadRebuildCursor(); len(got.Spans) != 1 || got.Spans[0].Since != 0 {
			t.Errorf("%s: %+v", what, got)
		}
	}
	for i := range raw {
		damaged := slices.Clone(raw)
		damaged[i] ^= 2
		if err := os.WriteFile(g.cfg.Rebuild.File, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		nothing("damaged")
	}
	if err := os.WriteFile(g.cfg.Rebuild.File, raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	nothing("cut off")
	for what, change := range map[string]func(c *rebuildCursor){
		"of another LUN":     func(c *rebuildCursor) { c.LUN = "other" },
		"of another history": func(c *rebuildCursor) { c.Epoch++ },
		"of another replica": func(c *rebuildCursor) { c.Replica = "a/2" },
		"of another rebuild": func(c *rebuildCursor) { c.Began++ },
		"of another version": func(c *rebuildCursor) { c.Version++ },
	} {
		kept := *cursor
		change(cursor)
		save()
		nothing(what)
		*cursor = kept
	}
	g.dropRebuildCursor()
	nothing("removed")
	if left, _ := filepath.Glob(g.cfg.Rebuild.File + "*"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// Two hashes that are alike in the 16 bits that travel are told apart by the digest of the group.
func TestHashesAlikeIn16BitsAreToldApart(t *testing.T) {
	const n = 5
	other, want := uint64(2), uint16(hashOf(tagged(n, 1)))
	for uint16(hashOf(tagged(n, other))) != want {
		other++
	}
	toldApart(t, []int{n, n + 1}, n, 1, other, []int{n})
}

// Two digests of a group that are alike in the 32 bits that travel are told apart by the digest of the chunk: also where another group differs, whose
// blocks are fetched first.
func TestDigestsAlikeIn32BitsAreToldApart(t *testing.T) {
	const n, was, other = 5, 3836, 43265
	digest := func(version uint64) uint32 {
		var hashes [groupBlocks]uint64
		hashes[n] = hashOf(tagged(n, version))
		return uint32(groupDigest(1<<n, hashes[:]))
	}
	if digest(was) != digest(other) {
		t.Fatal("the digests of this test are to be alike")
	}
	for name, changed := range map[string][]int{"alone": {n}, "beside another": {n, n + 3*groupBlocks}} {
		t.Run(name, func(t *testing.T) {
			toldApart(t, []int{n, n + 3*groupBlocks, n + block.BlocksPerChunk}, n, was, other, changed)
		})
	}
}

// toldApart has blocks written, some of them again while a copy is away, and looks for one of these on that copy when it has been rebuilt.
func toldApart(t *testing.T, blocks []int, n int, was, other uint64, changed []int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := &cluster{limits: Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 256 << 10}}
	newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
	c.writeAll(ctx, t, blocks, was)
	owner, away := c.awayFor(ctx, t, changed, other)
	c.start(away, false)
	eventually(t, "both copies in sync", func() bool { return c.group(owner).Status().Health == HealthHealthy })
	compareCopies(t, c, "a", "b")
	if v := version(t, c.nodes[away].vol, n); v != other {
		t.Fatalf("block %d is of version %d, want %d", n, v, other)
	}
}

// While a node is in use a rebuild works a set share of the time, alone or with others; while it is not, all of it.
func TestRebuildKeepsToItsShareOfTheTime(t *testing.T) {
	t.Parallel()
	h := &Host{}
	activity := uint64(0)
	h.use.activity = func() uint64 { return activity }
	g := &Group{host: h, cfg: Config{Rebuild: RebuildConfig{BusyPercent: 20}}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer g.cancel()
	work := func(c *comparison, d time.Duration) {
		t.Helper()
		c.worked = time.Now().Add(-d) // it has just worked for d
		if err := c.rest(g.ctx); err != nil {
			t.Error(err)
		}
	}
	idle := &comparison{g: g}
	began := time.Now()
	work(idle, 50*time.Millisecond)
	if took := time.Since(began); took > 25*time.Millisecond {
		t.Errorf("a rebuild pauses %v while nobody is there", took)
	}
	for name, busy := range map[string]func() *comparison{
		"the source is in use": func() *comparison { return &comparison{g: g, busy: true} },
		"this node is in use": func() *comparison {
			h.use.mu.Lock()
			h.use.until = time.Now().Add(time.Minute)
			h.use.mu.Unlock()
			return &comparison{g: g}
		},
	} {
		began := time.Now()
		for range 4 {
			work(busy(), 20*time.Millisecond)
		}
		if took := time.Since(began); took < 4*4*20*time.Millisecond {
			t.Errorf("%s: pauses of %v after 80 ms of work, want four times that", name, took)
		}
	}
	// Two at once have one share between them.
	began = time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 4 {
			work(&comparison{g: g, busy: true}, 20*time.Millisecond)
		}
	}()
	for range 4 {
		work(&comparison{g: g, busy: true}, 20*time.Millisecond)
	}
	<-done
	if took := time.Since(began); took < 8*5*20*time.Millisecond-2*20*time.Millisecond {
		t.Errorf("two rebuilds have worked 160 ms within %v", took)
	}
}

// A node is in use from a few commands a second on, and for a while after.
func TestNodeIsInUseFromAFewCommandsOn(t *testing.T) {
	t.Parallel()
	n := uint64(0)
	u := use{activity: func() uint64 { return n }}
	look := func(ago time.Duration, commands uint64) bool {
		u.busy()
		u.mu.Lock()
		u.looked = time.Now().Add(-ago)
		u.mu.Unlock()
		n += commands
		return u.busy()
	}
	if u.busy() || look(time.Second, 5) {
		t.Error("five commands in a second are use")
	}
	if !look(time.Second, 30) {
		t.Error("thirty commands in a second are none")
	}
	if !look(time.Second, 0) {
		t.Error("it is forgotten at once")
	}
	u.mu.Lock()
	u.until = time.Now().Add(-1)
	u.mu.Unlock()
	if look(time.Second, 0) {
		t.Error("it is never forgotten")
	}
}

// A peer may claim any length for the LUN's name.
func TestRebuildRequestWithALongName(t *testing.T) {
	h := &Host{groups: map[string]*Group{}}
	for n := range 256 {
		req := append([]byte{rebuildWireVersion, byte(n)}, make([]byte, n+48)...)
		if _, _, _, _, err := h.asked(req); !errors.Is(err, errNoReplica) {
			t.Fatalf("a name of %d bytes: %v", n, err)
		}
		if _, _, _, _, err := h.asked(req[:len(req)-1]); err == nil || errors.Is(err, errNoReplica) {
			t.Fatalf("a name of %d bytes, one byte short: %v", n, err)
		}
	}
}
