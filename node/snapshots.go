package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/replication"
)

// snapshots is what is needed of a replica's group here. All but Snapshots, Diff and Space are the owner's.
type snapshots interface {
	Snapshots() []block.Snapshot
	CreateSnapshot(ctx context.Context, s block.SnapshotSpec) error
	DeleteSnapshot(ctx context.Context, id block.SnapshotID) error
	Rollback(ctx context.Context, id block.SnapshotID) error
	Freeze(ctx context.Context, d time.Duration) (thaw func() error, err error)
	Diff(from, to block.SnapshotID, fn func(r block.Range) error) error
	Space(ctx context.Context) (blockstore.Space, error)
}

var _ snapshots = (*replication.Group)(nil)

// owned returns the LUN that ref names, which this node serves.
func (s service) owned(ref string) (*running, error) {
	m, err := s.model()
	if err != nil {
		return nil, err
	}
	l, err := find(m, ref)
	if err != nil {
		return nil, err
	}
	run := s.n.replicas.get(l.ID)
	if run == nil || run.volume == nil || !run.group.Serving() {
		return nil, api.NoOwner("node %q does not own LUN %q", s.n.cfg.Node, l.Name)
	}
	return run, nil
}

// pick returns the snapshot that ref names: by its name if only one has it, or by its ID or the beginning of that.
func pick(run *running, have []block.Snapshot, ref string) (block.Snapshot, error) {
	for _, matches := range []func(block.Snapshot) bool{
		func(x block.Snapshot) bool { return x.ID.String() == ref },
		func(x block.Snapshot) bool { return x.Name == ref },
		func(x block.Snapshot) bool { return len(ref) >= 4 && strings.HasPrefix(x.ID.String(), ref) },
	} {
		var found []block.Snapshot
		for _, x := range have {
			if matches(x) {
				found = append(found, x)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return block.Snapshot{}, api.Conflict("Use its ID: sanctuary lun snapshot list "+run.lun.Name+".", "LUN %q has %d snapshots %q", run.lun.Name, len(found), ref)
		}
	}
	return block.Snapshot{}, noSnapshot(run.lun.Name, ref)
}

func noSnapshot(lun, ref string) *api.Problem {
	p := api.NotFound("LUN %q has no snapshot %q", lun, ref)
	p.Next = "List what there is: sanctuary lun snapshot list " + lun + "."
	return p
}

// snapshotProblem turns the errors of an operation on snapshots into what a client understands.
func snapshotProblem(err error, lun, what string) error {
	var p *api.Problem
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return p
	case errors.Is(err, block.ErrNoSnapshot):
		return noSnapshot(lun, what)
	case errors.Is(err, replication.ErrTooManySnapshots):
		return api.Conflict("Delete some: sanctuary lun snapshot list "+lun+".", "LUN %q: %v", lun, err)
	case errors.Is(err, replication.ErrOldMember):
		return api.Conflict("Upgrade every node, and see that all are up.", "LUN %q: %v", lun, err)
	case errors.Is(err, block.ErrNoSpace):
		return api.Conflict("Free space in the pool: see \"A pool is full\" in docs/OPERATING.md.", "there is no room for snapshot %q of LUN %q: %v", what, lun, err)
	case errors.Is(err, block.ErrNotOwner), errors.Is(err, block.ErrUnavailable), errors.Is(err, block.ErrClosed):
		return api.NoOwner("LUN %q, snapshot %q: %v", lun, what, err)
	case errors.Is(err, block.ErrUnknown), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return api.OutcomeUnknown("LUN %q, snapshot %q: %v", lun, what, err)
	}
	return err
}

// newSnapshot returns a specification with the given ID and name, made up where they are empty.
func (s service) newSnapshot(id, name string) (spec block.SnapshotSpec, err error) {
	now := s.n.clock()
	spec = block.SnapshotSpec{Name: cmp.Or(name, "snap-"+now.UTC().Format(nameTime)), Created: now.UnixMilli()}
	if id == "" {
		_, _ = rand.Read(spec.ID[:]) // never fails: crypto/rand ends the process instead
	} else if spec.ID, err = block.ParseSnapshotID(id); err != nil {
		return spec, api.Invalid("Leave it out.", "%v", err)
	}
	if err := spec.Validate(); err != nil {
		return spec, api.Invalid("Choose another.", "%v", err)
	}
	return spec, nil
}

// nameTime is how a time stands in a snapshot's name.
const nameTime = "20060102T150405Z"

// take makes a snapshot of a LUN that is owned here. One that is there under that ID is enough; one of that name is not.
func (r *running) take(ctx context.Context, spec block.SnapshotSpec) error {
	for _, have := range r.group.Snapshots() {
		switch {
		case have.ID == spec.ID:
			return nil
		case have.Name == spec.Name:
			return api.Conflict("Choose another name.", "LUN %q has a snapshot %q already", r.lun.Name, spec.Name)
		}
	}
	return snapshotProblem(r.group.CreateSnapshot(ctx, spec), r.lun.Name, spec.Name)
}

// Snapshots implements api.SnapshotService.
func (s service) Snapshots(ctx context.Context, ref string, space bool) (api.SnapshotList, error) {
	run, err := s.owned(ref)
	if err != nil {
		return api.SnapshotList{}, err
	}
	l := s.n.catalog.Model().LUNs[run.lun.ID]
	have := run.group.Snapshots()
	list := api.SnapshotList{LUN: l.Name, ID: l.ID, Schedules: s.n.schedules.views(l, have)}
	takes := map[block.SnapshotID]api.Space{}
	if space {
		counted, err := run.group.Space(ctx)
		if err != nil {
			return list, snapshotProblem(err, l.Name, "all")
		}
		view := lunSpace(counted, s.n.clock())
		list.Space = &view
		for _, x := range counted.Snapshots {
			takes[x.Snapshot.ID] = spaceOfState(x)
		}
	}
	for _, x := range have {
		v := s.snapshot(l, x)
		if t, ok := takes[x.ID]; ok {
			v.Space = &t
		}
		list.Snapshots = append(list.Snapshots, v)
	}
	return list, nil
}

// snapshot is a snapshot as the API shows it.
func (s service) snapshot(l catalog.LUN, x block.Snapshot) api.Snapshot {
	out := api.Snapshot{ID: x.ID.String(), Name: x.Name, Created: x.Time().UTC(), SizeBytes: x.Capacity.Bytes()}
	for _, schedule := range l.Schedules {
		if _, ok := slotOf(l.ID, schedule.Prefix, x); ok {
			out.Schedule = schedule.Prefix
		}
	}
	for _, c := range s.n.catalog.Model().LUNs {
		if c.Origin != nil && c.Origin.LUN == l.ID && c.Origin.Snapshot == out.ID {
			out.Clones = append(out.Clones, c.Name)
		}
	}
	return out
}

// DeleteSnapshot implements api.SnapshotService.
func (s service) DeleteSnapshot(ctx context.Context, ref, snap string) error {
	run, err := s.owned(ref)
	if err != nil {
		return err
	}
	x, err := pick(run, run.group.Snapshots(), snap)
	if err != nil {
		return err
	}
	return s.n.dropSnapshot(ctx, run, x)
}

// catalogWait bounds how long an owner waits for the catalog to agree to what it is asked to do.
const catalogWait = 5 * time.Second

// dropSnapshot deletes a snapshot of a LUN that is owned here, once the catalog has agreed that no clone waits for it.
func (n *Node) dropSnapshot(ctx context.Context, run *running, x block.Snapshot) error {
	attempt, cancel := context.WithTimeout(ctx, catalogWait)
	defer cancel()
	if _, err := (proposer{n}).Propose(attempt, &catalog.DropSnapshot{LUN: run.lun.ID, Snapshot: x.ID.String()}); err != nil {
		return problem(err)
	}
	return snapshotProblem(run.group.DeleteSnapshot(ctx, x.ID), run.lun.Name, x.Name)
}

// RollBack implements api.SnapshotService.
func (s service) RollBack(ctx context.Context, ref string, spec api.RollbackSpec) (api.Rollback, error) {
	run, err := s.owned(ref)
	if err != nil {
		return api.Rollback{}, err
	}
	if run.lun.ReadOnly {
		return api.Rollback{}, api.Invalid("Roll back the LUN it was exported from.", "LUN %q is read-only: it shows what a snapshot holds", run.lun.Name)
	}
	to, err := pick(run, run.group.Snapshots(), spec.Snapshot)
	if err != nil {
		return api.Rollback{}, err
	}
	l := s.n.catalog.Model().LUNs[run.lun.ID]
	out := api.Rollback{LUN: l.Name, To: s.snapshot(l, to)}
	if !spec.NoSafety {
		name := "before-rollback-" + s.n.clock().UTC().Format(nameTime)
		before, err := s.newSnapshot("", name)
		if err != nil {
			return out, err
		}
		if err := run.take(ctx, before); err != nil {
			var p *api.Problem
			if errors.As(err, &p) && p.RetryAfterSeconds == 0 {
				p.Next = strings.TrimSpace(p.Next + " Or go on without a snapshot of what is there now (--no-safety).")
			}
			return out, err
		}
		safety := s.snapshot(l, block.Snapshot{SnapshotSpec: before, Capacity: run.volume.Geometry().Capacity})
		out.Safety = &safety
	}
	run.rolling.Store(true)
	defer run.rolling.Store(false)
	if err := run.group.Rollback(ctx, to.ID); err != nil {
		return out, snapshotProblem(err, l.Name, to.Name)
	}
	s.n.log.Warn("an operator rolled a LUN back", "lun", l.Name, "to", to.Name, "force", spec.Force)
	// Whoever is logged in is told that nothing is as it was: what a reset of the unit does.
	if err := run.unit.Reset(ctx); err != nil {
		p := api.OutcomeUnknown("LUN %q has been rolled back, but not all initiators have been told: %v", l.Name, err)
		p.Data, p.Next = "The LUN holds what the snapshot held.", "Log out the initiators that are logged in, if there are any: sanctuary session list."
		return out, p
	}
	return out, nil
}

// rolledBack tells the initiators of a rollback whose outcome was not known when it was asked for, or that the owner before had begun.
func (s *replicas) rolledBack(lun string) {
	run := s.get(lun)
	if run == nil || run.unit == nil || run.rolling.Load() || !run.group.Serving() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), rollbackWait)
	defer cancel()
	if err := run.unit.Reset(ctx); err != nil {
		s.n.log.Warn("not all initiators have been told that the LUN was rolled back", "lun", run.lun.Name, "error", err)
	}
}

// rollbackWait bounds how long the initiators are tried to be told.
const rollbackWait = 10 * time.Second
