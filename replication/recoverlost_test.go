package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/replication/journal"
)

// atJournal does something to a replica's log while nobody else has it open.
func (c *cluster) atJournal(node string, do func(j journal.Log) error) {
	c.t.Helper()
	j, err := journal.Open(c.journalFolder(node), journal.Options{SegmentBytes: 1 << 20})
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := j.Log("replica")
	if err != nil {
		c.t.Fatal(err)
	}
	if err := errors.Join(do(l), l.Close(), j.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// hasAll waits until a copy's volume has all that the owner's has, and so every write that was answered.
func (c *cluster) hasAll(node string) {
	c.t.Helper()
	owner := c.owner()
	eventually(c.t, node+" has it", func() bool { return c.nodes[node].vol.Applied() >= c.nodes[owner].vol.Applied() })
}

// onlyOne leaves only b's copy of a LUN with so many blocks of version 1, which b's volume holds, and stops it.
func onlyOne(t *testing.T, writes int) *cluster {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	for n := range writes {
		if err := c.write(t.Context(), n, 1); err != nil {
			t.Fatal(err)
		}
	}
	c.hasAll("b")
	for _, n := range []string{"a", "w", "b"} {
		c.stop(n)
	}
	return c
}

// wantServed waits until b serves with so many blocks of version 1, and finds that what is written from then on is still there after a restart.
func (c *cluster) wantServed(blocks int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	eventually(c.t, "it serves", func() bool { return c.group("b").Status().Serving })
	want := func(n int, version uint64) {
		c.t.Helper()
		if v, err := c.read(n); err != nil || v != version {
			c.t.Fatalf("block %d: version %d, %v; want %d", n, v, err, version)
		}
	}
	for n := range blocks {
		want(n, 1)
	}
	for n := range 5 {
		if err := c.write(ctx, n, 2); err != nil {
			c.t.Fatal(err)
		}
		want(n, 2)
	}
	c.stop("b")
	c.start("b", false)
	eventually(c.t, "it serves again", func() bool { return c.group("b").Status().Serving })
	for n := range blocks {
		version := uint64(1)
		if n < 5 {
			version = 2
		}
		want(n, version)
	}
}

// A copy that has given up its damaged log must not vote before it has again what it once had. When it is all that is left, and an operator has it go on, it never
// will; it says what it lacks, and serves. What its volume holds beyond the end of its log stays, and nothing new is taken for old.
func TestRecoveryLiftsWhatACopyMustReach(t *testing.T) {
	c := onlyOne(t, 20)
	var last uint64
	c.atJournal("b", func(j journal.Log) error { // giveUpLog, and killed behind it
		at, err := lastOf(j)
		last = at.Index + 100 // of which the volume has nothing
		return errors.Join(err, j.SetUint64([]byte(keyMustReach), last), j.Reset())
	})
	c.start("b", false)
	s, err := c.group("b").Survey()
	if err != nil {
		t.Fatal(err)
	}
	if s.Reach != last || s.Sound.Index != c.nodes["b"].vol.Durable() || s.Sound.Index <= s.Last.Index {
		t.Errorf("what it knows to be missing: %+v", s)
	}
	c.stop("b")
	c.newHistory("b")
	c.start("b", false)
	c.wantServed(20)
	if at, err := c.group("b").Survey(); err != nil || at.Reach != 0 {
		t.Errorf("it must still reach %d, %v", at.Reach, err)
	}
}

// The same where the mark and the log are all gone but for the volume, which is whole: what comes next goes behind all that it has.
func TestRecoveryGoesOnBehindTheVolume(t *testing.T) {
	self := Member{ID: "b/1", Node: "b"}
	j := journal.NewMemory()
	if err := j.StoreLog(&raft.Log{Index: 1, Term: 3}); err != nil {
		t.Fatal(err)
	}
	if cut, err := Recover(j, stillStore{durable: 40}, Recovery{LUN: testLUN, Epoch: 2, Self: self}); err != nil || cut != 0 {
		t.Fatal(cut, err)
	}
	meta, body, ok := j.Snapshots().Newest()
	if at, err := MarkedIndex(body); !ok || err != nil || at != 40 || meta.Index != 40 || meta.Term != 3 {
		t.Errorf("%+v, durable to %d, %v", meta, at, err)
	}
	first, err := j.FirstIndex()
	if last, err2 := lastOf(j); err != nil || err2 != nil || first != 41 || last.Index != 41 || last.Term <= termGap {
		t.Errorf("the log begins with %d and ends at %+v, %v, %v", first, last, err, err2)
	}
}

// crashed leaves only b's copy, with early blocks in its last checkpoint and late ones in its log alone.
func crashed(t *testing.T, early, late int) *cluster {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	write := func(from, to int) {
		t.Helper()
		for n := from; n < to; n++ {
			if err := c.write(t.Context(), n, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	whole := func() {
		eventually(t, "in sync", func() bool { return c.group(c.owner()).Status().Health == HealthHealthy })
	}
	whole()
	write(0, early)
	c.stop("b")
	pool, kept := filepath.Join(c.dir, "b", "pool"), filepath.Join(t.TempDir(), "pool")
	if err := os.CopyFS(kept, os.DirFS(pool)); err != nil {
		t.Fatal(err)
	}
	c.start("b", false)
	whole()
	write(early, early+late)
	whole()
	c.hasAll("b")
	for _, n := range []string{"a", "w", "b"} {
		c.stop(n)
	}
	if err := errors.Join(os.RemoveAll(pool), os.CopyFS(pool, os.DirFS(kept))); err != nil { // what it would be after a crash
		t.Fatal(err)
	}
	return c
}

// The only copy left has a log with damage in the middle, beyond what its volume has. By itself it serves nothing, for there is nobody to fetch the entry from. Recovered by
// force it keeps what comes before, says that the rest is lost, and goes on.
func TestRecoveryCutsOffADamagedLog(t *testing.T) {
	const early, late, bad = 10, 20, 17
	c := crashed(t, early, late)
	c.spoil("b", bad, 1)
	c.start("b", false)
	s, err := c.group("b").Survey()
	if err != nil {
		t.Fatal(err)
	}
	if s.Damaged != 1 || len(s.DamagedAt) != 1 || s.Holds() != (Position{s.Last.Term, s.DamagedAt[0] - 1}) || s.Last.Index < s.DamagedAt[0]+late+early-bad-1 {
		t.Fatalf("what it knows of the damage: %+v", s)
	}
	if c.group("b").Status().Serving {
		t.Fatal("a copy with a damaged log serves")
	}
	c.stop("b")
	c.newHistory("b")
	c.start("b", false)
	c.wantServed(bad)
	for n := bad; n < early+late; n++ {
		if v, err := c.read(n); err != nil || v != 0 {
			t.Fatalf("block %d, which was lost, is of version %d, %v", n, v, err)
		}
	}
	if s, err := c.group("b").Survey(); err != nil || s.Damaged != 0 {
		t.Errorf("%d entries are damaged, %v", s.Damaged, err)
	}
}

// Damage to what the volume has already loses nothing.
func TestRecoveryLosesNothingThatTheVolumeHas(t *testing.T) {
	for _, bad := range []int{7, 19} {
		c := onlyOne(t, 20)
		c.spoil("b", bad, 1)
		c.newHistory("b")
		c.start("b", false)
		c.wantServed(20)
	}
}

func TestRecoveryOfADamagedLogMayBeRepeated(t *testing.T) {
	c := crashed(t, 10, 20)
	c.spoil("b", 17, 1)
	for range 3 {
		c.newHistory("b")
		c.atJournal("b", func(j journal.Log) error {
			_, err := Recover(j, stillStore{durable: 3}, Recovery{LUN: testLUN, Epoch: 2, Self: c.member("b")})
			return err
		})
	}
	c.spoil("b", 14, 1) // what is met between
	c.start("b", false)
	c.wantServed(14)
}
