package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
)

// stage is a LUN whose snapshots are a list, and clocks that a test sets.
type stage struct {
	t     *testing.T
	lun   catalog.LUN
	now   time.Time
	mono  time.Duration
	have  []block.Snapshot
	fail  error
	takes int
}

func newStage(t *testing.T, schedules ...catalog.Schedule) *stage {
	return &stage{
		t: t, lun: catalog.LUN{ID: "00000000-0000-4000-8000-00000000000a", Name: "vm1", Schedules: schedules},
		now: time.Date(2026, 11, 2, 8, 15, 0, 0, time.UTC), // a Monday
	}
}

func (s *stage) schedules() *schedules {
	return &schedules{
		n: &Node{clock: func() time.Time { return s.now }, log: slog.New(slog.DiscardHandler)}, ended: map[string]attempt{},
		steady: func() time.Duration { return s.mono }, owned: func() []*scheduled {
			return []*scheduled{{lun: s.lun, take: s.take, drop: s.drop, have: func() []block.Snapshot { return slices.Clone(s.have) }}}
		},
	}
}

func (s *stage) take(_ context.Context, spec block.SnapshotSpec) error {
	s.takes++
	if s.fail != nil {
		return s.fail
	}
	if !slices.ContainsFunc(s.have, func(x block.Snapshot) bool { return x.ID == spec.ID }) {
		s.have = append(s.have, block.Snapshot{SnapshotSpec: spec, Index: uint64(s.takes)})
	}
	return nil
}

func (s *stage) drop(_ context.Context, x block.Snapshot) error {
	if s.fail != nil {
		return s.fail
	}
	s.have = slices.DeleteFunc(s.have, func(y block.Snapshot) bool { return y.ID == x.ID })
	s.lun.Dropped = append(s.lun.Dropped, x.ID.String())
	return nil
}

// pass lets time pass, in steps at which the schedules are looked at.
func (s *stage) pass(run *schedules, d, step time.Duration) {
	for range d / step {
		s.now, s.mono = s.now.Add(step), s.mono+step
		run.round(s.t.Context())
	}
}

func (s *stage) names() string {
	var out []string
	for _, x := range s.have {
		out = append(out, x.Name)
	}
	return strings.Join(out, " ")
}

func (s *stage) want(names string) {
	s.t.Helper()
	if got := s.names(); got != names {
		s.t.Errorf("at %v there is %q, want %q", s.now, got, names)
	}
}

func hourly(keep int) catalog.Schedule {
	return catalog.Schedule{Prefix: "hourly", Every: 3600, Keep: keep, Since: time.Date(2026, 11, 2, 8, 10, 0, 0, time.UTC).Unix()}
}

func TestSlotsBeginOnMonday(t *testing.T) {
	now := time.Date(2026, 11, 4, 8, 15, 30, 5, time.FixedZone("", 3600))
	for every, want := range map[time.Duration]time.Time{
		time.Minute: time.Date(2026, 11, 4, 7, 15, 0, 0, time.UTC), time.Hour: time.Date(2026, 11, 4, 7, 0, 0, 0, time.UTC),
		24 * time.Hour: time.Date(2026, 11, 4, 0, 0, 0, 0, time.UTC), 7 * 24 * time.Hour: time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC),
	} {
		if got := slotAt(now, every); !got.Equal(want) {
			t.Errorf("every %v: %v, want %v", every, got, want)
		}
		if got := slotAt(want, every); !got.Equal(want) {
			t.Errorf("every %v: the moment itself is %v", every, got)
		}
	}
	if got, want := slotAt(time.Date(1969, 12, 31, 23, 30, 0, 0, time.UTC), time.Hour), time.Date(1969, 12, 31, 23, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("before all time: %v", got)
	}
}

// Each slot gets one snapshot, whoever owns the LUN; the newest ones are kept, and what was taken by hand.
func TestScheduleIsCarriedOnByTheNextOwner(t *testing.T) {
	s := newStage(t, hourly(3))
	first := s.schedules()
	s.pass(first, 44*time.Minute, time.Minute)
	s.want("") // the slot of 8:00 was before there was a schedule
	s.have = append(s.have, block.Snapshot{SnapshotSpec: block.SnapshotSpec{ID: block.SnapshotID{1}, Name: "hourly-20261102T030000Z"}})
	s.pass(first, time.Hour, time.Minute)
	s.want("hourly-20261102T030000Z hourly-20261102T090000Z")
	second := s.schedules() // knows nothing of what the first has done
	s.pass(second, 30*time.Second, time.Second)
	s.want("hourly-20261102T030000Z hourly-20261102T090000Z")
	s.now, s.mono = s.now.Add(3*time.Hour+time.Minute), s.mono+3*time.Hour // nobody owned the LUN
	second.round(t.Context())
	s.want("hourly-20261102T030000Z hourly-20261102T090000Z hourly-20261102T130000Z")
	s.pass(second, 2*time.Hour, time.Minute)
	s.want("hourly-20261102T030000Z hourly-20261102T130000Z hourly-20261102T140000Z hourly-20261102T150000Z")
	if v := second.views(s.lun, s.have); len(v) != 1 || v[0].Last.Hour() != 15 || v[0].Next.Hour() != 16 || v[0].Prefix != "hourly" || v[0].Error != "" {
		t.Errorf("%+v", v)
	}
	if s.takes != 4 {
		t.Errorf("asked for %d snapshots", s.takes)
	}
}

// Two nodes that both believe to own the LUN ask for the same snapshot.
func TestSlotHasOneSnapshot(t *testing.T) {
	a, b := newStage(t, hourly(3)), newStage(t, hourly(3))
	b.now = b.now.Add(3 * time.Second)
	a.pass(a.schedules(), time.Hour, time.Minute)
	b.pass(b.schedules(), time.Hour, time.Minute)
	if len(a.have) != 1 || len(b.have) != 1 || a.have[0].ID != b.have[0].ID || a.have[0].Name != b.have[0].Name {
		t.Errorf("%+v, %+v", a.have, b.have)
	}
	other := newStage(t, hourly(3))
	other.lun.ID = "00000000-0000-4000-8000-00000000000b"
	other.pass(other.schedules(), time.Hour, time.Minute)
	if other.have[0].ID == a.have[0].ID {
		t.Error("another LUN's snapshot has the same ID")
	}
}

func TestSeveralSchedulesKeepToTheirOwn(t *testing.T) {
	daily := catalog.Schedule{Prefix: "daily", Every: 86400, Keep: 2}
	s := newStage(t, daily, hourly(2))
	run := s.schedules()
	s.pass(run, 50*time.Hour, 5*time.Minute)
	s.want("daily-20261103T000000Z daily-20261104T000000Z hourly-20261104T090000Z hourly-20261104T100000Z")
}

// What an operator deletes is not taken again, by no owner.
func TestDeletedSnapshotIsNotTakenAgain(t *testing.T) {
	s := newStage(t, hourly(3))
	s.pass(s.schedules(), time.Hour, time.Minute)
	if err := s.drop(t.Context(), s.have[0]); err != nil {
		t.Fatal(err)
	}
	s.pass(s.schedules(), 30*time.Minute, time.Minute)
	s.want("")
	s.pass(s.schedules(), 30*time.Minute, time.Minute)
	s.want("hourly-20261102T100000Z")
}

// A clock that is set back, or that cannot decide, makes no more than one snapshot for each half of the interval.
func TestClockThatJumpsMakesNoStorm(t *testing.T) {
	s := newStage(t, hourly(1))
	run := s.schedules()
	s.pass(run, 3*time.Hour, time.Minute)
	s.want("hourly-20261102T110000Z")
	takes := s.takes
	s.now = s.now.Add(-5 * 24 * time.Hour) // before there was a schedule
	s.pass(run, time.Hour, time.Minute)
	if s.want("hourly-20261102T110000Z"); s.takes != takes {
		t.Errorf("%d snapshots more", s.takes-takes)
	}
	s.now = s.now.Add(5*24*time.Hour - time.Hour)
	right := s.now
	for n := range 3600 {
		s.now = right.Add(time.Duration(n*37%1000) * time.Hour) // to and fro
		s.mono += time.Second
		run.round(t.Context())
	}
	s.now = right
	if s.takes-takes > 3 {
		t.Errorf("%d snapshots in an hour", s.takes-takes)
	}
	if len(s.have) != 1 {
		t.Errorf("%q", s.names())
	}
	// Set far ahead and back again: it goes on at once, not when the clock gets there again.
	takes = s.takes
	s.mono += time.Hour
	s.now = s.now.Add(1000 * 24 * time.Hour)
	run.round(t.Context())
	s.now = s.now.Add(-1000 * 24 * time.Hour)
	s.pass(run, 3*time.Hour, time.Minute)
	if n := s.takes - takes; n < 3 || n > 5 {
		t.Errorf("%d snapshots in three hours, the first of them at the wrong time", n)
	}
	s.want("hourly-" + slotAt(s.now, time.Hour).Format(nameTime))
}

func TestScheduleThatDoesNotGetOnSaysSo(t *testing.T) {
	s := newStage(t, hourly(1))
	run := s.schedules()
	s.fail = block.ErrNoSpace
	s.pass(run, 50*time.Minute, time.Second)
	if s.takes < 3 || s.takes > 6 { // due for five minutes, tried every minute
		t.Errorf("tried %d times", s.takes)
	}
	alerts := run.alerts()
	if len(alerts) != 1 || alerts[0].Subject != "lun/vm1" || alerts[0].Severity != api.SeverityWarning || !strings.Contains(alerts[0].What, block.ErrNoSpace.Error()) || alerts[0].Next == "" {
		t.Errorf("%+v", alerts)
	}
	if v := run.views(s.lun, s.have); v[0].Error == "" {
		t.Errorf("%+v", v)
	}
	s.fail = nil
	s.pass(run, 2*time.Minute, time.Second)
	s.want("hourly-20261102T090000Z")
	if alerts := run.alerts(); len(alerts) != 0 {
		t.Errorf("%+v", alerts)
	}
	// One that cannot be deleted is an alert as well, and the next is taken all the same.
	s.fail = errors.New("a clone waits for it")
	taken := s.have
	s.pass(run, time.Hour, time.Minute)
	s.have = append(taken, block.Snapshot{SnapshotSpec: slotSpec(s.lun.ID, "hourly", slotAt(s.now, time.Hour), s.now)})
	s.pass(run, 5*time.Minute, time.Minute)
	if alerts := run.alerts(); len(alerts) != 1 || !strings.Contains(alerts[0].What, "cannot be deleted") {
		t.Errorf("%+v", alerts)
	}
}

func TestRangesOfADiffAreJoinedAndCut(t *testing.T) {
	var d api.Diff
	d.SizeBytes = 40960
	for _, r := range []struct{ offset, length int64 }{{0, 4096}, {4096, 4096}, {12288, 8192}, {24576, 4096}, {36864, 8192}} {
		if err := addRange(&d, r.offset, r.length, 2048, 3); err != nil && (!errors.Is(err, errDiffFull) || r.offset != 36864) {
			t.Fatal(err)
		}
	}
	if want := []api.DiffRange{{Offset: 2048, Length: 6144}, {Offset: 12288, Length: 8192}, {Offset: 24576, Length: 4096}}; !slices.Equal(d.Ranges, want) || d.Next != 36864 {
		t.Errorf("%+v", d)
	}
	rest := api.Diff{SizeBytes: 40960}
	for _, r := range []struct{ offset, length int64 }{{24576, 4096}, {36864, 8192}} {
		if err := addRange(&rest, r.offset, r.length, d.Next, 3); err != nil {
			t.Fatal(err)
		}
	}
	if want := []api.DiffRange{{Offset: 36864, Length: 4096}}; !slices.Equal(rest.Ranges, want) || rest.Next != 0 {
		t.Errorf("beyond the end, or behind the start: %+v", rest)
	}
}
