package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/replication/transport"
)

// A snapshot of several LUNs at one moment. The node that was asked has every LUN's owner hold its writes, then each take its
// snapshot, then each go on; Group.Freeze argues why that is one moment. LUNs are held in the order of their IDs, so
// that two such snapshots do not wait for each other.

// methodSnapshot carries a snapshotOrder to a LUN's owner.
const methodSnapshot = "lun.snapshot"

const (
	orderFreeze = "freeze"
	orderCreate = "create"
	orderThaw   = "thaw"
	orderDelete = "delete" // of one that has just been made, and belongs to nothing
)

// snapshotOrder is one step at one owner.
type snapshotOrder struct {
	LUN     string `json:"lun"` // ID
	What    string `json:"what"`
	Token   string `json:"token"` // random: names the freeze
	ID      string `json:"id,omitempty"`
	Name    string `json:"name,omitempty"`
	Created int64  `json:"created,omitempty"` // milliseconds since the Unix epoch
}

func (o snapshotOrder) spec() (block.SnapshotSpec, error) {
	id, err := block.ParseSnapshotID(o.ID)
	return block.SnapshotSpec{ID: id, Name: o.Name, Created: o.Created}, err
}

const (
	freezeFor  = 8 * time.Second // then an owner goes on by itself: whoever asked has died
	freezeWait = 3 * time.Second // for what is under way to end, at one owner
	createWait = 4 * time.Second // for all snapshots
	undoWait   = 5 * time.Second
	maxFreezes = 256 // at once on a node; beyond it a snapshot of several LUNs is refused
	maxSets    = 64  // remembered, for a request that is repeated because its answer was lost
)

// barriers are what this node holds for others, and what it has made for clients.
type barriers struct {
	mu   sync.Mutex
	thaw map[string]func() error // by LUN and token
	sets []api.SnapshotSet       // the newest ones
}

// hold keeps the end of a freeze until it is asked for, or is over anyway.
func (b *barriers) hold(key string, thaw func() error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.thaw == nil {
		b.thaw = map[string]func() error{}
	}
	if len(b.thaw) >= maxFreezes || b.thaw[key] != nil {
		return false
	}
	b.thaw[key] = thaw
	time.AfterFunc(freezeFor, func() { b.release(key) })
	return true
}

func (b *barriers) release(key string) func() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	thaw := b.thaw[key]
	delete(b.thaw, key)
	return thaw
}

func (b *barriers) remember(s api.SnapshotSet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sets = append(b.sets, s)
	b.sets = b.sets[max(0, len(b.sets)-maxSets):]
}

func (b *barriers) made(id string) (api.SnapshotSet, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.sets, func(s api.SnapshotSet) bool { return s.ID == id })
	if i < 0 {
		return api.SnapshotSet{}, false
	}
	return b.sets[i], true
}

// serveSnapshot is the owner's side of methodSnapshot. A refusal travels as a problem.
func (n *Node) serveSnapshot(ctx context.Context, _ string, req []byte) ([]byte, error) {
	var o snapshotOrder
	if err := json.Unmarshal(req, &o); err != nil {
		return nil, fmt.Errorf("order about a snapshot: %w", err)
	}
	err := n.carryOut(ctx, o)
	if err == nil {
		return nil, nil
	}
	var p *api.Problem
	if !errors.As(err, &p) {
		return nil, err
	}
	return json.Marshal(p)
}

func (n *Node) carryOut(ctx context.Context, o snapshotOrder) error {
	run, err := service{n}.owned(o.LUN)
	if err != nil {
		return err
	}
	switch o.What {
	case orderFreeze:
		for _, have := range run.group.Snapshots() {
			if have.ID.String() == o.ID { // the node that began it has died, or its answer was lost: nobody knows what became of it
				return api.Conflict("Delete it, and take another.", "LUN %q has a snapshot %q of an attempt before: whether it is of the same moment as those of the other LUNs is not known",
					run.lun.Name, have.Name)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, freezeWait)
		defer cancel()
		thaw, err := run.group.Freeze(ctx, freezeFor)
		if err != nil {
			return api.Unavailable("the writes to LUN %q cannot be held: %v", run.lun.Name, err)
		}
		if !n.barriers.hold(o.LUN+" "+o.Token, thaw) {
			return errors.Join(api.Unavailable("node %q holds the writes to too many LUNs already", n.cfg.Node), thaw())
		}
		return nil
	case orderCreate:
		spec, err := o.spec()
		if err != nil {
			return err
		}
		return run.take(ctx, spec)
	case orderThaw:
		thaw := n.barriers.release(o.LUN + " " + o.Token)
		if thaw == nil {
			return fmt.Errorf("LUN %q is not held any more", run.lun.Name)
		}
		return thaw()
	case orderDelete:
		spec, err := o.spec()
		if err != nil {
			return err
		}
		if err := run.group.DeleteSnapshot(ctx, spec.ID); !errors.Is(err, block.ErrNoSnapshot) {
			return err
		}
		return nil
	}
	return fmt.Errorf("unknown order %q", o.What)
}

// order has a LUN's owner carry out a step.
func (n *Node) order(ctx context.Context, owner string, o snapshotOrder) error {
	if owner == n.cfg.Node {
		return n.carryOut(ctx, o)
	}
	req, err := json.Marshal(o)
	if err != nil {
		return err
	}
	answer, err := n.mux.Call(ctx, owner, methodSnapshot, req)
	switch {
	case errors.Is(err, transport.ErrUnknownMethod):
		return api.Conflict("Upgrade it.", "node %q runs a version that knows no snapshots", owner)
	case err != nil || len(answer) == 0:
		return err
	}
	p := &api.Problem{}
	if err := json.Unmarshal(answer, p); err != nil {
		return fmt.Errorf("answer of node %s: %w", owner, err)
	}
	return p
}

// CreateSnapshots implements api.SnapshotService.
func (s service) CreateSnapshots(ctx context.Context, want api.SnapshotSpec, of []api.SnapshotOf) (api.SnapshotSet, error) {
	spec, err := s.newSnapshot(want.ID, want.Name)
	if err != nil {
		return api.SnapshotSet{}, err
	}
	set := api.SnapshotSet{ID: spec.ID.String(), Name: spec.Name, Created: spec.Time().UTC()}
	for _, o := range of {
		set.LUNs = append(set.LUNs, o.LUN)
	}
	if len(of) != 1 {
		return s.createSet(ctx, spec, set, of)
	}
	run, err := s.owned(of[0].ID)
	if err != nil {
		return set, err
	}
	if err := run.take(ctx, spec); err != nil {
		return set, err
	}
	for _, have := range run.group.Snapshots() { // made by an earlier attempt, perhaps
		if have.ID == spec.ID {
			set.Name, set.Created = have.Name, have.Time().UTC()
		}
	}
	return set, nil
}

func (s service) createSet(ctx context.Context, spec block.SnapshotSpec, set api.SnapshotSet, of []api.SnapshotOf) (api.SnapshotSet, error) {
	if made, again := s.n.barriers.made(set.ID); again {
		return made, nil
	}
	of = slices.Clone(of)
	slices.SortFunc(of, func(a, b api.SnapshotOf) int { return strings.Compare(a.ID, b.ID) })
	o := snapshotOrder{Token: uuid.NewString(), ID: set.ID, Name: spec.Name, Created: spec.Created}
	started := time.Now()
	frozen, err := s.freezeAll(ctx, of, o)
	asked := err == nil
	if asked {
		attempt, cancel := context.WithTimeout(ctx, createWait)
		err = s.each(attempt, of, o, orderCreate)
		cancel()
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
	defer cancel()
	if terr := s.each(after, frozen, o, orderThaw); err == nil && terr != nil {
		err = api.Unavailable("writes went on too early: %v", terr)
	}
	set.Held = time.Since(started)
	if err == nil {
		s.n.barriers.remember(set)
		return set, nil
	}
	if !asked {
		return set, nothingTaken(err, "")
	}
	left := ""
	undo, cancel2 := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
	defer cancel2()
	if derr := s.each(undo, of, o, orderDelete); derr != nil {
		left = derr.Error()
	}
	return set, nothingTaken(err, left)
}

// nothingTaken says that there is no set. left says why what had been made may still be there.
func nothingTaken(err error, left string) *api.Problem {
	p := &api.Problem{}
	if known := (*api.Problem)(nil); errors.As(err, &known) {
		*p = *known
	} else {
		p = api.Unavailable("%v", err)
	}
	p.Detail = "no snapshot of the LUNs together was taken: " + p.Detail
	p.Data = "No snapshot was taken, or those that were have been deleted again. The LUNs go on."
	if left != "" {
		p.Data = "The LUNs go on. Of some of them a snapshot may be left, which is not of the same moment as others: " + left
		p.Next = "Delete it: sanctuary lun snapshot list LUN. Then repeat."
		p.RetryAfterSeconds = 0
	}
	return p
}

// freezeAll holds the writes to all LUNs, one after another, and returns those that are held.
func (s service) freezeAll(ctx context.Context, of []api.SnapshotOf, o snapshotOrder) (frozen []api.SnapshotOf, err error) {
	for _, lun := range of {
		o.LUN, o.What = lun.ID, orderFreeze
		if err := s.n.order(ctx, lun.Owner, o); err != nil {
			return append(frozen, lun), fmt.Errorf("LUN %s at node %s: %w", lun.LUN, lun.Owner, err) // its answer may be what was lost
		}
		frozen = append(frozen, lun)
	}
	return frozen, nil
}

// each has every owner carry out a step, all at the same time.
func (s service) each(ctx context.Context, of []api.SnapshotOf, o snapshotOrder, what string) error {
	errs := make([]error, len(of))
	var wg sync.WaitGroup
	for i, lun := range of {
		wg.Go(func() {
			o := o
			o.LUN, o.What = lun.ID, what
			if err := s.n.order(ctx, lun.Owner, o); err != nil {
				errs[i] = fmt.Errorf("LUN %s at node %s: %w", lun.LUN, lun.Owner, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
