package node

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
)

// Schedules of snapshots are run by each LUN's owner. What has been done is told by the snapshots there are, so a new owner
// goes on where the one before has stopped: a slot is a time at which a snapshot is due, the snapshot's name carries it, and its
// ID is made from LUN, schedule and slot, so that two nodes that both believe they own the LUN make the same one. Only the slot
// that now is in is ever made up for; those that were missed while nobody owned the LUN are not.
//
// The wall clock decides which slot it is, and nothing else. One that jumps makes at most one snapshot more for each half of the
// interval that really passes.

// slotOrigin is a Monday: weekly snapshots are due when a week begins.
var slotOrigin = time.Date(1970, 1, 5, 0, 0, 0, 0, time.UTC)

// slotAt returns the newest time at or before now at which a schedule is due.
func slotAt(now time.Time, every time.Duration) time.Time {
	since := now.Unix() - slotOrigin.Unix()
	seconds := int64(every / time.Second)
	return time.Unix(slotOrigin.Unix()+since-(since%seconds+seconds)%seconds, 0).UTC()
}

// slotSpec is the snapshot of a slot, asked for at now.
func slotSpec(lun, prefix string, slot, now time.Time) block.SnapshotSpec {
	return block.SnapshotSpec{ID: slotID(lun, prefix, slot), Name: prefix + "-" + slot.UTC().Format(nameTime), Created: now.UnixMilli()}
}

func slotID(lun, prefix string, slot time.Time) block.SnapshotID {
	b := fmt.Appendf(nil, "snapshot of a schedule\x00%s\x00%s\x00", lun, prefix)
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(slot.Unix())))
	return block.SnapshotID(sum[:16])
}

// slotOf returns the slot of a snapshot that the schedule has made. One that merely bears such a name has another ID.
func slotOf(lun, prefix string, x block.Snapshot) (time.Time, bool) {
	text, ok := strings.CutPrefix(x.Name, prefix+"-")
	if !ok {
		return time.Time{}, false
	}
	slot, err := time.Parse(nameTime, text)
	return slot, err == nil && x.ID == slotID(lun, prefix, slot)
}

// agenda is what a schedule has to do.
type agenda struct {
	own  []block.Snapshot // that it has made, in the order in which they were
	slot time.Time        // that now is in
	due  bool
	next time.Time // when it is due, or due again
	old  []block.Snapshot
}

func agendaOf(l catalog.LUN, s catalog.Schedule, have []block.Snapshot, now time.Time) agenda {
	a := agenda{slot: slotAt(now, s.Interval())}
	made := false
	for _, x := range have {
		if slot, ok := slotOf(l.ID, s.Prefix, x); ok {
			a.own = append(a.own, x)
			made = made || slot.Equal(a.slot)
		}
	}
	// One that an operator has deleted is not made again.
	dropped := slices.Contains(l.Dropped, slotID(l.ID, s.Prefix, a.slot).String())
	a.due = !made && !dropped && a.slot.Unix() > s.Since
	a.next = a.slot.Add(s.Interval())
	if a.due {
		a.next = a.slot
	}
	// By the order in which they were made, not by their slots: a clock that has gone back must not have the newest deleted.
	a.old = a.own[:max(0, len(a.own)-s.Keep)]
	return a
}

// schedules runs the schedules of the LUNs this node owns.
type schedules struct {
	n *Node
	// owned returns the LUNs this node serves.
	owned func() []*scheduled
	// steady is a clock that does not jump.
	steady func() time.Duration

	mu    sync.Mutex
	ended map[string]attempt // by LUN and prefix: the last attempt of this process
}

// scheduled is a LUN with schedules.
type scheduled struct {
	lun  catalog.LUN
	take func(ctx context.Context, spec block.SnapshotSpec) error
	drop func(ctx context.Context, x block.Snapshot) error
	have func() []block.Snapshot
}

type attempt struct {
	at  time.Duration // by the steady clock
	err error
}

const (
	scheduleTick  = time.Second
	scheduleRetry = time.Minute      // after a failure
	scheduleWait  = 10 * time.Second // for one snapshot to be made or deleted
	schedulesBusy = 8                // LUNs at once
)

func newSchedules(n *Node) *schedules {
	started := time.Now()
	return &schedules{
		n: n, ended: map[string]attempt{}, steady: func() time.Duration { return time.Since(started) },
		owned: func() (out []*scheduled) {
			for _, l := range n.catalog.Model().LUNs {
				if run := n.replicas.get(l.ID); len(l.Schedules) > 0 && run != nil && run.volume != nil && run.group.Serving() {
					out = append(out, &scheduled{
						lun: l, take: run.group.CreateSnapshot, have: run.group.Snapshots,
						drop: func(ctx context.Context, x block.Snapshot) error { return n.dropSnapshot(ctx, run, x) },
					})
				}
			}
			return out
		},
	}
}

// run works until ctx ends.
func (s *schedules) run(ctx context.Context) error {
	tick := time.NewTicker(scheduleTick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.round(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// round does what is due now, and waits until it is done.
func (s *schedules) round(ctx context.Context) {
	slots := make(chan struct{}, schedulesBusy)
	var wg sync.WaitGroup
	for _, l := range s.owned() {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for _, schedule := range l.lun.Schedules {
				s.work(ctx, l, schedule)
			}
		})
	}
	wg.Wait()
}

func (s *schedules) work(ctx context.Context, l *scheduled, schedule catalog.Schedule) {
	now := s.n.clock()
	a := agendaOf(l.lun, schedule, l.have(), now)
	if !a.due && len(a.old) == 0 {
		return
	}
	key, steady := l.lun.ID+" "+schedule.Prefix, s.steady()
	s.mu.Lock()
	last, tried := s.ended[key]
	s.mu.Unlock()
	rest := schedule.Interval() / 2
	if last.err != nil {
		rest = min(rest, scheduleRetry)
	}
	resting := tried && steady-last.at < rest
	if resting && (last.err != nil || len(a.old) == 0) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, scheduleWait)
	defer cancel()
	var err error
	if a.due && !resting {
		spec := slotSpec(l.lun.ID, schedule.Prefix, a.slot, now)
		if err = l.take(ctx, spec); err == nil {
			s.n.log.Info("a snapshot was taken by schedule", "lun", l.lun.Name, "snapshot", spec.Name)
			a = agendaOf(l.lun, schedule, l.have(), now)
		}
		last = attempt{steady, err}
	}
	for _, x := range a.old {
		if derr := l.drop(ctx, x); derr != nil {
			err = fmt.Errorf("snapshot %s, which is not to be kept any longer, cannot be deleted: %w", x.Name, derr)
			last = attempt{steady, err}
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		s.n.log.Warn("a schedule of snapshots could not do its part", "lun", l.lun.Name, "schedule", schedule.Prefix, "error", err)
	}
	s.mu.Lock()
	s.ended[key] = last
	s.mu.Unlock()
}

// views returns a LUN's schedules and what has become of them.
func (s *schedules) views(l catalog.LUN, have []block.Snapshot) []api.ScheduleView {
	var out []api.ScheduleView
	for _, schedule := range l.Schedules {
		a := agendaOf(l, schedule, have, s.n.clock())
		v := api.ScheduleView{Schedule: scheduleView(schedule), Next: a.next}
		if n := len(a.own); n > 0 {
			slot, _ := slotOf(l.ID, schedule.Prefix, a.own[n-1])
			v.Last = &slot
		}
		if err := s.failure(l.ID, schedule.Prefix); err != nil {
			v.Error = err.Error()
		}
		out = append(out, v)
	}
	return out
}

func scheduleView(s catalog.Schedule) api.Schedule {
	return api.Schedule{Prefix: s.Prefix, EverySeconds: s.Every, Keep: s.Keep}
}

// failure returns why the last attempt of this process failed.
func (s *schedules) failure(lun, prefix string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended[lun+" "+prefix].err
}

// alerts tells which schedules of LUNs that are served here do not get on.
func (s *schedules) alerts() []api.Alert {
	var out []api.Alert
	for _, l := range s.owned() {
		for _, schedule := range l.lun.Schedules {
			if err := s.failure(l.lun.ID, schedule.Prefix); err != nil {
				out = append(out, api.Alert{
					Severity: api.SeverityWarning, Subject: "lun/" + l.lun.Name, What: fmt.Sprintf("The schedule %q of its snapshots does not get on: %v", schedule.Prefix, err),
					Data: "The LUN goes on. There is no newer snapshot to go back to than those that are listed.",
					Next: "Delete snapshots that are not needed, or make room in the pool: sanctuary lun snapshot list " + l.lun.Name + ". It is tried again every minute.",
				})
			}
		}
	}
	return out
}

// SetSchedule implements api.SnapshotService.
func (s service) SetSchedule(ctx context.Context, ref string, schedule api.Schedule) error {
	return s.change(ctx, ref, func(l catalog.LUN) catalog.Change {
		return &catalog.SetSchedule{LUN: l.ID, Schedule: catalog.Schedule{
			Prefix: schedule.Prefix, Every: schedule.EverySeconds, Keep: schedule.Keep, Since: s.n.clock().Unix(),
		}}
	})
}

// RemoveSchedule implements api.SnapshotService.
func (s service) RemoveSchedule(ctx context.Context, ref, prefix string) error {
	if prefix != "" {
		m, err := s.n.catalog.Barrier(ctx)
		if err != nil {
			return problem(err)
		}
		l, err := find(m, ref)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(l.Schedules, func(x catalog.Schedule) bool { return x.Prefix == prefix }) {
			p := api.NotFound("LUN %q has no schedule %q", l.Name, prefix)
			p.Next = "List what there is: sanctuary lun snapshot schedule " + l.Name + "."
			return p
		}
	}
	return s.change(ctx, ref, func(l catalog.LUN) catalog.Change { return &catalog.RemoveSchedule{LUN: l.ID, Prefix: prefix} })
}
