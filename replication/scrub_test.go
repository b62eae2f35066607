package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// scrubbed is a cluster whose scrubs begin a pass every interval and read as much as they like, unless rate says otherwise.
func scrubbed(t *testing.T, interval time.Duration, rate int64, nodes ...string) *cluster {
	t.Helper()
	c := &cluster{}
	c.scrub = func(node string) ScrubConfig {
		return ScrubConfig{
			Settings: func() ScrubSettings { return ScrubSettings{BytesPerSecond: rate, Interval: interval} },
			File:     filepath.Join(c.dir, node, "scrub.json"), Retry: 50 * time.Millisecond,
		}
	}
	return newClusterWith(t, c, blockstore.MediaFile, nodes...)
}

func TestScrubRepairsWhatNobodyReads(t *testing.T) {
	c := scrubbed(t, time.Millisecond, 1<<40, "a", "b", "w")
	owner := c.owner()
	blocks := []int{0, 1, 70, 500, 16383} // the last is the volume's last
	for _, n := range blocks {
		c.mustWrite(n, uint64(1000+n))
	}
	eventually(t, "the other copy has them", func() bool { return c.sound(other(owner), 16383, 17383) })
	for i, n := range blocks {
		c.rot([]string{"a", "b"}[i%2], n)
	}
	for i, n := range blocks {
		node := []string{"a", "b"}[i%2]
		eventually(t, fmt.Sprintf("block %d is repaired on %s", n, node), func() bool { return c.sound(node, n, uint64(1000+n)) })
	}
	eventually(t, "a pass is complete", func() bool { return !c.group(owner).ScrubStatus().Completed.IsZero() })
}

func TestScrubServesAndRepairsUnderLoad(t *testing.T) {
	c := scrubbed(t, time.Millisecond, 1<<40, "a", "b", "w")
	owner := c.owner()
	const blocks = 192 // three chunks
	var versions [blocks]atomic.Uint64
	for n := range blocks {
		c.mustWrite(n, 1)
		versions[n].Store(1)
	}
	eventually(t, "the other copy has it", func() bool { return c.sound(other(owner), blocks-1, 1) })
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	var reads, wrong atomic.Int64
	for w := range 3 { // each writes and reads the blocks n with n%4 == w; those with n%4 == 3 stay as they are
		load.Go(func() {
			g, buf := c.group(owner), make([]byte, block.Size)
			for ctx.Err() == nil {
				n := 4*rand.IntN(blocks/4) + w
				version := versions[n].Load()
				if rand.IntN(2) == 0 {
					if g.Write(context.Background(), g.Fence(), blockRange(n), tagged(n, version+1)) == nil {
						versions[n].Store(version + 1)
					}
					continue
				}
				if err := g.Read(context.Background(), blockRange(n), buf); err != nil {
					t.Errorf("read of block %d: %v", n, err)
					return
				}
				if v, err := untag(n, buf); err != nil || v != version {
					wrong.Add(1)
				}
				reads.Add(1)
			}
		})
	}
	rotten := map[string]uint64{}
	for round := range 12 {
		node, n := []string{"a", "b"}[round%2], 4*(round*4)+3
		c.rot(node, n)
		rotten[node]++
		eventually(t, fmt.Sprintf("block %d is repaired on %s", n, node), func() bool { return c.sound(node, n, 1) })
	}
	cancel()
	load.Wait()
	if wrong.Load() != 0 || reads.Load() == 0 {
		t.Errorf("%d of %d reads returned something else than was written", wrong.Load(), reads.Load())
	}
	for node, n := range rotten {
		if s := c.group(node).Status().Repair; s.Repaired != n || s.Unrepaired != 0 {
			t.Errorf("%s counted %+v, %d blocks were damaged", node, s, n)
		}
	}
}

func TestScrubRepairsChecksums(t *testing.T) {
	c := scrubbed(t, time.Millisecond, 1<<40, "a", "b", "w")
	c.owner()
	for n := range 8 {
		c.mustWrite(n, 9)
	}
	for i, node := range []string{"a", "b"} {
		eventually(t, "it is there", func() bool { return c.sound(node, 2+i, 9) })
		if _, err := c.nodes[node].vol.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.rotSum(node, 2+i)
		c.owner()
		// By the scrub of this copy, or by the owner's comparison, or by both where they meet it at the same moment.
		eventually(t, "its checksum is right again", func() bool { return c.sound(node, 2+i, 9) && c.group(node).Status().Repair.Repaired > 0 })
	}
	c.mustRead(2, 9)
	c.mustRead(3, 9)
	if owner := c.owner(); c.group(owner).ScrubStatus().Diverged != 0 {
		t.Errorf("a damaged checksum is reported as a difference: %+v", c.group(owner).ScrubStatus())
	}
}

// lyingStore stores something else than it is told in some blocks, with a checksum that matches it: what a fault in memory
// or in the program would do.
type lyingStore struct {
	Store
	mu  sync.Mutex
	lie map[int]uint64 // block -> version it stores, or missed
}

// missed is the version of what a lyingStore does not store at all.
const missed = ^uint64(0)

func (s *lyingStore) honest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.lie)
}

func (s *lyingStore) Apply(index uint64, ops []block.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(ops)
	for i, op := range ops {
		n := int(op.Range.Start / block.SectorsPerBlock)
		v, lies := s.lie[n]
		switch {
		case !lies || op.Kind != block.OpWrite || op.Range.Count != block.SectorsPerBlock:
		case v == missed:
			out[i].Kind = 0
		default:
			data := tagged(n, v)
			out[i].Data, out[i].Sums = data, []uint32{block.Sum(data)}
		}
	}
	return s.Store.Apply(index, slices.DeleteFunc(out, func(op block.Op) bool { return op.Kind == 0 }))
}

// lying is a cluster of such stores whose scrubs are paused until begin is set.
func lying(t *testing.T, nodes ...string) (_ *cluster, stores map[string]*lyingStore, begin *atomic.Bool) {
	t.Helper()
	begin = new(atomic.Bool)
	stores = map[string]*lyingStore{}
	c := &cluster{}
	c.wrapStore = func(node string, v Store) Store {
		stores[node] = &lyingStore{Store: v, lie: map[int]uint64{}}
		return stores[node]
	}
	c.scrub = func(string) ScrubConfig {
		return ScrubConfig{
			Settings: func() ScrubSettings {
				return ScrubSettings{BytesPerSecond: 1 << 40, Interval: time.Hour, Paused: !begin.Load()}
			},
			Retry: 50 * time.Millisecond,
		}
	}
	return newClusterWith(t, c, blockstore.MediaFile, nodes...), stores, begin
}

func TestComparisonFindsWhatMatchesItsChecksum(t *testing.T) {
	for _, tc := range []struct {
		name  string
		nodes []string
		liar  func(owner string) string
	}{
		{"two copies, the other one", []string{"a", "b", "w"}, other},
		{"three copies, another one", []string{"a", "b", "c"}, other},
		{"three copies, the owner", []string{"a", "b", "c"}, func(owner string) string { return owner }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, stores, begin := lying(t, tc.nodes...)
			owner := c.owner()
			liar := tc.liar(owner)
			stores[liar].lie[130] = 666
			for n := range 200 {
				c.mustWrite(n, 5)
			}
			eventually(t, "the wrong block is stored", func() bool { return c.sound(liar, 130, 666) })
			stores[liar].honest()
			g := c.group(owner)
			eventually(t, "every copy can be compared", func() bool {
				peers, err := g.comparable(chunkKey{})
				return err == nil && len(peers) == len(c.members)-1-witnesses(c.members) && c.exact()
			})
			begin.Store(true)
			if err := g.StartScrub(context.Background()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the difference is found and settled", func() bool {
				f := g.ScrubStatus().Findings
				return len(f) > 0 && f[0].Repaired
			})
			found := g.ScrubStatus().Findings[0]
			if found.Chunk != 2 || !slices.Equal(found.Blocks, []uint32{2}) || !slices.Equal(found.Replicas, []string{liar + "/1"}) || !found.Repaired {
				t.Errorf("found %v: %+v", found, struct{ D any }{[]any{found.Chunk, found.Blocks, found.Replicas, found.Kept, found.Repaired, found.Error}})
			}
			eventually(t, "it is as the others have it", func() bool { return c.sound(liar, 130, 5) })
			c.mustRead(130, 5)
			eventually(t, "all of the LUN has been compared", func() bool { return g.ScrubStatus().Compared >= 256 })
			if s := g.ScrubStatus(); s.Diverged != 1 || s.Mended != 1 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// A copy went wrong before a snapshot was taken, and the block has been overwritten since: only the snapshot shows it.
func TestComparisonLooksAtSnapshots(t *testing.T) {
	for _, tc := range []struct {
		name  string
		nodes []string
		liar  func(owner string) string
	}{
		{"two copies, the other one", []string{"a", "b", "w"}, other},
		{"three copies, the owner", []string{"a", "b", "c"}, func(owner string) string { return owner }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, stores, begin := lying(t, tc.nodes...)
			owner := c.owner()
			liar := tc.liar(owner)
			stores[liar].lie[130] = 666
			for n := range 200 {
				c.mustWrite(n, 5)
			}
			eventually(t, "the wrong block is stored", func() bool { return c.sound(liar, 130, 666) })
			stores[liar].honest()
			g, id := c.group(owner), block.SnapshotID{1, 2, 3}
			mustSnapshot(t, g, id)
			c.mustWrite(130, 6)
			eventually(t, "every copy can be compared", func() bool {
				peers, err := g.comparable(chunkKey{})
				return err == nil && len(peers) == len(c.members)-1-witnesses(c.members) && c.exact()
			})
			begin.Store(true)
			if err := g.StartScrub(context.Background()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the difference is found and settled", func() bool {
				f := g.ScrubStatus().Findings
				return len(f) > 0 && f[0].Repaired
			})
			found := g.ScrubStatus().Findings[0]
			if found.Snapshot != id.String() || found.Chunk != 2 || !slices.Equal(found.Blocks, []uint32{2}) || !slices.Equal(found.Replicas, []string{liar + "/1"}) {
				t.Errorf("found %+v", struct{ D Divergence }{found})
			}
			c.sameEverywhere(t, id, 130, 5, 6)
			eventually(t, "all of both has been compared", func() bool { return g.ScrubStatus().Compared >= 512 })
			if s := g.ScrubStatus(); s.Diverged != 1 || s.Mended != 1 || s.Waits != "" {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// sameEverywhere waits until a block has one version in a snapshot and one in the live contents on every copy.
func (c *cluster) sameEverywhere(t *testing.T, id block.SnapshotID, at int, snapshot, live uint64) {
	t.Helper()
	for node, n := range c.nodes {
		if n.vol == nil {
			continue
		}
		eventually(t, "the snapshot is the same everywhere", func() bool {
			v, err := n.vol.View(id)
			buf := make([]byte, block.Size)
			if err != nil || v.ReadAt(blockRange(at), buf) != nil {
				return false
			}
			version, err := untag(at, buf)
			return err == nil && version == snapshot
		})
		eventually(t, "and so are the live contents", func() bool { return c.sound(node, at, live) })
	}
}

// A copy missed a write after a snapshot, so it reads the block from where the snapshot has it: that place must not be written.
func TestWriteThatWasMissedAfterASnapshotIsMadeUpForBesideIt(t *testing.T) {
	c, stores, begin := lying(t, "a", "b", "w")
	owner := c.owner()
	liar := other(owner)
	for n := range 200 {
		c.mustWrite(n, 5)
	}
	g, id := c.group(owner), block.SnapshotID{1, 2, 3}
	mustSnapshot(t, g, id)
	stores[liar].mu.Lock()
	stores[liar].lie[130] = missed
	stores[liar].mu.Unlock()
	c.mustWrite(130, 6)
	eventually(t, "every copy can be compared", func() bool {
		peers, err := g.comparable(chunkKey{snapshot: id})
		return err == nil && len(peers) == 1 && c.exact() && c.nodes[liar].vol.Applied() == c.nodes[owner].vol.Applied()
	})
	stores[liar].honest()
	if !c.sound(liar, 130, 5) {
		t.Fatal("the write was not missed")
	}
	begin.Store(true)
	if err := g.StartScrub(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all has been compared", func() bool { return g.ScrubStatus().Compared >= 512 })
	eventually(t, "the difference is settled", func() bool {
		f := g.ScrubStatus().Findings
		return len(f) > 0 && f[len(f)-1].Repaired
	})
	c.sameEverywhere(t, id, 130, 5, 6)
	if s := g.ScrubStatus(); s.Diverged != 1 || s.Mended != 1 || s.Findings[0].Snapshot != "" {
		t.Errorf("status %+v", s)
	}
}

func TestCompareRequestIsReadAsItWasWritten(t *testing.T) {
	for _, q := range []compareRequest{
		{kind: compareDigests, index: 7, lun: "lun"},
		{kind: compareRecord, first: chunkKey{chunk: 9}, index: 1 << 40, lun: "lun"},
		{kind: compareDigests, first: chunkKey{block.SnapshotID{1}, 3}, index: 5, chunks: 64, lun: "lun"},
		{kind: compareRecord, first: chunkKey{block.SnapshotID{15: 1}, 3}, chunks: 1},
	} {
		raw := q.encode()
		if got, err := decodeCompareRequest(raw); err != nil || got != q {
			t.Errorf("%+v became %+v, %v", q, got, err)
		}
		for n := range len(raw) - len(q.lun) {
			if _, err := decodeCompareRequest(raw[:n]); err == nil {
				t.Errorf("%d of %d bytes of %+v pass", n, len(raw), q)
			}
		}
	}
	for _, raw := range [][]byte{
		{0: 2, 15: 0}, {0: compareVersion, 1: 4, 39: 0}, {0: compareVersion, 1: compareSnapshot, 39: 0}, make([]byte, maxCompareRequestBytes+1),
	} {
		if q, err := decodeCompareRequest(raw); err == nil {
			t.Errorf("%x passes as %+v", raw, q)
		}
	}
}

func witnesses(members []Member) (n int) {
	for _, m := range members {
		if m.Witness {
			n++
		}
	}
	return n
}

// exact says whether every copy is.
func (c *cluster) exact() bool {
	for _, n := range c.nodes {
		if n.vol != nil && !n.group.exact(context.Background()) {
			return false
		}
	}
	return true
}

func TestDifferenceIsNotDecidedWithoutEveryCopy(t *testing.T) {
	c, stores, begin := lying(t, "a", "b", "c")
	owner := c.owner()
	stores[owner].lie[130] = 666
	c.mustWrite(130, 5)
	stores[owner].honest()
	g := c.group(owner)
	eventually(t, "every copy can be compared", func() bool { peers, err := g.comparable(chunkKey{}); return err == nil && len(peers) == 2 && c.exact() })
	third := "a"
	for third == owner {
		third = string(third[0] + 1)
	}
	c.stop(third)
	eventually(t, "one is known to be gone", func() bool { peers, err := g.comparable(chunkKey{}); return err == nil && len(peers) == 1 })
	begin.Store(true)
	if err := g.StartScrub(context.Background()); err == nil {
		t.Error("a scrub was begun on a node that is down")
	}
	eventually(t, "the difference is found", func() bool { return len(g.ScrubStatus().Findings) > 0 })
	if f := g.ScrubStatus().Findings[0]; f.Repaired || f.Error == "" {
		t.Errorf("two of three decided: %+v", struct{ D Divergence }{f})
	}
	c.start(third, false)
	eventually(t, "the majority has decided", func() bool { return c.sound(owner, 130, 5) })
}

func TestWhatCouldNotBeComparedIsMadeUpFor(t *testing.T) {
	c, stores, begin := lying(t, "a", "b", "w")
	owner := c.owner()
	stores[owner].lie[130] = 666
	c.mustWrite(130, 5)
	stores[owner].honest()
	g := c.group(owner)
	eventually(t, "the other copy can be compared", func() bool { peers, err := g.comparable(chunkKey{}); return err == nil && len(peers) == 1 && c.exact() })
	c.stop(other(owner))
	eventually(t, "it is known to be gone", func() bool { _, err := g.comparable(chunkKey{}); return err != nil })
	begin.Store(true)
	eventually(t, "a pass has been made without it", func() bool { return !g.ScrubStatus().Completed.IsZero() })
	if s := g.ScrubStatus(); s.Compared != 0 || s.Waits == "" {
		t.Errorf("with the other copy gone: %+v", s)
	}
	c.start(other(owner), false)
	eventually(t, "the copies are the same before the next pass", func() bool { return c.sound(other(owner), 130, 666) })
}

func TestCopiesAreNotComparedWhileOneMayNotKnowHow(t *testing.T) {
	c, _, _ := lying(t, "a", "b", "w")
	owner := c.owner()
	g := c.group(owner)
	eventually(t, "the other replica has answered", func() bool { peers, err := g.comparable(chunkKey{}); return err == nil && len(peers) == 1 })
	g.Learn([]Member{{ID: "old/9", Node: "old"}})
	if peers, err := g.comparable(chunkKey{}); err == nil {
		t.Errorf("with a member that has never answered %v would be compared", peers)
	}
}

func TestJudgeFollowsTheMajorityAndElseTheOwner(t *testing.T) {
	with := func(sums ...uint32) []*chunkRecord {
		var out []*chunkRecord
		for _, s := range sums {
			r := &chunkRecord{known: true}
			r.sums[9] = s
			out = append(out, r)
		}
		return out
	}
	for _, tc := range []struct {
		sums   []uint32
		wrong  []uint64
		source int
	}{
		{[]uint32{1, 1}, []uint64{0, 0}, 0},
		{[]uint32{1, 2}, []uint64{0, 1 << 9}, 0},
		{[]uint32{1, 1, 2}, []uint64{0, 0, 1 << 9}, 0},
		{[]uint32{1, 2, 2}, []uint64{1 << 9, 0, 0}, 1},
		{[]uint32{1, 2, 3}, []uint64{0, 1 << 9, 1 << 9}, 0},
		{[]uint32{1, 2, 2, 1}, []uint64{0, 1 << 9, 1 << 9, 0}, 0},
	} {
		wrong, source := judge(with(tc.sums...))
		if !reflect.DeepEqual(wrong, tc.wrong) || source[9] != tc.source {
			t.Errorf("%v: wrong %v, taken from %d; want %v, %d", tc.sums, wrong, source[9], tc.wrong, tc.source)
		}
	}
}

func TestPacerKeepsTheRateOverAll(t *testing.T) {
	var p pacer
	now := time.Unix(1000, 0)
	waited := time.Duration(0)
	for range 1000 {
		waited += p.take(now.Add(waited), 1<<20, 32<<20)
	}
	if want := 1000 * time.Second / 32; waited < want-time.Millisecond || waited > want+time.Millisecond {
		t.Errorf("1000 MiB at 32 MiB/s take %v", waited)
	}
	if d := p.take(now.Add(waited+time.Hour), 32<<20, 32<<20); d != time.Second {
		t.Errorf("after an hour of rest 32 MiB take %v: what was not used is not made up for", d)
	}
}

func TestScrubKeepsToItsRateAndGoesOnWhereItWas(t *testing.T) {
	const rate = 4 << 20
	c := scrubbed(t, time.Hour, rate, "a")
	c.owner()
	for n := 0; n < 64*64; n += 64 { // 64 chunks: 16 MiB, 4 s
		c.mustWrite(n, 1)
	}
	g := c.group("a")
	if err := g.StartScrub(context.Background()); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	eventually(t, "2 MiB are read", func() bool { return g.ScrubStatus().Bytes >= 2<<20 })
	if took := time.Since(started); took < 400*time.Millisecond {
		t.Errorf("2 MiB at 4 MiB/s took %v", took)
	}
	c.stop("a")
	raw, err := os.ReadFile(filepath.Join(c.dir, "a", "scrub.json"))
	var kept scrubCursor
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if err != nil || !kept.Running || kept.Chunk < 8 {
		t.Fatalf("kept %+v, %v", kept, err)
	}
	c.start("a", false)
	c.owner()
	g = c.group("a")
	eventually(t, "it is read on", func() bool { return g.ScrubStatus().Bytes > kept.Bytes })
	if s := g.ScrubStatus(); !s.Started.Equal(kept.Started) || s.Bytes > kept.Bytes+4<<20 {
		t.Errorf("went on with %+v", s)
	}

	c.stop("a")
	if err := os.WriteFile(filepath.Join(c.dir, "a", "scrub.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start("a", false)
	c.owner()
	eventually(t, "it begins again", func() bool { s := c.group("a").ScrubStatus(); return s.Running && s.Started.After(kept.Started) })
}
