package api

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

// snapshotRequest is part of a request about one snapshot.
type snapshotRequest struct {
	LUNRequest
	Snapshot string `path:"snapshot" doc:"Name, ID or its beginning" minLength:"1" maxLength:"64"`
}

type (
	snapshotsRequest struct {
		LUNRequest
		Space bool `query:"space" default:"true" doc:"Count what each takes, which takes a second for a TiB"`
	}
	snapshotCreateRequest struct {
		LUNRequest
		Body SnapshotSpec
	}
	rollbackRequest struct {
		LUNRequest
		Body RollbackSpec
	}
	diffRequest struct {
		LUNRequest
		DiffQuery
	}
	cloneRequest struct {
		LUNRequest
		WaitQuery
		Body CloneSpec
	}
	scheduleRequest struct {
		LUNRequest
		Body Schedule
	}
	scheduleDeleteRequest struct {
		LUNRequest
		Prefix string `query:"prefix" maxLength:"40" doc:"The schedule; empty: all of the LUN"`
	}
)

// ownerReads describes a question that only the owner can answer.
func (s *Server) ownerReads(id, path, summary string) huma.Operation {
	o := reads(id, path, summary, "snapshots")
	o.Middlewares = huma.Middlewares{s.toOwner}
	return o
}

func (s *Server) registerSnapshots() {
	const tag = "snapshots"
	huma.Register(s.api, s.ownerReads("list-snapshots", "/v1/luns/{lun}/snapshots", "Snapshots of a LUN, and what they take"), s.listSnapshots)
	create := changes("create-snapshot", http.MethodPost, "/v1/luns/{lun}/snapshots", "Take a snapshot of a LUN, or of several at one moment", tag,
		http.StatusCreated, s.toOwner)
	create.Description = "Of one LUN: writes wait for about as long as one takes. Of several: writes are held at all their owners for as long as it takes, so that what a write that depended on " +
		"another one finds there is in the snapshot only if that one is. Either all get a snapshot, or none."
	huma.Register(s.api, create, s.createSnapshot)
	huma.Register(s.api, changes("delete-snapshot", http.MethodDelete, "/v1/luns/{lun}/snapshots/{snapshot}", "Delete a snapshot", tag,
		http.StatusNoContent, s.toOwner), s.deleteSnapshot)
	back := changes("rollback-lun", http.MethodPost, "/v1/luns/{lun}/rollback", "Make a LUN what it was when a snapshot was taken", tag, http.StatusOK, s.toOwner)
	back.Description = "Takes a snapshot of what is there first, unless told not to. Refused while initiators are logged in or hold reservations. " +
		"Not to be repeated blindly: what has been written meanwhile would be taken back as well."
	huma.Register(s.api, back, s.rollBack)
	huma.Register(s.api, s.ownerReads("diff-lun", "/v1/luns/{lun}/diff", "Ranges in which two states of a LUN may differ"), s.diff)
	clone := changes("clone-lun", http.MethodPost, "/v1/luns/{lun}/clones", "Create a LUN that begins as a snapshot of another one", tag, http.StatusCreated, s.toOwner)
	clone.Description = "It lives on the nodes of the LUN it comes from and shares with it what neither has changed. 201: served. 202: recorded, and not served yet when the wait was over."
	clone.Responses = map[string]*huma.Response{"202": {
		Description: "Recorded, not served yet",
		Content: map[string]*huma.MediaType{"application/json": {
			Schema: s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[LUN](), true, ""),
		}},
	}}
	huma.Register(s.api, clone, s.cloneLUN)
	huma.Register(s.api, s.ownerReads("list-schedules", "/v1/luns/{lun}/schedules", "Schedules of a LUN's snapshots"), s.listSchedules)
	huma.Register(s.api, changes("set-schedule", http.MethodPut, "/v1/luns/{lun}/schedules", "Create or replace a schedule of snapshots", tag,
		http.StatusOK, s.toLeader), s.setSchedule)
	huma.Register(s.api, changes("remove-schedule", http.MethodDelete, "/v1/luns/{lun}/schedules", "Remove a schedule; its snapshots stay", tag,
		http.StatusOK, s.toLeader), s.removeSchedule)
}

func (s *Server) listSnapshots(ctx context.Context, in *snapshotsRequest) (*reply[SnapshotList], error) {
	l, err := s.svc.Snapshots(ctx, in.LUN, in.Space)
	if err != nil {
		return nil, asProblem(err)
	}
	l.Snapshots, l.Schedules = orEmpty(l.Snapshots), orEmpty(l.Schedules)
	return &reply[SnapshotList]{l}, nil
}

func (s *Server) createSnapshot(ctx context.Context, in *snapshotCreateRequest) (*reply[SnapshotSet], error) {
	var of []SnapshotOf
	for _, ref := range append([]string{in.LUN}, in.Body.With...) {
		l, err := s.lookup(ctx, ref, false)
		switch {
		case err != nil:
			return nil, asProblem(err)
		case l.Owner == "":
			return nil, NoOwner("LUN %s has no owner at the moment: no snapshot was taken", l.Name)
		case slices.ContainsFunc(of, func(o SnapshotOf) bool { return o.ID == l.ID }):
			return nil, Invalid("Name each LUN once.", "LUN %s is named twice", l.Name)
		}
		of = append(of, SnapshotOf{LUN: l.Name, ID: l.ID, Owner: l.Owner})
	}
	made, err := s.svc.CreateSnapshots(ctx, in.Body, of)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[SnapshotSet]{made}, nil
}

func (s *Server) deleteSnapshot(ctx context.Context, in *snapshotRequest) (*struct{}, error) {
	if err := s.svc.DeleteSnapshot(ctx, in.LUN, in.Snapshot); err != nil {
		return nil, asProblem(err)
	}
	return nil, nil
}

func (s *Server) rollBack(ctx context.Context, in *rollbackRequest) (*reply[Rollback], error) {
	l, err := s.svc.LUN(ctx, in.LUN)
	if err != nil {
		return nil, asProblem(err)
	}
	if !in.Body.Force {
		if err := s.unused(ctx, l, use{done: "rolled back", force: "roll back with force (--force): a guest that goes on with what it has cached will destroy its file system"}); err != nil {
			return nil, err
		}
		if err := s.unreserved(ctx, l); err != nil {
			return nil, err
		}
	}
	done, err := s.svc.RollBack(ctx, l.ID, in.Body)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[Rollback]{done}, nil
}

// unreserved refuses to go on while initiators hold reservations of a LUN.
func (s *Server) unreserved(ctx context.Context, l LUN) error {
	r, err := s.svc.Reservations(ctx, l.ID)
	if err != nil {
		return asProblem(err)
	}
	if len(r.Registrations) == 0 && r.Reserved == nil {
		return nil
	}
	who := ""
	if len(r.Registrations) > 0 {
		who = r.Registrations[0].Initiator
	} else {
		who = r.Reserved.Initiator
	}
	return (&Problem{
		Status: http.StatusConflict, Code: CodeInUse, Detail: fmt.Sprintf("LUN %s is reserved, or has registrations, by initiator %s among others", l.Name, who),
		Data: "Nothing was rolled back.", Next: "Stop the cluster that uses it, or roll back with force (--force).",
	}).complete()
}

func (s *Server) diff(ctx context.Context, in *diffRequest) (*reply[Diff], error) {
	d, err := s.svc.Diff(ctx, in.LUN, in.DiffQuery)
	if err != nil {
		return nil, asProblem(err)
	}
	d.Ranges = orEmpty(d.Ranges)
	return &reply[Diff]{d}, nil
}

func (s *Server) cloneLUN(ctx context.Context, in *cloneRequest) (*createReply, error) {
	wait, err := in.duration(defaultWait)
	if err != nil {
		return nil, err
	}
	made, err := s.svc.CloneLUN(ctx, in.LUN, in.Body)
	if err != nil {
		return nil, asProblem(err)
	}
	return s.created(ctx, made.ID, wait, "its copies are being made from the snapshot")
}

func (s *Server) listSchedules(ctx context.Context, in *LUNRequest) (*reply[ScheduleList], error) {
	l, err := s.svc.Snapshots(ctx, in.LUN, false)
	if err != nil {
		return nil, asProblem(err)
	}
	return &reply[ScheduleList]{ScheduleList{LUN: l.LUN, Schedules: orEmpty(l.Schedules)}}, nil
}

func (s *Server) setSchedule(ctx context.Context, in *scheduleRequest) (*reply[LUN], error) {
	if in.Body.Prefix == "" {
		in.Body.Prefix = defaultPrefix(in.Body.EverySeconds)
	}
	return s.after(ctx, in.LUN, s.svc.SetSchedule(ctx, in.LUN, in.Body))
}

func (s *Server) removeSchedule(ctx context.Context, in *scheduleDeleteRequest) (*reply[LUN], error) {
	return s.after(ctx, in.LUN, s.svc.RemoveSchedule(ctx, in.LUN, in.Prefix))
}

// defaultPrefix names a schedule by its interval.
func defaultPrefix(seconds int64) string {
	switch seconds {
	case 3600:
		return "hourly"
	case 86400:
		return "daily"
	case 7 * 86400:
		return "weekly"
	}
	for _, u := range []struct {
		seconds int64
		letter  string
	}{{86400, "d"}, {3600, "h"}, {60, "m"}} {
		if seconds%u.seconds == 0 {
			return fmt.Sprintf("every-%d%s", seconds/u.seconds, u.letter)
		}
	}
	return fmt.Sprintf("every-%ds", seconds)
}
