package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// placed makes a model with data nodes a to e and witnesses v and w, and one LUN whose replicas, "a b w*" with a star behind a witness, have all
// been started.
func placed(t *testing.T, replicas string) *Model {
	t.Helper()
	m := NewModel("lab")
	for i, n := range strings.Fields("a b c d e v w") {
		kind := KindData
		if n == "v" || n == "w" {
			kind = KindWitness
		}
		m, _ = must(t, m, &RegisterNode{Name: n, ID: uid(i + 1), Kind: kind})
	}
	m, _ = must(t, m, &CreateLUN{ID: uid(100), Name: "vm1", Geometry: gib, Media: MediaFile, Replicas: places(replicas)})
	m, _ = must(t, m, started(m, uid(100))...)
	return m
}

func places(text string) (out []Placement) {
	for _, f := range strings.Fields(text) {
		n, witness := strings.CutSuffix(f, "*")
		out = append(out, Placement{Node: n, Witness: witness})
	}
	return out
}

// shape writes down a LUN's replicas: a star is a witness, a plus one that joins, a minus one that leaves.
func shape(m *Model) string {
	var out []string
	for _, r := range m.LUNs[uid(100)].Replicas {
		s := r.ID
		for i, is := range []bool{r.Witness, r.State == ReplicaJoining, r.Leaving} {
			if is {
				s += "*+-"[i : i+1]
			}
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func set(m *Model, replicas string) *SetReplicas {
	c := &SetReplicas{LUN: uid(100), Replicas: places(replicas)}
	for _, r := range m.LUNs[uid(100)].Replicas {
		c.Was = append(c.Was, r.ID)
	}
	return c
}

// A copy moves: the new one joins, the old one leaves when it holds the data, and its storage is remembered until it has been deleted.
func TestReplicaMovesStepByStep(t *testing.T) {
	m := placed(t, "a b w*")
	check := func(want string) {
		t.Helper()
		if got := shape(m); got != want {
			t.Fatalf("replicas are %s, want %s", got, want)
		}
	}
	move := set(m, "a c w*")
	m, _ = must(t, m, move)
	check("a/1 b/2- w/3* c/4+")
	if m, r := must(t, m, move); r.Changed || shape(m) != "a/1 b/2- w/3* c/4+" {
		t.Fatal("the same request again changed something")
	}
	removed := &ReplicaRemoved{LUN: uid(100), Replica: "b/2"}
	if _, _, err := Apply(m, 99, removed); !errors.Is(err, ErrStale) {
		t.Fatalf("the old copy was given up while the new one has nothing: %v", err)
	}
	if _, _, err := Apply(m, 99, &ReplicaPromoted{LUN: uid(100), Replica: "c/4"}); !errors.Is(err, ErrStale) {
		t.Fatalf("a replica without storage was promoted: %v", err)
	}
	m, r := must(t, m, &ReplicaStarted{LUN: uid(100), Replica: "c/4", Claim: "x"})
	if r.Replica.State != ReplicaJoining || r.Replica.Claim != "x" {
		t.Fatalf("%+v", r.Replica)
	}
	if _, _, err := Apply(m, 99, &ReplicaStarted{LUN: uid(100), Replica: "c/4", Claim: "y"}); !errors.Is(err, ErrStale) {
		t.Fatalf("a second process may create the storage: %v", err)
	}
	m, _ = must(t, m, &ReplicaPromoted{LUN: uid(100), Replica: "c/4"})
	m, _ = must(t, m, removed)
	check("a/1 w/3* c/4")
	if m, r := must(t, m, removed); r.Changed || !slices.Equal(m.LUNs[uid(100)].Left, []string{"b/2"}) {
		t.Fatalf("%v, left %v", r, m.LUNs[uid(100)].Left)
	}
	if deleted, _ := must(t, m, &DeleteLUN{ID: uid(100)}); !slices.Contains(deleted.Deleted[uid(100)].Nodes, "b") {
		t.Error("a LUN that is deleted now leaves storage on b behind")
	}
	gone := &ReplicaDeleted{LUN: uid(100), Replica: "b/2"}
	m, _ = must(t, m, gone)
	if m, r := must(t, m, gone); r.Changed || len(m.LUNs[uid(100)].Left) != 0 || m.Version != versionMembers {
		t.Fatalf("%+v", m.LUNs[uid(100)])
	}
}

// Wanting the old set again undoes what has not been done: nobody's data is touched.
func TestMoveIsUndone(t *testing.T) {
	m := placed(t, "a b w*")
	m, _ = must(t, m, set(m, "a c w*"), &ReplicaStarted{LUN: uid(100), Replica: "c/4", Claim: "x"})
	m, _ = must(t, m, set(m, "a b w*"))
	if got := shape(m); got != "a/1 b/2 w/3*" || !slices.Equal(m.LUNs[uid(100)].Left, []string{"c/4"}) {
		t.Fatalf("replicas are %s, left %v", got, m.LUNs[uid(100)].Left)
	}
	if m, _ = must(t, m, &RemoveNode{Name: "c"}); len(m.LUNs[uid(100)].Left) != 0 {
		t.Fatal("a node that is gone is waited for")
	}
}

// A new copy that may vote already is relied upon: it leaves as any other does.
func TestMoveIsUndoneWhenTheNewCopyMayVote(t *testing.T) {
	m := placed(t, "a b w*")
	m, _ = must(t, m, set(m, "a c w*"), &ReplicaStarted{LUN: uid(100), Replica: "c/4", Claim: "x"}, &ReplicaFilled{LUN: uid(100), Replica: "c/4"})
	m, _ = must(t, m, set(m, "a b w*"))
	if got := shape(m); got != "a/1 b/2 w/3* c/4+-" || len(m.LUNs[uid(100)].Left) != 0 {
		t.Fatalf("replicas are %s, left %v", got, m.LUNs[uid(100)].Left)
	}
	m, _ = must(t, m, &ReplicaRemoved{LUN: uid(100), Replica: "c/4"})
	if got := shape(m); got != "a/1 b/2 w/3*" || !slices.Equal(m.LUNs[uid(100)].Left, []string{"c/4"}) {
		t.Fatalf("replicas are %s, left %v", got, m.LUNs[uid(100)].Left)
	}
}

func TestReplicaSetsGrowAndShrink(t *testing.T) {
	for _, test := range []struct{ from, to, want string }{
		{"a", "a b w*", "a/1 b/2+ w/3*+"},
		{"a b w*", "a", "a/1 b/2- w/3*-"},
		{"a b w*", "a b c", "a/1 b/2 w/3*- c/4+"},
		{"a b c", "a b w*", "a/1 b/2 c/3- w/4*+"},
		{"a b w*", "c d v*", "a/1- b/2- w/3*- c/4+ d/5+ v/6*+"},
		{"a b c", "a b c d w*", "a/1 b/2 c/3 d/4+ w/5*+"},
		{"a b c d w*", "a b c d e", "a/1 b/2 c/3 d/4 w/5*- e/6+"},
		{"a b w*", "a b v*", "a/1 b/2 w/3*- v/4*+"},
		{"a b c*", "a b c", "a/1 b/2 c/3*- c/4+"},
		{"a b c", "a b c*", "a/1 b/2 c/3- c/4*+"},
	} {
		m := placed(t, test.from)
		m, _ = must(t, m, set(m, test.to))
		if got := shape(m); got != test.want {
			t.Errorf("%s to %s: %s, want %s", test.from, test.to, got, test.want)
		}
		if l := m.LUNs[uid(100)]; !strings.Contains(test.to, l.Preferred) {
			t.Errorf("%s to %s: %s is preferred", test.from, test.to, l.Preferred)
		}
	}
}

func TestReplicaSetsThatAreRefused(t *testing.T) {
	for _, test := range []struct{ from, to, code string }{
		{"a b w*", "a b", "invalid"},
		{"a b w*", "a b c w*", "invalid"},
		{"a b w*", "a b c d", "invalid"},
		{"a b w*", "", "invalid"},
		{"a b w*", "a a w*", "invalid"},
		{"a b w*", "a w v*", "invalid"},
		{"a b w*", "a z w*", "not_found"},
	} {
		m := placed(t, test.from)
		_, _, err := Apply(m, 99, set(m, test.to))
		var refusal *Refusal
		if !errors.As(err, &refusal) || string(refusal.Code) != test.code {
			t.Errorf("%s to %s: %v, want %s", test.from, test.to, err, test.code)
		}
	}
	m := placed(t, "a b w*")
	old := set(m, "a b c")
	m, _ = must(t, m, &ReplaceReplica{LUN: uid(100), Old: "b/2", Claim: "x"})
	if _, _, err := Apply(m, 99, old); !errors.Is(err, ErrStale) {
		t.Errorf("made from an old list: %v", err)
	}
	m, _ = must(t, m, set(m, "b c w*"))
	if _, _, err := Apply(m, 99, &ReplicaRemoved{LUN: uid(100), Replica: "w/3"}); !errors.Is(err, ErrStale) {
		t.Errorf("one that stays was removed: %v", err)
	}
}

func recovery(epoch uint64, replica string) *RecoverLUN {
	return &RecoverLUN{LUN: uid(100), Recovery: Recovery{Epoch: epoch, Replica: replica, Term: 7, At: 1000, Through: "a", By: "kk", Lost: "3 entries"}}
}

// The first of two survivors wins, every other replica begins anew, and there is a record of it.
func TestRecoveryIsDecidedOnce(t *testing.T) {
	m := placed(t, "a b w*")
	m, r := must(t, m, recovery(2, "b/2"))
	if got := shape(m); got != "a/4+ b/2 w/5*+" || r.Replica.ID != "b/2" {
		t.Fatalf("replicas are %s, answer %+v", got, r.Replica)
	}
	l := m.LUNs[uid(100)]
	if rec, ok := l.RecoveredBy(); !ok || rec.By != "kk" || rec.Lost != "3 entries" || l.Epoch != 2 || l.Preferred != "b" || m.Version != versionMembers {
		t.Fatalf("%+v", l)
	}
	if next, r := must(t, m, recovery(2, "b/2")); r.Changed || len(next.LUNs[uid(100)].Recoveries) != 1 {
		t.Fatal("the same decision was made twice")
	}
	for _, late := range []*RecoverLUN{recovery(2, "a/4"), recovery(2, "a/1"), recovery(1, "b/2"), recovery(4, "b/2")} {
		if _, _, err := Apply(m, 99, late); !errors.Is(err, ErrStale) {
			t.Errorf("%+v: %v", late.Recovery, err)
		}
	}
	for _, bad := range []*RecoverLUN{recovery(3, "w/5"), {LUN: uid(9)}, {LUN: uid(100), Recovery: Recovery{Epoch: 3, Replica: "b/2", By: strings.Repeat("x", 2000)}}} {
		if _, _, err := Apply(m, 99, bad); err == nil || errors.Is(err, ErrStale) {
			t.Errorf("%+v: %v", bad.Recovery, err)
		}
	}
	for epoch := uint64(3); epoch < 30; epoch++ {
		m, _ = must(t, m, recovery(epoch, "b/2"))
	}
	if got := m.LUNs[uid(100)].Recoveries; len(got) != maxRecoveries || got[len(got)-1].Epoch != 29 {
		t.Errorf("%d records", len(got))
	}
}

// What was leaving when everything went is given up, and a lost LUN of which a copy turned up is one no more.
func TestRecoveryInTheMiddleOfAMove(t *testing.T) {
	m := placed(t, "a b w*")
	m, _ = must(t, m, set(m, "a c w*"), &ReplicaStarted{LUN: uid(100), Replica: "c/4", Claim: "x"}, recovery(2, "a/1"))
	if got := shape(m); got != "a/1 w/5*+ c/6+" || !slices.Equal(m.LUNs[uid(100)].Left, []string{"b/2"}) {
		t.Fatalf("replicas are %s, left %v", got, m.LUNs[uid(100)].Left)
	}
	m = placed(t, "a b w*")
	m, _ = must(t, m, set(m, "a c w*"), &ReplicaStarted{LUN: uid(100), Replica: "c/4", Claim: "x"}, recovery(2, "b/2"))
	if got := shape(m); got != "a/5+ b/2 w/6*+ c/7+" {
		t.Fatalf("the copy that was about to leave is the only one left: %s", fmt.Sprint(got))
	}
}

// The witness's node gets a copy: that is filled beside the witness, which votes until then.
func TestReplicaTakesAnothersPlaceOnItsNode(t *testing.T) {
	m := placed(t, "a b c*")
	m, _ = must(t, m, set(m, "a b c"), &ReplicaStarted{LUN: uid(100), Replica: "c/4", Claim: "x"})
	l := m.LUNs[uid(100)]
	if now, _ := l.ReplicaOn("c"); now.ID != "c/3" {
		t.Fatalf("%+v runs on c", now)
	}
	if next, ok := l.ComingOn("c"); !ok || next.ID != "c/4" {
		t.Fatalf("%+v is to come", next)
	}
	removed := &ReplicaRemoved{LUN: uid(100), Replica: "c/3"}
	if _, _, err := Apply(m, 99, removed); !errors.Is(err, ErrStale) {
		t.Fatalf("the witness went while the copy has nothing: %v", err)
	}
	if undone, _ := must(t, m, set(m, "a b c*")); shape(undone) != "a/1 b/2 c/3*" || !slices.Equal(undone.LUNs[uid(100)].Left, []string{"c/4"}) {
		t.Fatalf("undone: %s", shape(undone))
	}
	if recovered, _ := must(t, m, recovery(2, "a/1")); shape(recovered) != "a/1 b/5+ c/6+" {
		t.Fatalf("recovered in between: %s", shape(recovered))
	}
	filled := &ReplicaFilled{LUN: uid(100), Replica: "c/4"}
	m, _ = must(t, m, filled)
	if _, r := must(t, m, filled); r.Changed {
		t.Fatal("filled twice")
	}
	m, _ = must(t, m, removed)
	if got := shape(m); got != "a/1 b/2 c/4+" {
		t.Fatalf("replicas are %s", got)
	}
	if _, ok := m.LUNs[uid(100)].ComingOn("c"); ok {
		t.Fatal("it still waits for another to go")
	}
	m, _ = must(t, m, &ReplicaPromoted{LUN: uid(100), Replica: "c/4"})
	if !m.LUNs[uid(100)].Settled() {
		t.Fatal("not settled")
	}
}

// A copy goes to another pool of its node the same way, if another copy is there meanwhile.
func TestReplicaMovesToAnotherPool(t *testing.T) {
	m := placed(t, "a b w*")
	c := set(m, "a b w*")
	c.Replicas[1].Pool = "ssd1"
	m, _ = must(t, m, c)
	if got := shape(m); got != "a/1 b/2- w/3* b/4+" {
		t.Fatalf("replicas are %s", got)
	}
	c.Was = nil
	if _, r := must(t, m, c); r.Changed {
		t.Fatal("the same request again changed something")
	}
	m = placed(t, "a")
	c = set(m, "a")
	c.Replicas[0].Pool = "ssd1"
	if _, _, err := Apply(m, 99, c); !errors.Is(err, ErrInUse) {
		t.Fatalf("the only copy was given up: %v", err)
	}
}
