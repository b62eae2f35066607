package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// A log on a disk: record n is in block n%logBlocks, and is written after n-1 has been acknowledged. So what a disk holds tells
// whether it is what some moment left behind.
const logBlocks = 64

func record(n uint64) []byte {
	b := make([]byte, 4096)
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], n)
	}
	return b
}

type logged struct {
	t    *testing.T
	disk *initiator.Disk
	last uint64
}

func (l *logged) append(n int) {
	l.t.Helper()
	for range n {
		if err := writeRecord(l.t.Context(), l.disk, l.last+1); err != nil {
			l.t.Fatal(err)
		}
		l.last++
	}
}

func writeRecord(ctx context.Context, d *initiator.Disk, n uint64) error {
	_, err := d.WriteAt(ctx, record(n), int64(n%logBlocks)*4096)
	return err
}

// readLog returns the newest record of a disk, after checking that it holds exactly what the first records left.
func readLog(t *testing.T, d *initiator.Disk) uint64 {
	t.Helper()
	all := make([]byte, logBlocks*4096)
	if _, err := d.ReadAt(t.Context(), all, 0); err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	for i := range logBlocks {
		last = max(last, binary.BigEndian.Uint64(all[i*4096:]))
	}
	for i := range uint64(logBlocks) {
		want := last - (last-i)%logBlocks // the newest record up to last that goes there
		if last < i {
			want = 0
		}
		if got := all[i*4096 : (i+1)*4096]; !bytes.Equal(got, record(want)) {
			t.Fatalf("block %d holds record %d, with the newest record %d it must be %d", i, binary.BigEndian.Uint64(got), last, want)
		}
	}
	return last
}

// snapCluster is three nodes with a LUN vm1.
func snapCluster(t *testing.T, media string) (*cluster, *client.Client, api.LUN) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl := c.client()
	return c, cl, c.create(cl, "vm1", media)
}

func (c *cluster) create(cl *client.Client, name, media string) api.LUN {
	c.t.Helper()
	if _, err := cl.CreateLUN(c.t.Context(), api.LUNSpec{Name: name, SizeBytes: 16 << 20, Media: media, Open: true}, 30*time.Second); err != nil {
		c.t.Fatal(err)
	}
	return c.healthy(cl, name)
}

func (c *cluster) healthy(cl *client.Client, name string) api.LUN {
	c.t.Helper()
	return c.lun(cl, name, func(l api.LUN) bool {
		return l.Health == api.HealthHealthy && len(l.Portals) == 2 && l.View.Source == api.SourceOwner
	})
}

func snapshotOf(t *testing.T, cl *client.Client, lun, name string, with ...string) api.SnapshotSet {
	t.Helper()
	s, err := cl.CreateSnapshot(t.Context(), lun, api.SnapshotSpec{Name: name, With: with})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func cloneOf(t *testing.T, c *cluster, cl *client.Client, of string, spec api.CloneSpec) api.LUN {
	t.Helper()
	spec.Open = true
	if _, err := cl.CloneLUN(t.Context(), of, spec, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	return c.lun(cl, spec.Name, func(l api.LUN) bool {
		return l.Health == api.HealthHealthy && len(l.Portals) == 2 && l.Origin != nil && l.Origin.Waiting == 0
	})
}

func names(t *testing.T, cl *client.Client, lun string) string {
	t.Helper()
	var out []string
	l, err := cl.Snapshots(t.Context(), lun, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range l.Snapshots {
		if x.Space == nil || x.Space.ExclusiveBytes+x.Space.SharedBytes != x.Space.StoredBytes || x.SizeBytes != 16<<20 || x.Space.LogicalBytes != x.SizeBytes {
			t.Errorf("%+v", x)
		}
		out = append(out, x.Name)
	}
	if l.Space == nil || l.Space.Snapshots != len(l.Snapshots) || l.Space.LogicalBytes != 16<<20 {
		t.Errorf("%+v", l.Space)
	}
	return strings.Join(out, " ")
}

func other(node string) string { return map[string]string{"alpha": "beta", "beta": "alpha"}[node] }

// The whole of it: a snapshot under load is a moment of the LUN; it is shown read-only, cloned, gone back to; the clone is a LUN of its
// own; all of that survives the owner and a restart of everything.
func TestSnapshotFromEndToEnd(t *testing.T) {
	for _, media := range []string{"file", "ram"} {
		t.Run(media, func(t *testing.T) { snapshotFromEndToEnd(t, media) })
	}
}

func snapshotFromEndToEnd(t *testing.T, media string) {
	c, cl, l := snapCluster(t, media)
	ctx := t.Context()
	d := openDisk(t, l)
	w := &logged{t: t, disk: d}
	w.append(100)
	var acknowledged atomic.Uint64
	load, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		n := w.last
		for load.Err() == nil {
			if err := writeRecord(ctx, d, n+1); err != nil {
				done <- err
				return
			}
			n++
			acknowledged.Store(n)
		}
		done <- nil
	}()
	until(t, "the load runs", func() bool { return acknowledged.Load() > 110 })
	before := acknowledged.Load()
	snapshotOf(t, cl, "vm1", "golden")
	after := acknowledged.Load() + 1
	until(t, "the load has gone on", func() bool { return acknowledged.Load() > after+20 })
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.last = acknowledged.Load()
	if p := (*api.Problem)(nil); !errors.As(second(cl.CreateSnapshot(ctx, "vm1", api.SnapshotSpec{Name: "golden"})), &p) || p.Code != api.CodeConflict {
		t.Errorf("a second snapshot of that name: %v", p)
	}

	show := cloneOf(t, c, cl, "vm1", api.CloneSpec{Name: "show", Snapshot: "golden", ReadOnly: true})
	if !show.ReadOnly || show.NAA == l.NAA || show.Serial == l.Serial || show.Origin.LUN != "vm1" || show.Origin.Snapshot != "golden" {
		t.Errorf("%+v", show)
	}
	e := openDisk(t, show)
	golden := readLog(t, e)
	if golden < before || golden > after {
		t.Errorf("the snapshot holds record %d, it was taken between %d and %d", golden, before, after)
	}
	var status *initiator.StatusError
	if _, err := e.WriteAt(ctx, record(1), 0); !errors.As(err, &status) || status.Key != scsi.DataProtect || status.Code != 0x2700 {
		t.Errorf("a write to a read-only LUN: %v", err)
	}
	s := dial(t, initiator.Config{Address: show.Portals[0].Address, Target: show.IQN, InitiatorName: ourName})
	ready(t, s)
	mode := make([]byte, 24)
	if r, err := s.Do(ctx, &initiator.Command{CDB: [16]byte{0x1A, 0, 0x3F, 0, 24}, In: mode}); err != nil || r.Err() != nil || mode[2]&0x80 == 0 {
		t.Errorf("MODE SENSE: %x, %v", mode, err)
	}
	s.Close()
	e.Close()

	copied := cloneOf(t, c, cl, "vm1", api.CloneSpec{Name: "copied", Snapshot: "golden"})
	v := &logged{t: t, disk: openDisk(t, copied), last: golden}
	if got := readLog(t, v.disk); got != golden {
		t.Errorf("the clone holds record %d, the snapshot %d", got, golden)
	}
	v.append(7)
	w.append(3)

	if p := (*api.Problem)(nil); !errors.As(second(cl.RollBack(ctx, "vm1", api.RollbackSpec{Snapshot: "golden"})), &p) || p.Code != api.CodeInUse {
		t.Errorf("a rollback under a session: %v", p)
	}
	d.Close()
	v.disk.Close()
	rolled := api.Rollback{}
	until(t, "the sessions are gone", func() (ok bool) {
		var err error
		rolled, err = cl.RollBack(ctx, "vm1", api.RollbackSpec{Snapshot: "golden"})
		var p *api.Problem
		if err != nil && (!errors.As(err, &p) || p.Code != api.CodeInUse) {
			t.Fatal(err)
		}
		return err == nil
	})
	if rolled.Safety == nil || !strings.HasPrefix(rolled.Safety.Name, "before-rollback-") {
		t.Fatalf("%+v", rolled)
	}
	check := func(lun string, want uint64) {
		t.Helper()
		d := openDisk(t, c.lun(cl, lun, api.LUN.Served))
		defer d.Close()
		if got := readLog(t, d); got != want {
			t.Errorf("LUN %s holds record %d, want %d", lun, got, want)
		}
	}
	check("vm1", golden)
	check("copied", golden+7)
	undo := cloneOf(t, c, cl, "vm1", api.CloneSpec{Name: "undo", Snapshot: rolled.Safety.ID[:8]})
	check(undo.Name, w.last)
	all := "golden " + rolled.Safety.Name
	if got := names(t, cl, "vm1"); got != all {
		t.Errorf("snapshots %q, want %q", got, all)
	}

	c.stop(l.Owner)
	c.lun(cl, "vm1", func(x api.LUN) bool { return x.Owner == other(l.Owner) })
	check("vm1", golden)
	check("copied", golden+7)
	check("show", golden)
	if got := names(t, cl, "vm1"); got != all {
		t.Errorf("after the owner's death: snapshots %q, want %q", got, all)
	}
	c.start(l.Owner)
	for _, lun := range []string{"vm1", "copied", "show", "undo"} {
		c.healthy(cl, lun)
	}
	if media == "ram" {
		return // a node that comes back has nothing: it has been rebuilt from the others
	}
	for _, name := range []string{"alpha", "beta", "witness"} {
		c.stop(name)
	}
	c.start("witness", "beta", "alpha")
	cl = c.client()
	check("vm1", golden)
	check("copied", golden+7)
	check("show", golden)
	check("undo", w.last)
	c.healthy(cl, "vm1")
	if got := names(t, cl, "vm1"); got != all {
		t.Errorf("after a restart: snapshots %q, want %q", got, all)
	}
	if err := cl.DeleteSnapshot(ctx, "vm1", "golden"); err != nil {
		t.Fatal(err)
	}
	if err := cl.DeleteLUN(ctx, l.ID, true); err != nil {
		t.Fatal(err)
	}
	check("copied", golden+7)
	check("show", golden)
	// Any node may answer, and hear of the deletion later than another.
	got := c.lun(cl, "copied", func(l api.LUN) bool { return l.Served() && l.Origin != nil && !l.Origin.Exists })
	if got.Origin.LUN != "vm1" {
		t.Errorf("%+v", got.Origin)
	}
}

func second[T any](_ T, err error) error { return err }

// A clone's replica that has lost its storage is rebuilt from the other one, with what the clone began with.
func TestLostReplicaOfACloneIsRebuilt(t *testing.T) {
	c, cl, l := snapCluster(t, "file")
	w := &logged{t: t, disk: openDisk(t, l)}
	w.append(200)
	w.disk.Close()
	copied := cloneOf(t, c, cl, "vm1", api.CloneSpec{Name: "copied"}) // of now
	lost := idle(copied)
	var gone []string
	for _, l := range []api.LUN{l, copied} {
		for _, r := range l.Replicas {
			if r.Node == lost {
				gone = append(gone, r.ID)
			}
		}
	}
	c.stop(lost)
	cfg := c.cfgs[lost]
	for _, dir := range []string{cfg.Pools.File.Dir, filepath.Join(cfg.DataDir, "luns")} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	c.start(lost)
	for _, name := range []string{"vm1", "copied"} {
		c.lun(cl, name, func(l api.LUN) bool {
			return l.Health == api.HealthHealthy && !slices.ContainsFunc(l.Replicas, func(r api.Replica) bool {
				return r.State != "active" || r.Node == lost && (!r.InSync || slices.Contains(gone, r.ID))
			})
		})
	}
	c.stop(other(lost))
	d := openDisk(t, c.lun(cl, "copied", func(l api.LUN) bool { return l.Owner == lost && l.Served() }))
	defer d.Close()
	if got := readLog(t, d); got != 200 {
		t.Errorf("record %d", got)
	}
}

// A snapshot of two LUNs on two owners is one moment: a record that was written to the second after the first had it is in the
// snapshot only if that is.
func TestSnapshotOfSeveralLUNsIsOneMoment(t *testing.T) {
	c, cl, first := snapCluster(t, "ram")
	ctx := t.Context()
	c.create(cl, "vm2", "ram")
	if _, err := cl.MoveLUN(ctx, "vm2", other(first.Owner), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	a, b := openDisk(t, c.healthy(cl, "vm1")), openDisk(t, c.healthy(cl, "vm2"))
	load, stop := context.WithCancel(ctx)
	defer stop()
	var at atomic.Uint64
	done := make(chan error, 1)
	go func() {
		for n := uint64(1); load.Err() == nil; n++ {
			if err := errors.Join(writeRecord(ctx, a, n), writeRecord(ctx, b, n)); err != nil {
				done <- err
				return
			}
			at.Store(n)
		}
		done <- nil
	}()
	for i, name := range []string{"one", "two", "three"} {
		until(t, "the load runs", func() bool { return at.Load() > uint64(50*(i+1)) })
		if s := snapshotOf(t, cl, "vm1", name, "vm2"); s.Held <= 0 || len(s.LUNs) != 2 {
			t.Errorf("%+v", s)
		}
	}
	// One of them cannot be: then there is none, and the load goes on.
	if err := second(cl.CreateSnapshot(ctx, "vm2", api.SnapshotSpec{Name: "mine"})); err != nil {
		t.Fatal(err)
	}
	var p *api.Problem
	if err := second(cl.CreateSnapshot(ctx, "vm1", api.SnapshotSpec{Name: "mine", With: []string{"vm2"}})); !errors.As(err, &p) || p.Code != api.CodeConflict || !strings.Contains(p.Data, "deleted again") {
		t.Errorf("%v %+v", err, p)
	}
	if got := names(t, cl, "vm1"); got != "one two three" {
		t.Errorf("vm1 has %q", got)
	}
	if got := names(t, cl, "vm2"); got != "one two three mine" {
		t.Errorf("vm2 has %q", got)
	}
	n := at.Load()
	until(t, "the load goes on", func() bool { return at.Load() > n+20 })
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	a.Close()
	b.Close()
	for _, name := range []string{"one", "two", "three"} {
		var last [2]uint64
		for i, lun := range []string{"vm1", "vm2"} {
			d := openDisk(t, cloneOf(t, c, cl, lun, api.CloneSpec{Name: lun + "-" + name, Snapshot: name, ReadOnly: true}))
			last[i] = readLog(t, d)
			d.Close()
		}
		if last[0] != last[1] && last[0] != last[1]+1 {
			t.Errorf("snapshot %s: record %d in the first LUN, %d in the second", name, last[0], last[1])
		}
	}
}

// Under --force a rollback pulls the LUN away under a session, which is told.
func TestForcedRollbackIsTold(t *testing.T) {
	c, cl, l := snapCluster(t, "ram")
	ctx := t.Context()
	snapshotOf(t, cl, "vm1", "empty")
	sessions := map[string]*initiator.Session{}
	for _, node := range []string{"alpha", "beta"} {
		sessions[node] = dial(t, initiator.Config{Address: c.cfgs[node].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	}
	owner := c.lun(cl, "vm1", api.LUN.Served).Owner
	ready(t, sessions[owner])
	if err := sessions[owner].Write(ctx, 0, 8, record(1)); err != nil {
		t.Fatal(err)
	}
	sessions[other(owner)].TestUnitReady(ctx) // whatever it is told: it has seen everything until now
	until(t, "the other path has nothing more to be told", func() bool {
		var e *initiator.StatusError
		return errors.As(sessions[other(owner)].TestUnitReady(ctx), &e) && e.Key != scsi.UnitAttention
	})
	r, err := cl.RollBack(ctx, "vm1", api.RollbackSpec{Snapshot: "empty", Force: true, NoSafety: true})
	if err != nil || r.Safety != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	for node, s := range sessions {
		until(t, "the session with "+node+" is told", func() bool {
			var e *initiator.StatusError
			return errors.As(s.TestUnitReady(ctx), &e) && e.Key == scsi.UnitAttention && e.Code == 0x2903
		})
	}
	got := make([]byte, 4096)
	if err := sessions[owner].Read(ctx, 0, 8, got); err != nil || !bytes.Equal(got, make([]byte, 4096)) {
		t.Errorf("%x, %v", got[:8], err)
	}
	if got := names(t, cl, "vm1"); got != "empty" {
		t.Errorf("%q", got)
	}
}

func TestDiffTellsWhatHasChanged(t *testing.T) {
	_, cl, l := snapCluster(t, "ram")
	d := openDisk(t, l)
	defer d.Close()
	ctx := t.Context()
	write := func(blocks ...int64) {
		t.Helper()
		for _, n := range blocks {
			if _, err := d.WriteAt(ctx, record(uint64(n)), n*4096); err != nil {
				t.Fatal(err)
			}
		}
	}
	diff := func(from, to string) (out []api.DiffRange) {
		t.Helper()
		if _, err := cl.Diff(ctx, "vm1", from, to, func(r api.DiffRange) error { out = append(out, r); return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	write(0, 1, 2, 1000)
	snapshotOf(t, cl, "vm1", "monday")
	write(1, 500, 501)
	snapshotOf(t, cl, "vm1", "tuesday")
	write(7)
	for _, c := range []struct {
		from, to string
		want     []api.DiffRange
	}{
		{"monday", "tuesday", []api.DiffRange{{Offset: 4096, Length: 4096}, {Offset: 500 * 4096, Length: 8192}}},
		{"", "monday", []api.DiffRange{{Offset: 0, Length: 3 * 4096}, {Offset: 1000 * 4096, Length: 4096}}},
		{"tuesday", "", []api.DiffRange{{Offset: 7 * 4096, Length: 4096}}},
		{"monday", "monday", nil},
	} {
		if got := diff(c.from, c.to); !slices.Equal(got, c.want) {
			t.Errorf("%q to %q: %v, want %v", c.from, c.to, got, c.want)
		}
	}
	var p *api.Problem
	if _, err := cl.Diff(ctx, "vm1", "monday", "never", func(api.DiffRange) error { return nil }); !errors.As(err, &p) || p.Code != api.CodeNotFound {
		t.Errorf("%v", err)
	}
	l = api.LUN{}
	until(t, "the space has been counted", func() bool { l, _ = cl.LUN(ctx, "vm1"); return l.Space != nil && l.Space.Snapshots == 2 })
	if s := l.Space; s.StoredBytes != 7*4096 || s.ExclusiveBytes != 4096 || s.SharedBytes != 6*4096 || s.SnapshotsBytes != 4096 {
		t.Errorf("%+v", s) // 0 1 2 7 500 501 1000; 7 is only in the LUN, the old 1 only in monday
	}
}

// The schedule is run by whoever owns the LUN, by a clock the test sets; each hour has one snapshot.
func TestScheduleSurvivesTheOwner(t *testing.T) {
	c := newCluster(t)
	var hours atomic.Int64
	c.now = func() time.Time {
		return time.Date(2026, 11, 2, 8, 30, 0, 0, time.UTC).Add(time.Duration(hours.Load()) * time.Hour)
	}
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	l := c.create(cl, "vm1", "file")
	if _, err := cl.SetSchedule(ctx, "vm1", api.Schedule{EverySeconds: 3600, Keep: 1}); err != nil {
		t.Fatal(err)
	}
	have := func() string {
		l, err := cl.Snapshots(ctx, "vm1", false)
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, x := range l.Snapshots {
			out = append(out, x.Name+"/"+x.Schedule)
		}
		return strings.Join(out, " ")
	}
	hours.Store(1)
	until(t, "the first is taken", func() bool { return have() == "hourly-20261102T090000Z/hourly" })
	hours.Store(2) // the first owner would rest for half an hour, by another clock: see TestClockThatJumpsMakesNoStorm
	// On a busy machine it may be another by now.
	l = c.lun(cl, "vm1", func(l api.LUN) bool { return l.Owner != "" })
	c.stop(l.Owner)
	until(t, "the next owner takes the second, and deletes the first", func() bool { return have() == "hourly-20261102T100000Z/hourly" })
	c.start(l.Owner)
	c.healthy(cl, "vm1")
	if l, err := cl.Schedules(ctx, "vm1"); err != nil || len(l.Schedules) != 1 || l.Schedules[0].Last == nil || l.Schedules[0].Last.Hour() != 10 || l.Schedules[0].Next.Hour() != 11 {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := cl.RemoveSchedule(ctx, "vm1", "hourly"); err != nil {
		t.Fatal(err)
	}
	if l, err := cl.LUN(ctx, "vm1"); err != nil || len(l.Schedules) != 0 || have() != "hourly-20261102T100000Z/" {
		t.Errorf("%+v, %v, %s", l.Schedules, err, have())
	}
}

// While a node is down a clone is served from the others, and holds the snapshot until its copy there has been made.
func TestCloneWaitsForANodeThatIsDown(t *testing.T) {
	c, cl, l := snapCluster(t, "file")
	ctx := t.Context()
	w := &logged{t: t, disk: openDisk(t, l)}
	w.append(150)
	snapshotOf(t, cl, "vm1", "golden")
	w.append(30)
	w.disk.Close()
	down := idle(l)
	c.stop(down)
	if _, err := cl.CloneLUN(ctx, "vm1", api.CloneSpec{Name: "copied", Snapshot: "golden", Open: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	served := c.lun(cl, "copied", func(l api.LUN) bool { return l.Served() && l.Origin.Waiting == 1 })
	v := &logged{t: t, disk: openDisk(t, served), last: 150}
	if got := readLog(t, v.disk); got != 150 {
		t.Errorf("record %d", got)
	}
	v.append(20)
	v.disk.Close()
	var p *api.Problem
	if err := cl.DeleteSnapshot(ctx, "vm1", "golden"); !errors.As(err, &p) || p.Code != api.CodeConflict || !strings.Contains(p.Detail, "copied") {
		t.Errorf("the snapshot a clone waits for: %v", err)
	}
	if err := cl.DeleteLUN(ctx, l.ID, true); !errors.As(err, &p) || p.Code != api.CodeConflict {
		t.Errorf("the LUN a clone waits for: %v", err)
	}
	c.start(down)
	c.lun(cl, "copied", func(l api.LUN) bool { return l.Health == api.HealthHealthy && l.Origin.Waiting == 0 })
	if err := cl.DeleteSnapshot(ctx, "vm1", "golden"); err != nil {
		t.Fatal(err)
	}
	c.stop(other(down))
	d := openDisk(t, c.lun(cl, "copied", func(l api.LUN) bool { return l.Owner == down && l.Served() }))
	defer d.Close()
	if got := readLog(t, d); got != 170 {
		t.Errorf("from the copy that was made late: record %d", got)
	}
}
