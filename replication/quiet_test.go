package replication

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
)

// Rule L with vouches in the heartbeats' place: whenever the owner's lease is valid, no majority is free to elect another, whatever
// is late, lost, forgotten or begun anew.
func TestVouchedLeaseEndsBeforeAnyMajorityIsFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const hold = 250 * time.Millisecond
		born := time.Now()
		now := born.Add(time.Second)
		owner, follower := raft.ServerID("o/1"), raft.ServerID("f/1")
		ownerHost := &Host{born: born}
		out := &voucher{host: ownerHost, node: "f", groups: map[uint64]*Group{}, asking: map[uint64]bool{}, ending: map[uint64]bool{}, running: true}
		in := newVouchee(born)
		timing := DefaultTiming()
		timing.Promise = hold
		type lun struct {
			owner, follower *Group
			term            uint64 // the follower's Raft's
		}
		luns := make([]lun, rapid.IntRange(1, 3).Draw(t, "luns"))
		for i := range luns {
			luns[i].term = 7
			luns[i].owner = &Group{lease: newLease(owner, hold), host: ownerHost, cfg: Config{Timing: timing}}
			luns[i].owner.lease.begin(7, []raft.ServerID{owner, follower})
			luns[i].follower = &Group{promise: newPromise(hold, born.Add(-time.Hour)), cfg: Config{Timing: timing}}
		}
		token := uint64(0)
		type agreed struct {
			lun   int
			token uint64
		}
		type message struct {
			q    vouchRequest
			sent time.Time
			a    vouchAnswer
		}
		var asked, agreements []agreed
		var requests, answers []message
		next := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "which") }
		for range rapid.IntRange(10, 150).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "ms")) * time.Millisecond)
			i := next(len(luns))
			l := luns[i]
			switch rapid.IntRange(0, 11).Draw(t, "event") {
			case 0: // the owner asks whether the LUN may be quiet
				token++
				out.asking[token] = true
				asked = append(asked, agreed{i, token})
			case 1: // the follower hears of it, soon or late, and agrees
				if len(asked) > 0 {
					n := next(len(asked))
					a := asked[n]
					asked = append(asked[:n], asked[n+1:]...)
					g, termNow := luns[a.lun].follower, func() uint64 { return luns[a.lun].term }
					g.stir()
					if in.agree(g, &hushed{token: a.token, term: 7, owner: owner, by: in, done: make(chan struct{}), termNow: termNow}) {
						agreements = append(agreements, a)
					}
				}
			case 2: // the owner hears that it has
				if len(agreements) > 0 {
					n := next(len(agreements))
					a := agreements[n]
					agreements = append(agreements[:n], agreements[n+1:]...)
					g := luns[a.lun].owner
					if !out.asking[a.token] || g.quiet.Load() != nil {
						out.end(a.token)
						continue
					}
					out.add(a.token, g)
					g.quiet.Store(&quiet{token: a.token, term: 7, since: now, done: make(chan struct{}), peers: []quietPeer{{id: follower, vouch: out}}})
				}
			case 3, 4: // a vouch is sent
				requests = append(requests, message{q: out.next(), sent: now})
			case 5, 6: // one arrives, and is answered
				if len(requests) > 0 {
					n := next(len(requests))
					m := requests[n]
					requests = append(requests[:n], requests[n+1:]...)
					m.a = in.serve(m.q, now)
					answers = append(answers, m)
				}
			case 7: // the newest answer arrives: run has one under way at a time
				if len(answers) > 0 {
					m := answers[len(answers)-1]
					answers, requests = nil, nil
					for _, g := range out.settle(m.q, m.a) {
						g.wake()
					}
					out.sent.Store(int64(m.sent.Sub(born)))
				}
			case 8: // the follower forgets
				l.follower.stir()
			case 9: // an entry is stored
				l.owner.wake()
			case 10: // the follower's process is another
				if rapid.Bool().Draw(t, "restart") {
					in = newVouchee(born)
					for i := range luns {
						luns[i].follower = &Group{promise: newPromise(hold, now), cfg: Config{Timing: timing}}
					}
				}
			case 11: // the follower votes for another, and nobody has told it yet to be quiet no longer
				if !l.follower.forbids("someone-else", now) {
					luns[i].term++
				}
			}
			for i := range luns {
				if luns[i].owner.leased(7, now) && luns[i].term != 7 {
					t.Fatalf("LUN %d: the owner reads under a lease while its only other voter has voted for another", i)
				}
				if luns[i].owner.leased(7, now) && !luns[i].follower.forbids("someone-else", now) {
					t.Fatalf("LUN %d: the owner reads under a lease while its only other voter is free", i)
				}
			}
		}
	})
}

// Whatever was lost on the way, the two nodes come to agree on what is quiet.
func TestVouchesSettleWhatIsQuiet(t *testing.T) {
	born := time.Now()
	out := &voucher{host: &Host{born: born}, groups: map[uint64]*Group{}, asking: map[uint64]bool{}, ending: map[uint64]bool{}, running: true}
	in := newVouchee(born)
	agree := func(token uint64) *Group {
		g := &Group{promise: newPromise(time.Second, born), cfg: Config{Timing: DefaultTiming()}}
		if !in.agree(g, &hushed{token: token, by: in, owner: "o/1", done: make(chan struct{}), termNow: func() uint64 { return 0 }}) {
			t.Fatal("not agreed")
		}
		return g
	}
	both, orphan, forgotten := agree(1), agree(2), agree(3)
	ownerBoth, ownerForgotten := &Group{}, &Group{}
	out.groups[1], out.groups[3] = ownerBoth, ownerForgotten
	forgotten.stir()
	var woken []*Group
	for range 3 {
		q := out.next()
		a, err := decodeVouchAnswer(in.serve(q, born).encode())
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range out.settle(q, a) {
			woken = append(woken, g)
			delete(out.groups, 3) // as wake does
		}
	}
	if len(woken) != 1 || woken[0] != ownerForgotten {
		t.Errorf("woken on the owner: %v, want the one the follower has forgotten", woken)
	}
	if orphan.hushed.Load() != nil || both.hushed.Load() == nil {
		t.Errorf("on the follower: orphan %v, agreed %v", orphan.hushed.Load(), both.hushed.Load())
	}
	if q := out.next(); len(q.ended) != 0 {
		t.Errorf("still ending %v", q.ended)
	}
	if a := in.serve(out.next(), born); a.differs {
		t.Errorf("still differs: %+v", a)
	}
}

func TestVouchesSurviveEncoding(t *testing.T) {
	q := vouchRequest{count: 2, sum: 1 << 63, ended: []uint64{1, 2, 3}}
	if got, err := decodeVouchRequest(q.encode()); err != nil || fmt.Sprint(got) != fmt.Sprint(q) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, a := range []vouchAnswer{{}, {differs: true}, {differs: true, tokens: []uint64{4}}} {
		if got, err := decodeVouchAnswer(a.encode()); err != nil || fmt.Sprint(got) != fmt.Sprint(a) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for _, raw := range [][]byte{nil, {1}, q.encode()[:17], append([]byte{2}, q.encode()[1:]...)} {
		if _, err := decodeVouchRequest(raw); err == nil {
			t.Errorf("%x was taken for a vouch", raw)
		}
		if _, err := decodeVouchAnswer(raw[:min(len(raw), 1)]); err == nil {
			t.Errorf("%x was taken for an answer", raw)
		}
	}
}

func quietFleet(t *testing.T, luns int) *fleet {
	t.Helper()
	f := newFleet(t, luns)
	for i := range luns {
		f.write(i)
	}
	f.quiet()
	return f
}

// A quiet LUN is read under its lease and keeps its owner, though nobody hears of it.
func TestQuietLUNIsReadWithoutAMessage(t *testing.T) {
	f := quietFleet(t, 1)
	// On a machine that stands still for long enough a quiet ends by itself: then the next one is looked at.
	for attempt := 0; !f.staysQuiet(0); attempt++ {
		if attempt == 10 {
			t.Fatal("a LUN that nobody uses does not stay quiet")
		}
		f.quiet()
	}
}

// staysQuiet looks at a quiet LUN for three seconds; false if it did not stay so.
func (f *fleet) staysQuiet(lun int) bool {
	f.t.Helper()
	g := f.owner(lun)
	if g == nil {
		return false
	}
	q, tenure := g.quiet.Load(), g.tenure.Load()
	if q == nil || tenure == nil {
		return false
	}
	heard := func() string {
		g.mu.Lock()
		defer g.mu.Unlock()
		return fmt.Sprint(g.heard)
	}
	vouchedFor := func(d time.Duration) bool {
		eventually(f.t, "vouches are answered", func() bool { return g.quiet.Load() != q || q.sent(q.peers[0].id).After(q.since.Add(d)) })
		return g.quiet.Load() == q
	}
	if !vouchedFor(holdFor + time.Second/2) { // what was held when the quiet began has gone out
		return false
	}
	before := heard()
	if !vouchedFor(holdFor + 7*time.Second/2) {
		return false
	}
	now, leased, direct := heard(), g.leased(tenure.term, time.Now()), g.lease.valid(tenure.term, time.Now())
	err := g.Read(context.Background(), blockRange(0), make([]byte, 4096))
	var contacts []time.Duration
	for _, n := range f.nodes {
		if o := n.groups[lun]; o != g {
			contacts = append(contacts, time.Since(o.running().raft.LastContact()))
		}
	}
	if g.quiet.Load() != q {
		return false
	}
	if err != nil || !leased || direct {
		f.t.Errorf("read: %v; leased %v, of which by heartbeats %v", err, leased, direct)
	}
	if now != before {
		f.t.Errorf("members were told something: %s, before %s", now, before)
	}
	for _, c := range contacts {
		if c > time.Second {
			f.t.Errorf("a follower's Raft has heard nothing for %v", c)
		}
	}
	return g.tenure.Load() == tenure
}

// The first write to a quiet LUN takes no longer than any other: it waits for no clock, and for no agreement.
func TestFirstWriteWakesAQuietLUN(t *testing.T) {
	f := quietFleet(t, 8)
	for i := range f.luns {
		g := f.owner(i)
		q := g.quiet.Load()
		// Raft's pauses, and this package's, are 50 ms and more.
		if took := f.write(i); took > 40*time.Millisecond && !underRace {
			t.Errorf("LUN %d: the first write took %v", i, took)
		}
		if g.quiet.Load() == q {
			t.Errorf("LUN %d is still quiet", i)
		}
	}
	f.quiet() // again
}

// A rebuild that was ordered of a replica which has been replaced, or which votes all the same, keeps nobody awake.
func TestOrdersThatAreOverKeepNoLUNAwake(t *testing.T) {
	f := quietFleet(t, 1)
	g := f.owner(0)
	g.mu.Lock()
	g.rebuild.orders = map[raft.ServerID]string{"z/99": "replaced"}
	for id, m := range g.members {
		if id != g.cfg.Self.ID && !m.Witness {
			g.rebuild.orders[id] = "votes"
		}
	}
	orders := len(g.rebuild.orders)
	g.mu.Unlock()
	if orders != 2 {
		t.Fatalf("%d orders, want 2", orders)
	}
	f.write(0)
	f.quiet()
}

// move hands a LUN to its other copy.
func (f *fleet) move(lun int) {
	f.t.Helper()
	g := f.owner(lun)
	for _, m := range fleetMembers(lun) {
		if !m.Witness && m.ID != g.cfg.Self.ID {
			if err := g.Transfer(context.Background(), m.ID); err != nil {
				f.t.Fatal(err)
			}
			eventually(f.t, "the LUN has moved", func() bool { o := f.owner(lun); return o != nil && o.cfg.Self.ID == m.ID })
		}
	}
}

func TestQuietLUNMoves(t *testing.T) {
	f := quietFleet(t, 1)
	f.move(0)
	f.write(0)
	f.quiet()
}

// A LUN that was not in use before its owner changed is not in use afterwards: it does not stay awake as long as one that is written to. (On a machine
// that is busy it may take as long.)
func TestElectionIsNoUse(t *testing.T) {
	f := quietFleet(t, 1)
	for attempt := 1; ; attempt++ {
		f.move(0)
		switch took := f.quiet(); {
		case took < quietAfter*3/4:
			return
		case attempt == 5:
			t.Fatalf("quiet %v after it has moved, in the last of %d attempts", took, attempt)
		}
	}
}

// Nothing about a quiet LUN's failover is different from that of one in use.
func TestQuietLUNsAreTakenOver(t *testing.T) {
	luns, within := 100, 3*time.Second
	if underRace {
		luns, within = 15, 20*time.Second
	}
	f := quietFleet(t, luns)
	owned := 0
	for i := range luns {
		if f.owner(i).cfg.Self.Node == "a" {
			owned++
		}
	}
	f.stop("a")
	took := f.served()
	t.Logf("%d of %d LUNs were owned by the node that was killed; all served %v later", owned, luns, took)
	if took > within || owned == 0 {
		t.Errorf("took %v", took)
	}
	for i := range luns {
		f.write(i)
	}
}

// A LUN is quiet without a node that cannot be reached, whatever it had of the LUN: else what a dead node costs the others is more than what it did.
func TestQuietWithoutANode(t *testing.T) {
	f := quietFleet(t, 3)
	f.stop("a")
	f.served()
	for round := range 2 {
		for i := range f.luns {
			f.write(i)
		}
		f.quiet()
		for i := range f.luns {
			if q := f.owner(i).quiet.Load(); q != nil && (len(q.peers) != 1 || !q.peers[0].bears || len(q.away) != 1 || q.away[0] != "a") {
				t.Fatalf("round %d, LUN %d: %+v", round, i, q)
			}
		}
	}
	for i := range f.luns {
		for attempt := 0; !f.staysQuiet(i); attempt++ {
			if attempt == 10 {
				t.Fatalf("LUN %d does not stay quiet", i)
			}
			f.quiet()
		}
	}
}

// What was away ends the quiet by coming back, is brought up to date, and is quiet with the others.
func TestQuietEndsWhenANodeComesBack(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, node := range []string{"w", "copy"} {
		owner := c.owner()
		if node == "copy" {
			node = other(owner)
		}
		g := c.group(owner)
		c.stop(node)
		if err := c.write(ctx, 1, 1); err != nil {
			t.Fatal(err)
		}
		var q *quiet
		eventually(t, "the LUN is quiet without "+node, func() bool { q = g.quiet.Load(); return q != nil })
		if len(q.peers) != 1 || len(q.away) != 1 || q.away[0] != node {
			t.Fatalf("without %s: %+v", node, q)
		}
		c.start(node, false)
		select {
		case <-q.done:
		case <-ctx.Done():
			t.Fatalf("%s is back, and nobody speaks to it", node)
		}
		eventually(t, "all is whole, and quiet", func() bool {
			q := c.group(c.owner()).quiet.Load()
			return q != nil && len(q.peers) == 2 && len(q.away) == 0 && c.group(c.owner()).Status().Health == HealthHealthy
		})
	}
}

// A copy that is away, or whose storage has failed, for so long that it has to be rebuilt keeps nobody awake either, though Raft finds that out again
// and again.
func TestQuietWithoutACopyThatMustBeRebuilt(t *testing.T) {
	for _, tc := range []struct {
		name string
		lose func(c *cluster, node string, dev *failingDev)
		away int
	}{
		{"its node is dead", func(c *cluster, node string, _ *failingDev) { c.stop(node) }, 1},
		{"its storage has failed", func(c *cluster, node string, dev *failingDev) {
			kind := "write"
			dev.next.Store(&kind)
			c.mustWrite(9, 1)
			eventually(c.t, "the replica is out", func() bool { return c.group(node).Err() != nil })
		}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			devs := map[string]*failingDev{}
			c := &cluster{limits: Limits{JournalKeepBytes: 1 << 20, CheckpointBytes: 1 << 20}}
			c.wrapDev = func(node string, d vfs.Dev) vfs.Dev {
				devs[node] = &failingDev{Dev: d}
				return devs[node]
			}
			newClusterWith(t, c, blockstore.MediaFile, "a", "b", "w")
			ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
			defer cancel()
			owner := c.owner()
			g, node := c.group(owner), other(owner)
			id := c.member(node).ID
			tc.lose(c, node, devs[node])
			needs := func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return g.needs[id]
			}
			for n := uint64(1); !needs(); n++ {
				if err := c.write(ctx, int(n%8), n); err != nil {
					t.Fatal(err)
				}
			}
			var q *quiet
			eventually(t, "the LUN is quiet without it", func() bool { q = g.quiet.Load(); return q != nil })
			if len(q.peers) != 1 || q.peer(id) != nil || len(q.away) != tc.away {
				t.Fatalf("%+v", q)
			}
			g.mu.Lock()
			g.needs[id] = false
			g.mu.Unlock()
			eventually(t, "Raft finds that out once more", needs) // it tries once in 10 s
			if g.quiet.Load() != q {
				t.Error("that has ended the quiet")
			}
			if tc.away == 0 {
				c.stop(node)
			}
			c.start(node, false)
			eventually(t, "all is whole, and quiet", func() bool {
				q := c.group(c.owner()).quiet.Load()
				return q != nil && len(q.peers) == 2 && len(q.away) == 0 && c.group(c.owner()).Status().Health == HealthHealthy
			})
		})
	}
}

// A copy that was out and answers ends the quiet by that, on a connection that was there all the time, and is one of those that are quiet then.
func TestQuietEndsWhenACopyAnswersAgain(t *testing.T) {
	f := quietFleet(t, 1)
	g := f.owner(0)
	g.wake()
	inst := g.running()
	others, _ := g.voters(inst)
	id := others[0].ID
	long := time.Now().Add(-time.Minute)
	g.mu.Lock()
	g.out[id] = long
	g.gate.Link(string(id), false, long)
	g.gate.Tick(inst.raft.LastIndex(), time.Now())
	g.mu.Unlock()
	eventually(t, "it is quiet with the others", func() bool { q := g.quiet.Load(); return q != nil && q.peer(id) != nil })
	if !g.reaches(others[0]) {
		t.Error("it counts as out, and has answered")
	}
}

// Without a quorum that can be reached, or with a copy that has not been given up yet, there is no quiet.
func TestQuietNeedsAQuorum(t *testing.T) {
	f := quietFleet(t, 1)
	g := f.owner(0)
	g.wake()
	inst := g.running()
	last := inst.raft.LastIndex()
	members, _ := g.voters(inst)
	if err := g.inStep(inst, members, members, last); err != nil {
		t.Fatalf("all in step: %v", err)
	}
	copyOf, other := members[0], members[1]
	if copyOf.Witness || !other.Witness {
		t.Fatalf("members are %+v", members)
	}
	for name, here := range map[string][]Member{"nobody": nil, "the witness, and a copy that may be back in a moment": {other}} {
		if err := g.inStep(inst, members, here, last); err == nil {
			t.Errorf("%s: in step", name)
		}
	}
	if err := g.inStep(inst, members, []Member{copyOf}, last); err != nil {
		t.Errorf("without the witness: %v", err)
	}
	g.mu.Lock()
	g.gate.Link(string(copyOf.ID), false, time.Now().Add(-time.Minute))
	g.gate.Tick(last, time.Now())
	g.mu.Unlock()
	if err := g.inStep(inst, members, []Member{other}, last); err != nil {
		t.Errorf("with the witness, the copy given up: %v", err)
	}
}

// A follower that comes to doubt its owner while the LUN is quiet is heard: its owner speaks again.
func TestForgottenQuietIsWoken(t *testing.T) {
	f := quietFleet(t, 1)
	g := f.owner(0)
	q := g.quiet.Load()
	for _, n := range f.nodes {
		if h := n.groups[0].hushed.Load(); h != nil {
			n.groups[0].stir()
			break
		}
	}
	select {
	case <-q.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the owner still vouches for a LUN that its follower no longer counts as quiet")
	}
	f.quiet()
	if f.owner(0) != g {
		t.Error("the LUN has changed its owner for that")
	}
}

// Whether the copies of a quiet LUN are being scrubbed is seldom asked, unless one of them is, or does not know the settings yet.
func TestQuietLUNIsSeldomAskedAboutItsScrub(t *testing.T) {
	f := quietFleet(t, 1)
	g := f.owner(0)
	seldom := func() bool { return g.scrubAskEvery() == scrubAskQuiet }
	others := func(st ScrubStatus) {
		g.scrub.mu.Lock()
		defer g.scrub.mu.Unlock()
		for _, m := range fleetMembers(0) {
			if !m.Witness && m.ID != g.cfg.Self.ID {
				g.scrub.peers[m.ID] = st
			}
		}
	}
	own := func(running bool) {
		g.scrub.mu.Lock()
		defer g.scrub.mu.Unlock()
		g.scrub.cursor.Running = running
	}
	eventually(t, "nobody is being scrubbed", func() bool {
		f.quiet()
		if g = f.owner(0); g != nil {
			others(ScrubStatus{})
		}
		return g != nil && seldom()
	})
	if others(ScrubStatus{Running: true}); seldom() {
		t.Error("while the other copy is scrubbed")
	}
	if others(ScrubStatus{Paused: true}); seldom() {
		t.Error("while the other copy does not know what the settings are now")
	}
	others(ScrubStatus{})
	if own(true); seldom() {
		t.Error("while this one is scrubbed")
	}
	own(false)
	g.scrub.mu.Lock()
	clear(g.scrub.peers)
	g.scrub.mu.Unlock()
	if seldom() {
		t.Error("while nothing is known of the other copy")
	}
	others(ScrubStatus{})
	f.write(0)
	if seldom() {
		t.Error("while it is used")
	}
}
