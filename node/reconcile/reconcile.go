package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"sanctuary/node/catalog"
)

// Runner does things to replicas on this node. Calls for one LUN come one after another, for several LUNs at once; the
// queries come at any time. Every call ends soon after its context does.
type Runner interface {
	// Storage returns the replica IDs whose storage is on this node, by LUN ID: those that are complete and can be started,
	// running or not. An error means that it cannot be told (a disk is not mounted): then nothing is done at all.
	Storage(ctx context.Context) (map[string][]string, error)
	// Running returns the replica ID that runs, by LUN ID.
	Running() map[string]string
	// History returns the epoch of the replica that runs, 0 if none does.
	History(lun string) uint64
	// Owns says whether this node leads the LUN's group and may change its members.
	Owns(lun string) bool
	// Prepared returns nil if the storage of a replica that is begun with its LUN can be made now, and an error that wraps
	// ErrNotYet if it has to wait: for the snapshot a clone is made from. Nothing has been recorded when it is asked.
	Prepared(l catalog.LUN, r catalog.Replica) error
	// Create makes the storage of a replica (for a witness, its log) and makes it durable: empty, or with the contents of the
	// snapshot for a clone's first replicas. Those of a clone that join are marked to be rebuilt whole, since what the LUN began
	// with is in no log. If it fails, Storage does not list the replica. It is called once for each ID, or again after an error.
	Create(ctx context.Context, l catalog.LUN, r catalog.Replica) error
	// Start starts the replica on its storage. If bootstrap is not empty and the replica's log and stable store both are,
	// the group begins with those replicas as its voters; it is empty for a replica that joins. An error that wraps ErrStorageLost says
	// that the storage is of no use any more.
	Start(ctx context.Context, l catalog.LUN, r catalog.Replica, bootstrap []catalog.Replica) error
	// Stop ends the running replica of the LUN and waits for it. Its storage stays.
	Stop(ctx context.Context, lun string) error
	// Delete deletes the storage of a replica that does not run. Storage that is not there is a success.
	Delete(ctx context.Context, lun, replica string) error
	// Fill brings the storage of a replica that was created and does not run up to what its LUN holds, beside the one that runs. It
	// does not wait for that: until it is done it returns an error that wraps ErrNotYet, and is called again.
	Fill(ctx context.Context, l catalog.LUN, r catalog.Replica) error
	// Reconfigure, on the owner, brings the group's members nearer to the catalog's: it removes the replicas'
	// ReplacedIDs, adds joining replicas as learners, makes those that have caught up, as the catalog knows, voters, and when all that stay are in sync removes those that
	// leave. It does not wait for a rebuild: it is called again.
	Reconfigure(ctx context.Context, l catalog.LUN) (Settled, error)
}

// ErrNotYet: a step waits for something that comes by itself. It is tried again soon, and is no failure.
var ErrNotYet = errors.New("not yet")

// ErrStorageLost: a replica cannot go on from its storage, although there is one. It is replaced by an empty one.
var ErrStorageLost = errors.New("the storage is of no use any more")

// Proposer makes changes of the catalog; it finds the leader. Errors as of catalog.Catalog.Propose.
type Proposer interface {
	Propose(ctx context.Context, c catalog.Change) (catalog.Result, error)
}

// Catalog is what there should be. *catalog.Catalog implements it.
type Catalog interface {
	Watch() (*catalog.Model, <-chan struct{})
}

// Config is what a Reconciler needs.
type Config struct {
	Node     string
	Catalog  Catalog
	Proposer Proposer
	Runner   Runner
	Logger   *slog.Logger // nil: discard
}

// Reconciler works on one node. Its methods are safe for concurrent use.
type Reconciler struct {
	cfg   Config
	log   *slog.Logger
	claim string
	wake  chan struct{}

	mu      sync.Mutex
	luns    map[string]*work
	created map[string]bool
	useless map[string]bool // replica IDs whose start said ErrStorageLost
	// replaced says when a new incarnation was last asked for, by LUN ID. Entries end with their rest.
	replaced map[string]time.Time
	orphans  []Orphan
	blind    error // why Storage could not tell
	// untried is whose replica has been here since before this process and has not been started yet, by LUN ID; nil before the first look.
	untried map[string]bool
	tried   chan struct{} // closed when untried is empty
}

// work is what is known about one LUN's steps. Guarded by Reconciler.mu.
type work struct {
	name     string
	busy     bool
	plan     string // the steps last tried, to see whether they are new
	doing    string
	failures int
	reason   error
	retry    time.Time // not before
}

const (
	parallel     = 8                      // LUNs worked on at once
	tick         = 2 * time.Second        // look even if nobody says that something has changed; if that takes long, less often:
	tickShare    = 200                    // it takes one part in so many of a processor
	tickMost     = 30 * time.Second       // but is done so often
	restMost     = time.Second            // between two looks, if each takes long
	firstRetry   = 250 * time.Millisecond // doubled with each failure
	lastRetry    = 30 * time.Second       //
	replaceRest  = 10 * time.Second       // between two incarnations of a replica that keeps losing its storage
	pollInterval = 500 * time.Millisecond // between two looks at a replica that is joining, or the same steps once more
	proposeWait  = 10 * time.Second       // for the catalog to answer
	stepWait     = 2 * time.Minute        // for the Runner to create, start, stop or delete
)

// New returns a Reconciler. Each has a claim of its own: one for each process start, and one Run for each.
func New(cfg Config) *Reconciler {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Reconciler{
		cfg: cfg, log: cfg.Logger, claim: uuid.NewString(), wake: make(chan struct{}, 1),
		luns: map[string]*work{}, created: map[string]bool{}, useless: map[string]bool{}, replaced: map[string]time.Time{},
		tried: make(chan struct{}),
	}
}

// Wake makes the Reconciler look at once: ownership has moved, a replica has stopped by itself, a learner has caught up.
// It never blocks.
func (r *Reconciler) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends, waits for the steps under way and returns nil. It leaves running what runs.
func (r *Reconciler) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, parallel)
	for {
		model, newer := r.cfg.Catalog.Watch()
		began := time.Now()
		next, short := r.round(ctx, model, slots, &wg)
		// A round looks at every LUN. When many of them change owners, each change wakes this, and there would be no end of rounds: they take
		// a fifth of one processor at most, unless steps wait for those before them.
		took := time.Since(began)
		rest := min(5*took, restMost)
		switch {
		case short:
			rest = 0
		case next == 0:
			next = min(max(tick, tickShare*took), tickMost)
		}
		timer := time.NewTimer(max(next, rest))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-newer:
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
		if !pause(ctx, time.Until(began.Add(rest))) {
			return nil
		}
	}
}

// pause waits, and says whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// round starts what can be started now and returns when to look again at the latest, 0 if there is nothing to do, and whether slots were short for
// what there is.
func (r *Reconciler) round(ctx context.Context, model *catalog.Model, slots chan struct{}, wg *sync.WaitGroup) (next time.Duration, short bool) {
	// Steps that end while Storage looks have made what it saw of their LUN untrue: storage created meanwhile would seem
	// lost. Only this goroutine begins steps, so a LUN that is not busy now is as Storage sees it.
	r.mu.Lock()
	busy := map[string]bool{}
	for id, w := range r.luns {
		busy[id] = w.busy
	}
	r.mu.Unlock()
	storage, err := r.cfg.Runner.Storage(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if r.blind == nil && ctx.Err() == nil {
			r.log.Error("this node cannot tell which replicas it has, and does nothing until it can", "reason", err)
		}
		r.blind = err
		return tick, false
	}
	r.blind = nil
	a := Actual{Claim: r.claim, Storage: storage, Running: r.cfg.Runner.Running(), Owned: map[string]bool{}, History: map[string]uint64{}, Created: r.created, Useless: r.useless}
	for id := range a.Running {
		a.Owned[id], a.History[id] = r.cfg.Runner.Owns(id), r.cfg.Runner.History(id)
	}
	r.orphans = Orphans(model, r.cfg.Node, a)
	plans := Plan(model, r.cfg.Node, a)
	r.noteTried(plans, busy)
	now := time.Now()
	if len(plans) > 0 {
		next = tick
	}
	maps.DeleteFunc(r.replaced, func(_ string, at time.Time) bool { return now.Sub(at) >= replaceRest })
	for id := range r.luns {
		if plans[id] == nil && !busy[id] {
			delete(r.luns, id) // nothing to do, nothing to report
		}
	}
	for id, steps := range plans {
		w := r.luns[id]
		if w == nil {
			w = &work{name: steps[0].LUN.Name}
			r.luns[id] = w
		}
		if busy[id] {
			continue // it wakes us when it ends
		}
		plan := describe(steps)
		if wait := w.retry.Sub(now); plan == w.plan && wait > 0 {
			next = min(next, wait)
			continue
		}
		replaces := steps[len(steps)-1].Kind == Replace
		if wait := r.replaced[id].Add(replaceRest).Sub(now); replaces && wait > 0 {
			next = min(next, wait)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			short = true
			continue // who has one wakes us when it ends
		}
		if plan != w.plan {
			w.plan, w.failures = plan, 0
		}
		if replaces {
			r.replaced[id] = now
		}
		w.busy, w.doing = true, steps[0].String()
		wg.Go(func() {
			err := r.run(ctx, steps)
			<-slots
			r.ended(ctx, w, steps, err)
		})
	}
	return next, short
}

func describe(steps []Action) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s %s %s;", s.Kind, s.Replica.ID, s.Replica.State)
	}
	return b.String()
}

func (r *Reconciler) ended(ctx context.Context, w *work, steps []Action, err error) {
	r.mu.Lock()
	w.busy, w.doing = false, ""
	w.reason = err
	if err == nil || errors.Is(err, ErrNotYet) {
		w.failures = 0
		w.retry = time.Now().Add(pollInterval) // for the same steps; others are tried at once
	} else {
		wait := lastRetry
		if w.failures < 7 {
			wait = min(lastRetry, firstRetry<<w.failures)
		}
		w.failures++
		w.retry = time.Now().Add(wait)
		if ctx.Err() == nil {
			r.log.Warn("a step towards what the catalog asks for has not succeeded", "lun", w.name, "steps", len(steps), "reason", err, "retry in", wait)
		}
	}
	r.mu.Unlock()
	r.Wake()
}

func (r *Reconciler) run(ctx context.Context, steps []Action) (waits error) {
	for _, s := range steps {
		r.log.Debug("reconcile", "step", s.Kind.String(), "lun", s.LUN.Name, "replica", s.Replica.ID, "why", s.Why)
		err := r.step(ctx, s)
		if err != nil {
			err = fmt.Errorf("%s: %w", s, err)
		}
		switch {
		case err == nil:
		case s.Kind == Reconfigure && errors.Is(err, ErrNotYet): // what comes next may be what it waits for
			waits = err
		default:
			return err
		}
	}
	return waits
}

func (r *Reconciler) step(ctx context.Context, s Action) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	run := r.cfg.Runner
	switch s.Kind {
	case Begin:
		if err := run.Prepared(s.LUN, s.Replica); err != nil {
			return err
		}
		result, err := r.propose(ctx, &catalog.ReplicaStarted{LUN: s.LUN.ID, Replica: s.Replica.ID, Claim: r.claim})
		if err != nil {
			return err
		}
		if result.LUN == nil || result.Replica == nil {
			return errors.New("the catalog's answer lacks the replica")
		}
		return r.create(ctx, *result.LUN, *result.Replica)
	case Create:
		return r.create(ctx, s.LUN, s.Replica)
	case Prepare:
		result, err := r.propose(ctx, &catalog.ReplicaStarted{LUN: s.LUN.ID, Replica: s.Replica.ID, Claim: r.claim})
		if err != nil {
			return err
		}
		return r.make(ctx, *result.LUN, *result.Replica)
	case Fill:
		if err := run.Fill(ctx, s.LUN, s.Replica); err != nil {
			return err
		}
		_, err := r.propose(ctx, &catalog.ReplicaFilled{LUN: s.LUN.ID, Replica: s.Replica.ID})
		return err
	case Start:
		return r.start(ctx, s.LUN, s.Replica)
	case Replace:
		r.log.Warn("a replica has lost its storage and is replaced by an empty one", "lun", s.LUN.Name, "replica", s.Replica.ID, "why", s.Why)
		result, err := r.propose(ctx, &catalog.ReplaceReplica{LUN: s.LUN.ID, Old: s.Replica.ID, Claim: r.claim})
		if err == nil && result.LUN != nil && result.LUN.Lost {
			r.log.Error("every copy of the LUN has lost its data; it stays out of service until an operator decides", "lun", s.LUN.Name)
		}
		return err // the new incarnation is created when it shows in the catalog here
	case Reconfigure:
		return r.reconfigure(ctx, s.LUN)
	case Stop:
		r.log.Info("a replica is stopped", "lun", s.LUN.Name, "replica", s.Replica.ID, "why", s.Why)
		return run.Stop(ctx, s.LUN.ID)
	case Delete:
		r.log.Info("the storage of a replica is deleted", "lun", s.LUN.Name, "replica", s.Replica.ID, "why", s.Why)
		return run.Delete(ctx, s.LUN.ID, s.Replica.ID)
	case Copied:
		_, err := r.propose(ctx, &catalog.ReplicaCopied{LUN: s.LUN.ID, Replica: s.Replica.ID})
		return err
	case Forget:
		_, err := r.propose(ctx, &catalog.ReplicaDeleted{LUN: s.LUN.ID, Replica: s.Replica.ID})
		return err
	case Report:
		_, err := r.propose(ctx, &catalog.StorageDeleted{LUN: s.LUN.ID, Node: r.cfg.Node})
		return err
	}
	return fmt.Errorf("unknown step %d", s.Kind)
}

func (r *Reconciler) create(ctx context.Context, l catalog.LUN, rep catalog.Replica) error {
	if err := r.make(ctx, l, rep); err != nil {
		return err
	}
	return r.start(ctx, l, rep)
}

// make is called only for a replica whose claim is ours, recorded in the catalog.
func (r *Reconciler) make(ctx context.Context, l catalog.LUN, rep catalog.Replica) error {
	r.mu.Lock()
	again := r.created[rep.ID]
	r.mu.Unlock()
	if rep.Claim != r.claim || again {
		return fmt.Errorf("replica %s is not this process's to create", rep.ID)
	}
	if err := r.cfg.Runner.Create(ctx, l, rep); err != nil {
		return err
	}
	r.mu.Lock()
	r.created[rep.ID] = true
	r.mu.Unlock()
	return nil
}

func (r *Reconciler) start(ctx context.Context, l catalog.LUN, rep catalog.Replica) error {
	var bootstrap []catalog.Replica
	if rep.State != catalog.ReplicaJoining {
		bootstrap = l.Bootstrap()
	}
	if err := r.cfg.Runner.Start(ctx, l, rep, bootstrap); err != nil {
		if errors.Is(err, ErrStorageLost) {
			r.mu.Lock()
			r.useless[rep.ID] = true
			r.mu.Unlock()
		}
		return err
	}
	r.log.Info("a replica is running", "lun", l.Name, "replica", rep.ID, "state", rep.State)
	return nil
}

// propose waits until the change shows in this node's own catalog too, so that the next plan is made with it.
func (r *Reconciler) propose(ctx context.Context, c catalog.Change) (catalog.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeWait)
	defer cancel()
	result, err := r.cfg.Proposer.Propose(ctx, c)
	if err != nil {
		return catalog.Result{}, err
	}
	for {
		m, newer := r.cfg.Catalog.Watch()
		if m.Index >= result.Index {
			return result, nil
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return result, nil // made all the same; the plan made with the older catalog is refused or harmless
		}
	}
}
