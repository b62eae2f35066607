package witness

import "fmt"

// rules are what a mutant takes away; all false is the product.
type rules struct {
	noGate           bool // the witness is sent everything
	earlySync        bool // a copy counts as in sync as soon as it is nearly there
	offeredLate      bool // what the witness may have is counted when it answers, not when it is sent
	ackEarly         bool // with the other copy out, a write is acknowledged before the witness has it
	wholeMatched     bool // a request that the gate has shortened counts as it was
	forgetVote       bool // a vote is not durable
	anyLog           bool // voters do not compare logs
	commitOldTerms   bool // an owner commits by counting what is of an earlier term
	overwriteMatched bool // a follower cuts its log at every request, not only where it differs
	witnessStands    bool
	answersNotHeld   bool // an answer counts before the owner's own log is durable so far
	witnessAhead     bool // the witness is sent what is not yet durable on the owner
	behindInSync     bool // a copy that was far behind when the term began is not waited for, and counts as in sync all the same
}

// model is the rules with the bounds of what is explored.
type model struct {
	rules
	terms  uint8 // highest term
	wire   uint8 // messages under way
	writes uint8 // in the longest log
	// pieces: requests hold one entry each, so that a copy may be far behind when it is first heard.
	pieces bool
	// strict also asks for what no rule can give; see TestExploreWhatNoRuleCanGive.
	strict bool

	doing  step // the last step begun
	reused *Gate
}

// step is one thing that happened, for the story of a failure.
type step struct {
	what what
	node uint8
	to   uint8 // asks
	msg  message
}

type what uint8

const (
	delivered what = iota
	lost
	stands
	asks
	restarts
	losesPower
	syncs
	writes
	sendsCopy
	sendsWitness
	linkBroken
	linkWhole
	timePasses
)

func (w what) String() string {
	return [...]string{
		"delivered", "lost", "stands", "asks", "restarts", "loses its power", "has it on disk", "writes", "sends to the copy", "sends to the witness",
		"takes the connection for broken", "takes the connection for whole", "lets time pass",
	}[w]
}

func (a step) String() string {
	name := func(n uint8) string { return [...]string{"A", "B", "W"}[n] }
	if m := a.msg; m.kind != 0 {
		kind := [...]string{"", "asks for a vote", "votes", "appends", "has appended", "does not match"}[m.kind]
		return fmt.Sprintf("%v %s->%s: %s, term %d, %d of term %d, entries %v", a.what, name(m.from), name(m.to), kind, m.term, m.index, m.termAtIndex, m.entries.term[:m.entries.n])
	}
	if a.what == asks {
		return fmt.Sprintf("%s asks %s for a vote", name(a.node), name(a.to))
	}
	return name(a.node) + " " + a.what.String()
}

// steps calls visit with every state that one step leads to. What must hold of a step is checked in it: a broken rule is a
// panic with a broken.
func (m *model) steps(s *state, visit func(step, *state)) {
	do := func(a step, f func(t *state) bool) {
		t := *s
		m.doing = a
		if f(&t) {
			m.tidy(&t)
			visit(a, &t)
		}
	}
	for i := range s.wire {
		if msg := s.wire[i]; msg.kind != 0 && (i == 0 || s.wire[i-1] != msg) {
			held := msg.kind == appended && s.nodes[msg.to].durable < msg.index && !m.answersNotHeld // Group.hold
			if held {
				continue
			}
			do(step{what: delivered, msg: msg}, func(t *state) bool { m.deliver(t, t.take(i)); return true })
			if s.wire[modelWire-m.wire].kind != 0 { // until there is need for room it may as well be late
				do(step{what: lost, msg: msg}, func(t *state) bool { t.take(i); return true })
			}
		}
	}
	for i := range s.nodes {
		id := uint8(i)
		n := &s.nodes[i]
		if n.role != owner && (id != theWitness || m.witnessStands) && n.term < m.terms {
			do(step{what: stands, node: id}, func(t *state) bool {
				n := &t.nodes[id]
				n.term++
				n.vote, n.role, n.votes = 1+id, candidate, bit(id)
				return true
			})
		}
		switch n.role {
		case candidate:
			for to := range uint8(modelNodes) {
				if n.votes&bit(to) == 0 {
					do(step{what: asks, node: id, to: to}, func(t *state) bool {
						return t.send(m.wire, message{kind: askVote, from: id, to: to, term: n.term, index: n.log.n, termAtIndex: n.log.at(n.log.n)})
					})
				}
			}
		case owner:
			m.ownerSteps(s, id, do)
		case follower:
		}
		if n.durable < n.log.n {
			do(step{what: syncs, node: id}, func(t *state) bool { t.nodes[id].durable = n.log.n; return true })
			do(step{what: losesPower, node: id}, func(t *state) bool {
				m.stepDown(t, id)
				t.nodes[id].log.cut(n.durable)
				return true
			})
		}
		if n.role != follower {
			do(step{what: restarts, node: id}, func(t *state) bool {
				m.stepDown(t, id)
				if m.forgetVote {
					t.nodes[id].vote = 0
				}
				return true
			})
		}
		if m.forgetVote && n.role == follower && n.vote != 0 {
			do(step{what: restarts, node: id}, func(t *state) bool { t.nodes[id].vote = 0; return true })
		}
	}
}

func (m *model) ownerSteps(s *state, id uint8, do func(step, func(*state) bool)) {
	n, other := &s.nodes[id], otherCopy(id)
	if m.serves(n) && n.log.n < modelLog && m.written(s) < m.writes {
		do(step{what: writes, node: id}, func(t *state) bool {
			n := &t.nodes[id]
			n.log.push(n.term)
			m.settle(t, id)
			return true
		})
	}
	if n.next[other] <= n.log.n || Level(n.gate.level) != InSync { // to a copy that is out, nothing is sent as well: it answers
		last := n.log.n
		if m.pieces {
			last = min(last, n.next[other])
		}
		do(step{what: sendsCopy, node: id}, func(t *state) bool { return t.send(m.wire, request(&t.nodes[id], id, other, last)) })
	}
	if n.next[theWitness] <= n.log.n {
		do(step{what: sendsWitness, node: id}, func(t *state) bool { return m.sendToWitness(t, id) })
	}
	event := func(what what, f func(g *Gate)) {
		do(step{what: what, node: id}, func(t *state) bool {
			n := &t.nodes[id]
			before, g := n.gate, m.gate(n.gate)
			f(g)
			n.gate.keep(g)
			m.settle(t, id)
			return n.gate != before
		})
	}
	event(linkBroken, func(g *Gate) { g.Link(theCopy, false, modelNow) })
	event(linkWhole, func(g *Gate) { g.Link(theCopy, true, modelNow) })
	event(timePasses, func(g *Gate) { g.Tick(uint64(n.log.n), modelNow.Add(modelTiming.LinkGrace)) })
}

// tidy takes away what is under way and would change nothing whenever it came.
func (m *model) tidy(t *state) {
	for i, msg := range t.wire {
		if msg.kind == 0 {
			continue
		}
		n := &t.nodes[msg.to]
		dead := msg.term < n.term
		if msg.term == n.term {
			switch msg.kind {
			case askVote:
				dead = n.vote != 0 && n.vote != 1+msg.from
			case vote:
				dead = n.role != candidate
			case appended, mismatch:
				dead = n.role != owner
			case appendEntries:
			}
		}
		if dead && !m.forgetVote {
			t.take(i)
		}
	}
}

func request(n *modelNode, from, to, last uint8) message {
	next := n.next[to]
	msg := message{kind: appendEntries, from: from, to: to, term: n.term, index: next - 1, termAtIndex: n.log.at(next - 1)}
	for i := next; i <= last; i++ {
		msg.entries.push(n.log.at(i))
	}
	return msg
}

// sendToWitness is what peers.forWitness and Group.awaitGate do: ask for the limit, note what is offered, shorten.
func (m *model) sendToWitness(t *state, id uint8) bool {
	n := &t.nodes[id]
	g := m.gate(n.gate)
	limit := g.Limit()
	if m.noGate {
		limit = uint64(n.log.n)
	}
	last := uint8(min(limit, uint64(n.log.n)))
	if !m.witnessAhead {
		last = min(last, n.durable)
	}
	if m.pieces {
		last = min(last, n.next[theWitness])
	}
	if last < n.next[theWitness] {
		return false // it waits
	}
	if !m.offeredLate {
		g.Offered(uint64(last))
	}
	n.gate.keep(g)
	msg := request(n, id, theWitness, last)
	if m.wholeMatched {
		msg.whole = n.log.n - n.next[theWitness] + 1
	}
	return t.send(m.wire, msg)
}

// meets is what a higher term does to whoever hears of it. It says whether the message is of the receiver's term now.
func (m *model) meets(t *state, id, term uint8) bool {
	n := &t.nodes[id]
	if term > n.term {
		m.stepDown(t, id)
		n.term, n.vote = term, 0
	}
	return term == n.term
}

func (m *model) stepDown(t *state, id uint8) {
	n := &t.nodes[id]
	if n.role == owner && n.term == t.newestTerm() {
		t.kept = m.inSync(n, id)
	}
	n.role, n.votes, n.commit, n.next, n.match, n.gate = follower, 0, 0, [modelNodes]uint8{}, [modelNodes]uint8{}, gateState{}
}

// inSync returns the copies that an owner who serves has in sync, itself among them, as bits.
func (m *model) inSync(n *modelNode, id uint8) uint8 {
	switch {
	case !m.serves(n):
		return 0
	case Level(n.gate.level) == InSync:
		return bit(id) | bit(otherCopy(id))
	}
	return bit(id)
}

// newestTerm returns the last term in which somebody has owned the LUN, 0 if nobody has.
func (s *state) newestTerm() uint8 {
	term := uint8(modelTerms)
	for term > 0 && s.owners[term] == 0 {
		term--
	}
	return term
}

func (m *model) deliver(t *state, msg message) {
	n := &t.nodes[msg.to]
	if !m.meets(t, msg.to, msg.term) {
		return
	}
	switch msg.kind {
	case askVote:
		end := entries{n: msg.index}
		if msg.index > 0 {
			end.term[msg.index-1] = msg.termAtIndex
		}
		if (n.vote == 0 || n.vote == 1+msg.from) && (m.anyLog || end.upToDate(&n.log)) {
			n.vote = 1 + msg.from
			t.send(m.wire, message{kind: vote, from: msg.to, to: msg.from, term: n.term})
		}
	case vote:
		if n.role == candidate {
			if n.votes |= bit(msg.from); n.votes&(n.votes-1) != 0 { // two of three
				m.elect(t, msg.to)
			}
		}
	case appendEntries:
		check(n.role != owner, "a node that owns the LUN in term %d is sent entries of that term", n.term)
		n.role, n.votes = follower, 0
		if n.log.at(msg.index) != msg.termAtIndex {
			t.send(m.wire, message{kind: mismatch, from: msg.to, to: msg.from, term: n.term, index: n.log.n})
			return
		}
		if m.overwriteMatched {
			n.log.cut(msg.index)
		}
		was := n.log
		for i := range msg.entries.n {
			index := msg.index + 1 + i
			if n.log.at(index) != msg.entries.term[i] {
				n.log.cut(index - 1)
				n.log.push(msg.entries.term[i])
			}
		}
		if n.log != was { // stored, and with it what is before
			n.durable = n.log.n
		}
		n.durable = max(n.durable, msg.index+msg.entries.n)
		upTo := msg.index + max(msg.entries.n, msg.whole)
		t.send(m.wire, message{kind: appended, from: msg.to, to: msg.from, term: n.term, index: upTo})
	case appended:
		if n.role == owner {
			n.match[msg.from] = max(n.match[msg.from], msg.index)
			n.next[msg.from] = max(n.next[msg.from], msg.index+1)
			if msg.from == theWitness && m.offeredLate {
				g := m.gate(n.gate)
				g.Offered(uint64(msg.index))
				n.gate.keep(g)
			}
			if msg.from != theWitness {
				m.heard(t, msg.to, n.match[msg.from])
			}
			m.settle(t, msg.to)
		}
	case mismatch:
		if n.role == owner && n.match[msg.from] == 0 {
			n.next[msg.from] = max(1, min(n.next[msg.from]-1, msg.index+1))
		}
	}
}

// heard is what Group.noteAnswer tells the gate.
func (m *model) heard(t *state, id, index uint8) {
	n := &t.nodes[id]
	g := m.gate(n.gate)
	g.Link(theCopy, true, modelNow)
	before := g.Level(theCopy)
	g.Acked(theCopy, uint64(index), uint64(n.log.n), modelNow)
	if m.behindInSync && before == InSync && g.Level(theCopy) == Out {
		g.peers[theCopy].set(InSync, modelNow)
		g.peers[theCopy].acked = uint64(n.log.n)
	}
	if m.earlySync && g.Level(theCopy) == CatchingUp {
		g.peers[theCopy].set(InSync, modelNow)
	}
	n.gate.keep(g)
}

func (m *model) elect(t *state, id uint8) {
	n := &t.nodes[id]
	check(id != theWitness, "the witness owns the LUN in term %d", n.term)
	before := t.owners[n.term]
	check(before == 0 || before == 1+id, "term %d has two owners", n.term)
	for i := uint8(1); i <= t.committed.n && t.newestTerm() < n.term; i++ {
		check(n.log.at(i) == t.committed.at(i), "the owner of term %d lacks entry %d, which was committed", n.term, i)
	}
	tail := uint64(n.log.n) // Group.beginTerm may find the new entry there or not; without it the gate knows of less
	if n.log.n == modelLog {
		n.role = follower // beyond the bound
		return
	}
	t.owners[n.term], t.kept = 1+id, 0
	n.role, n.votes, n.commit, n.match = owner, 0, 0, [modelNodes]uint8{}
	n.log.push(n.term)
	for i := range n.next {
		n.next[i] = n.log.n
	}
	n.gate.keep(New(modelTiming, tail, modelNow, theCopy))
}

// serves: nothing is served before an entry of the owner's own term is committed.
func (m *model) serves(n *modelNode) bool { return n.role == owner && n.log.at(n.commit) == n.term }

func (m *model) written(t *state) (writes uint8) {
	for i := range t.nodes {
		mine := uint8(0)
		for j := uint8(1); j <= t.nodes[i].log.n; j++ {
			if t.nodes[i].log.isWrite(j) {
				mine++
			}
		}
		writes = max(writes, mine)
	}
	return writes
}

// settle does what an owner does whenever something has changed: commit, and acknowledge what may be.
func (m *model) settle(t *state, id uint8) {
	n := &t.nodes[id]
	n.match[id] = n.log.n
	for i := n.log.n; i > n.commit; i-- {
		if n.log.at(i) != n.term && !m.commitOldTerms {
			break
		}
		have := 0
		for _, match := range n.match {
			if match >= i {
				have++
			}
		}
		if have < 2 {
			continue
		}
		n.commit = i
		for j := uint8(1); j <= i; j++ {
			if j > t.committed.n {
				t.committed.push(n.log.at(j))
			}
			check(t.committed.at(j) == n.log.at(j), "entry %d was committed twice, with terms %d and %d", j, t.committed.at(j), n.log.at(j))
		}
		break
	}
	g := m.gate(n.gate)
	for i := uint8(1); i <= n.log.n; i++ {
		if t.acked&bit(i) != 0 || n.log.at(i) != n.term || !n.log.isWrite(i) {
			continue
		}
		may := i <= n.commit && g.Synced(uint64(i))
		if m.ackEarly && Level(n.gate.level) == Out && m.serves(n) {
			may = true
		}
		if !may {
			continue
		}
		if i <= t.committed.n {
			t.acked |= bit(i)
		}
		have := 0
		for j := range t.nodes {
			if t.nodes[j].log.at(i) == n.term && t.nodes[j].durable >= i {
				have++
			}
		}
		check(n.durable >= i, "write %d was acknowledged and is not on the owner's disk", i)
		check(have >= 2, "write %d was acknowledged with %d on disk of it", i, have)
		check(Level(n.gate.level) != InSync || t.nodes[otherCopy(id)].log.at(i) == n.term && t.nodes[otherCopy(id)].durable >= i, "write %d was acknowledged and is not on the copy in sync", i)
	}
}
