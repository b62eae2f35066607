package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"sanctuary/node/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeCatalog is the catalog's state machine without Raft.
type fakeCatalog struct {
	mu    sync.Mutex
	model *catalog.Model
	next  chan struct{}
	down  error // what Propose answers
	lose  bool  // the next change is made, and its answer lost
	log   []string
}

func newFakeCatalog(m *catalog.Model) *fakeCatalog {
	return &fakeCatalog{model: m, next: make(chan struct{})}
}

func (f *fakeCatalog) Watch() (*catalog.Model, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.model, f.next
}

func (f *fakeCatalog) Propose(_ context.Context, c catalog.Change) (catalog.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return catalog.Result{}, f.down
	}
	next, r, err := catalog.Apply(f.model, f.model.Index+1, c)
	if next != f.model {
		f.model = next
		close(f.next)
		f.next = make(chan struct{})
		f.log = append(f.log, strings.TrimPrefix(fmt.Sprintf("%T", c), "*catalog."))
	}
	if f.lose {
		f.lose = false
		return catalog.Result{}, catalog.ErrUnknown
	}
	return r, err
}

// fakeRunner keeps storage, which a test may take away, and breaks the test when the Runner's contract is broken.
type fakeRunner struct {
	t       *testing.T
	mu      sync.Mutex
	storage map[string][]string
	running map[string]string
	history map[string]uint64
	owns    bool
	inSync  bool
	fail    map[string]error
	busy    map[string]bool
	made    map[string]int // times storage was created, by replica ID
	looks   int            // for storage
	useless string         // the replica that cannot be started on its storage
	log     []string
	most    int // LUNs worked on at once
}

func newFakeRunner(t *testing.T) *fakeRunner {
	return &fakeRunner{t: t, storage: map[string][]string{}, running: map[string]string{}, history: map[string]uint64{}, fail: map[string]error{}, busy: map[string]bool{}, made: map[string]int{}}
}

// Storage answers with what was so a while ago, as a look at a real disk does.
func (f *fakeRunner) Storage(context.Context) (map[string][]string, error) {
	f.mu.Lock()
	f.looks++
	out := map[string][]string{}
	for k, v := range f.storage {
		out[k] = slices.Clone(v)
	}
	err := f.fail["storage"]
	f.mu.Unlock()
	time.Sleep(25 * time.Millisecond)
	return out, err
}

func (f *fakeRunner) Running() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.running)
}

func (f *fakeRunner) History(lun string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.history[lun]
}

func (f *fakeRunner) Owns(string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.owns
}

// do runs f for a LUN after a while, and checks that nothing else is done to that LUN meanwhile.
func (f *fakeRunner) do(what, lun, replica string, change func()) error {
	f.mu.Lock()
	if f.busy[lun] {
		f.t.Errorf("%s %s while another step of the LUN is under way", what, replica)
	}
	f.busy[lun] = true
	n := 0
	for _, b := range f.busy {
		if b {
			n++
		}
	}
	f.most = max(f.most, n)
	f.mu.Unlock()
	time.Sleep(10 * time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy[lun] = false
	f.log = append(f.log, what+" "+replica)
	if err := f.fail[what]; err != nil {
		return err
	}
	change()
	return nil
}

func (f *fakeRunner) Create(_ context.Context, l catalog.LUN, r catalog.Replica) error {
	return f.do("create", l.ID, r.ID, func() {
		f.made[r.ID]++
		if f.made[r.ID] > 1 {
			f.t.Errorf("storage of %s created twice", r.ID)
		}
		f.storage[l.ID] = append(f.storage[l.ID], r.ID)
	})
}

func (f *fakeRunner) Start(_ context.Context, l catalog.LUN, r catalog.Replica, bootstrap []catalog.Replica) error {
	if (len(bootstrap) == 0) != (r.State == catalog.ReplicaJoining) {
		f.t.Errorf("%s starts as %s with %d replicas to begin with", r.ID, r.State, len(bootstrap))
	}
	if r.ID == f.useless {
		return errors.Join(f.do("start", l.ID, r.ID, func() {}), fmt.Errorf("%w: of %s", ErrStorageLost, r.ID))
	}
	gone := false
	err := f.do("start", l.ID, r.ID, func() {
		if f.running[l.ID] != "" {
			f.t.Errorf("start of %s: %s runs", r.ID, f.running[l.ID])
		}
		if gone = !slices.Contains(f.storage[l.ID], r.ID); !gone {
			f.running[l.ID], f.history[l.ID] = r.ID, l.Epoch
		}
	})
	if gone {
		return fmt.Errorf("no storage of %s", r.ID)
	}
	return err
}

func (f *fakeRunner) Prepared(l catalog.LUN, _ catalog.Replica) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fail["prepared"]
}

func (f *fakeRunner) Stop(_ context.Context, lun string) error {
	return f.do("stop", lun, f.running[lun], func() { delete(f.running, lun) })
}

func (f *fakeRunner) Delete(_ context.Context, lun, replica string) error {
	return f.do("delete", lun, replica, func() {
		if f.running[lun] == replica {
			f.t.Errorf("%s deleted while it runs", replica)
		}
		f.storage[lun] = slices.DeleteFunc(f.storage[lun], func(r string) bool { return r == replica })
		if len(f.storage[lun]) == 0 {
			delete(f.storage, lun)
		}
	})
}

func (f *fakeRunner) Fill(_ context.Context, l catalog.LUN, r catalog.Replica) error {
	return f.do("fill", l.ID, r.ID, func() {})
}

func (f *fakeRunner) Reconfigure(_ context.Context, l catalog.LUN) (Settled, error) {
	var done Settled
	err := f.do("reconfigure", l.ID, "", func() {
		for _, r := range l.Replicas {
			switch joins := f.inSync && r.State == catalog.ReplicaJoining; {
			case joins && r.Filled:
				done.Promoted = append(done.Promoted, r.ID)
			case joins: // it must not vote before the catalog knows that it may hold the data
				done.CaughtUp = append(done.CaughtUp, r.ID)
			}
			if f.inSync && r.Leaving {
				done.Removed = append(done.Removed, r.ID)
			}
		}
	})
	return done, err
}

func (f *fakeRunner) actions() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := strings.Join(f.log, ", ")
	f.log = nil
	return out
}

func (f *fakeRunner) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// during runs a Reconciler in a bubble of virtual time while f is called.
func during(t *testing.T, c *fakeCatalog, run *fakeRunner, f func(r *Reconciler)) {
	r := New(Config{Node: "b", Catalog: c, Proposer: c, Runner: run})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	f(r)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// settle lets enough virtual time pass for every step and retry.
func settle() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

func TestLUNIsCreatedStartedRestartedAndDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "")), newFakeRunner(t)
		during(t, c, run, func(*Reconciler) {
			settle()
			if got := run.actions(); got != "create b/2, start b/2" {
				t.Fatal(got)
			}
		})
		run.running = map[string]string{} // the process ends; its disk stays
		during(t, c, run, func(*Reconciler) {
			settle()
			if got := run.actions(); got != "start b/2" {
				t.Fatal(got)
			}
			if _, err := c.Propose(t.Context(), &catalog.DeleteLUN{ID: lunID}); err != nil {
				t.Fatal(err)
			}
			settle()
			if got := run.actions(); got != "stop b/2, delete b/2" {
				t.Fatal(got)
			}
			if got := c.model.Deleted[lunID].Nodes; fmt.Sprint(got) != "[a w]" {
				t.Fatalf("tombstone waits for %v", got)
			}
		})
	})
}

func TestReplicaInMemoryComesBackAsALearner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "started:a/1:x started:w/3:x")), newFakeRunner(t)
		during(t, c, run, func(*Reconciler) { settle() })
		run.actions()
		for incarnation := 4; incarnation < 7; incarnation++ {
			run.running, run.storage = map[string]string{}, map[string][]string{} // memory is gone with the process
			during(t, c, run, func(*Reconciler) {
				settle()
				if got, want := run.actions(), fmt.Sprintf("create b/%d, start b/%d", incarnation, incarnation); got != want {
					t.Fatalf("%s, want %s", got, want)
				}
			})
		}
		mine, _ := c.model.LUNs[lunID].ReplicaOn("b")
		if mine.Replaces != "b/2,b/4,b/5" || mine.State != catalog.ReplicaJoining {
			t.Fatalf("%+v", mine)
		}
	})
}

// A replica whose storage is there, and of no use, is replaced, and its storage deleted when another copy has taken its place.
func TestReplicaThatCannotGoOnIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "running")), newFakeRunner(t)
		run.storage[lunID], run.useless = []string{"b/2"}, "b/2"
		during(t, c, run, func(*Reconciler) {
			settle()
			if got := run.actions(); got != "start b/2, create b/4, start b/4" {
				t.Fatal(got)
			}
			for _, change := range []catalog.Change{&catalog.ReplicaFilled{LUN: lunID, Replica: "b/4"}, &catalog.ReplicaPromoted{LUN: lunID, Replica: "b/4"}} {
				if _, err := c.Propose(t.Context(), change); err != nil {
					t.Fatal(err)
				}
			}
			settle()
			if got := run.actions(); got != "delete b/2" {
				t.Fatal(got)
			}
		})
	})
}

func TestOwnerPromotesOnceTheLearnerIsInSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "running replaced:a/1:x")), newFakeRunner(t)
		run.storage[lunID], run.running[lunID] = []string{"b/2"}, "b/2"
		during(t, c, run, func(r *Reconciler) {
			time.Sleep(5 * time.Second)
			if got := run.actions(); got != "" {
				t.Fatalf("a follower did %s", got)
			}
			run.set(func() { run.owns = true })
			r.Wake()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n := strings.Count(run.actions(), "reconfigure"); n < 10 || n > 21 {
				t.Fatalf("looked after the learner %d times in 10 s", n)
			}
			run.set(func() { run.inSync = true })
			settle()
			if got, told := run.actions(), strings.Join(c.log, ", "); got != "reconfigure , reconfigure " || told != "ReplicaFilled, ReplicaPromoted" {
				t.Fatalf("%q, and the catalog was told %s", got, told)
			}
			if mine, _ := c.model.LUNs[lunID].ReplicaOn("a"); mine.State != catalog.ReplicaActive || mine.Replaces != "" {
				t.Fatalf("%+v", mine)
			}
			settle()
			if got := run.actions(); got != "" {
				t.Fatalf("a settled group is still worked on: %s", got)
			}
		})
	})
}

func TestLostAnswerDoesNotCostAnIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "")), newFakeRunner(t)
		c.lose = true
		during(t, c, run, func(*Reconciler) {
			settle()
			if got := run.actions(); got != "create b/2, start b/2" {
				t.Fatal(got)
			}
		})
		run.running, run.storage = map[string]string{}, map[string][]string{}
		c.lose = true
		during(t, c, run, func(*Reconciler) {
			settle()
			if got := run.actions(); got != "create b/4, start b/4" {
				t.Fatal(got)
			}
		})
		if c.model.NextInc != 5 {
			t.Fatalf("next incarnation %d, want 5", c.model.NextInc)
		}
	})
}

// TestOldCatalogDoesNotBringAmnesia: a node restarts with nothing in memory and a catalog from before its first start.
func TestOldCatalogDoesNotBringAmnesia(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		real, run := newFakeCatalog(history(t, "running")), newFakeRunner(t)
		old := newFakeCatalog(history(t, ""))
		r := New(Config{Node: "b", Catalog: old, Proposer: real, Runner: run})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		settle()
		if got := run.actions(); got != "" {
			t.Fatalf("with an old catalog: %s", got)
		}
		status, _, _ := r.Status()
		if len(status) != 1 || !strings.Contains(status[0].Reason, "behind") || status[0].Retry.IsZero() {
			t.Fatalf("status %+v", status)
		}
		cancel()
		<-done
	})
}

func TestFailuresAreRetriedEverMoreSlowlyAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "")), newFakeRunner(t)
		run.fail["create"] = errors.New("no space left in the pool")
		during(t, c, run, func(r *Reconciler) {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			n := strings.Count(run.actions(), "create")
			if n < 6 || n > 14 {
				t.Fatalf("tried %d times in two minutes", n)
			}
			status, _, err := r.Status()
			if err != nil || len(status) != 1 || !strings.Contains(status[0].Reason, "no space") || status[0].Failures < 6 {
				t.Fatalf("%+v %v", status, err)
			}
			run.set(func() { delete(run.fail, "create") })
			settle()
			if got := run.actions(); got != "create b/2, start b/2" {
				t.Fatal(got)
			}
			if status, _, _ := r.Status(); len(status) != 0 {
				t.Fatalf("%+v", status)
			}
		})
	})
}

// A clone's replica is not begun before the snapshot is there: nothing is recorded, nothing is created, nobody is alarmed.
func TestCloneWaitsForItsSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "clone")), newFakeRunner(t)
		run.fail["prepared"] = fmt.Errorf("waiting for the snapshot, %w", ErrNotYet)
		var logged strings.Builder
		r := New(Config{Node: "b", Catalog: c, Proposer: c, Runner: run, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		settle()
		status, _, _ := r.Status()
		if len(status) != 1 || !strings.Contains(status[0].Reason, "waiting for the snapshot") || status[0].Failures != 0 {
			t.Errorf("%+v", status)
		}
		if got := run.actions(); got != "" || len(c.log) != 0 || logged.Len() != 0 {
			t.Errorf("did %q, recorded %q, logged %q", got, c.log, logged.String())
		}
		run.set(func() { delete(run.fail, "prepared") })
		settle()
		if got := run.actions(); got != "create b/5, start b/5" {
			t.Error(got)
		}
		if fmt.Sprint(c.log) != "[ReplicaStarted ReplicaCopied]" || c.model.LUNs[lunID].IsWaiting("b/5") {
			t.Error(c.log)
		}
		cancel()
		<-done
	})
}

func TestStorageThatWillNotStartIsNotTakenForLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "")), newFakeRunner(t)
		run.fail["start"] = errors.New("corrupt")
		during(t, c, run, func(*Reconciler) {
			settle()
			if got := run.actions(); strings.Count(got, "create") != 1 || !strings.Contains(got, "start b/2, start b/2") {
				t.Fatal(got)
			}
		})
		if slices.Contains(c.log, "ReplaceReplica") {
			t.Fatal("a replica with storage was replaced")
		}
	})
}

func TestStorageThatKeepsVanishingTakesFewIncarnations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "started:a/1:x started:w/3:x")), newFakeRunner(t)
		during(t, c, run, func(r *Reconciler) {
			for range 600 { // a minute of a medium that forgets
				time.Sleep(100 * time.Millisecond)
				run.set(func() {
					if !run.busy[lunID] && run.running[lunID] != "" {
						run.storage, run.running = map[string][]string{}, map[string]string{}
					}
				})
				r.Wake()
			}
		})
		if n := c.model.NextInc - 4; n < 2 || n > 8 {
			t.Fatalf("%d incarnations in a minute", n)
		}
	})
}

// Whatever wakes it, and however often, the Reconciler leaves the processor to others: with hundreds of LUNs a look takes long, and when all of
// them change owners it would do nothing else.
func TestRoundsLeaveRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "running")), newFakeRunner(t)
		run.storage[lunID], run.running[lunID] = []string{"a/1"}, "a/1"
		during(t, c, run, func(r *Reconciler) {
			settle()
			run.set(func() { run.looks = 0 })
			for range 10_000 {
				time.Sleep(time.Millisecond)
				r.Wake()
			}
			run.set(func() {
				if run.looks < 70 || run.looks > 81 { // of 25 ms, in 10 s, one in 125 ms
					t.Errorf("looked %d times in 10 s, want about 80", run.looks)
				}
			})
		})
	})
}

func TestNodeThatCannotSeeItsStorageDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "running")), newFakeRunner(t)
		run.fail["storage"] = errors.New("the pool is not mounted")
		during(t, c, run, func(r *Reconciler) {
			settle()
			if got := run.actions(); got != "" || len(c.log) > 0 {
				t.Fatalf("%s %v", got, c.log)
			}
			if _, _, err := r.Status(); err == nil {
				t.Fatal("and does not say why")
			}
		})
	})
}

// addLUNs adds LUNs with one copy, here.
func (f *fakeCatalog) addLUNs(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		l := f.model.LUNs[lunID]
		if _, err := f.Propose(t.Context(), &catalog.CreateLUN{
			ID: uid(200 + i), Name: fmt.Sprint("l", i), Media: l.Media, Geometry: l.Geometry, Replicas: []catalog.Placement{{Node: "b"}},
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyLUNsAreWorkedOnAtOnceButBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "")), newFakeRunner(t)
		c.addLUNs(t, 40)
		during(t, c, run, func(*Reconciler) {
			settle()
			if len(run.running) != 41 || run.most != parallel {
				t.Fatalf("%d LUNs run, %d at once", len(run.running), run.most)
			}
		})
	})
}

// A node opens its portals then, and not before.
func TestTriedOnceWhatWasHereRunsOrCannot(t *testing.T) {
	const luns = 41
	for name, x := range map[string]struct {
		fail error
		runs int
	}{"runs": {nil, luns}, "cannot be started": {errors.New("corrupt"), 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, run := newFakeCatalog(history(t, "")), newFakeRunner(t)
				c.addLUNs(t, luns-1)
				during(t, c, run, func(r *Reconciler) { // a node that has nothing yet
					<-r.Tried()
					settle()
				})
				run.set(func() { run.running, run.fail["start"] = map[string]string{}, x.fail })
				run.actions()
				during(t, c, run, func(r *Reconciler) {
					<-r.Tried()
					tried := strings.Count(run.actions(), "start ")
					if n := len(run.Running()); tried < luns || n != x.runs {
						t.Errorf("%d of %d have been tried, %d run", tried, luns, n)
					}
				})
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c, run := newFakeCatalog(history(t, "running")), newFakeRunner(t)
		run.fail["storage"] = errors.New("the pool is not mounted")
		during(t, c, run, func(r *Reconciler) {
			settle()
			select {
			case <-r.Tried():
				t.Error("a node that cannot see its storage has tried it")
			default:
			}
		})
	})
}
