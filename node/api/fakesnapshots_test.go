package api_test

import (
	"context"
	"fmt"

	"sanctuary/node/api"
)

// What the fake knows of snapshots: one of that name and ID.
const snapID = "00112233445566778899aabbccddeeff"

func (f *fakeNode) Snapshots(_ context.Context, ref string, space bool) (api.SnapshotList, error) {
	f.note(fmt.Sprintf("snapshots %s space=%v", ref, space))
	l := api.SnapshotList{LUN: "vm1", ID: lunID, Snapshots: []api.Snapshot{{ID: snapID, Name: "monday"}}}
	if space {
		l.Space = &api.LUNSpace{Space: api.Space{LogicalBytes: 10, StoredBytes: 8, ExclusiveBytes: 3, SharedBytes: 5}}
	}
	return l, f.fail
}

func (f *fakeNode) CreateSnapshots(_ context.Context, spec api.SnapshotSpec, of []api.SnapshotOf) (api.SnapshotSet, error) {
	f.note(fmt.Sprintf("snapshot %s %s of %v", spec.ID, spec.Name, of))
	return api.SnapshotSet{ID: spec.ID, Name: spec.Name, LUNs: []string{"vm1"}}, f.fail
}

func (f *fakeNode) DeleteSnapshot(_ context.Context, ref, snap string) error {
	f.note("delete snapshot " + snap + " of " + ref)
	return f.fail
}

func (f *fakeNode) RollBack(_ context.Context, ref string, spec api.RollbackSpec) (api.Rollback, error) {
	f.note(fmt.Sprintf("roll back %s to %s no-safety=%v", ref, spec.Snapshot, spec.NoSafety))
	return api.Rollback{LUN: "vm1", To: api.Snapshot{ID: snapID, Name: spec.Snapshot}}, f.fail
}

func (f *fakeNode) Diff(_ context.Context, ref string, q api.DiffQuery) (api.Diff, error) {
	f.note(fmt.Sprintf("diff %s %+v", ref, q))
	return api.Diff{LUN: "vm1", SizeBytes: 1 << 20, Next: 8192, Ranges: []api.DiffRange{{Offset: 0, Length: 4096}}}, f.fail
}

func (f *fakeNode) CloneLUN(_ context.Context, ref string, spec api.CloneSpec) (api.LUN, error) {
	f.note(fmt.Sprintf("clone %s of %s as %s read-only=%v", spec.Snapshot, ref, spec.Name, spec.ReadOnly))
	l := api.LUN{Name: spec.Name, ID: spec.ID, ReadOnly: spec.ReadOnly, Owner: f.name, Health: api.HealthHealthy}
	f.set(func() { f.luns = append(f.luns, l) })
	return l, f.fail
}

func (f *fakeNode) SetSchedule(_ context.Context, ref string, s api.Schedule) error {
	f.note(fmt.Sprintf("schedule %s %+v", ref, s))
	f.set(func() { f.luns[0].Schedules = []api.Schedule{s} })
	return f.fail
}

func (f *fakeNode) RemoveSchedule(_ context.Context, ref, prefix string) error {
	f.note(fmt.Sprintf("no schedule %s %q", ref, prefix))
	return f.fail
}
