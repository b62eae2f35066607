package witness

import (
	"fmt"
	"slices"
	"time"
)

// The model is a LUN of two copies and a witness as a state machine small enough to visit every state of. Raft's rules
// are written down here (terms, votes, comparison of logs, an owner commits by counting only what is of its own term);
// the gate is the product's Gate, with a clock of the model's.
//
// What it abstracts, and why no behaviour is lost by it:
//   - Partitions. A message may be late, or lost, or overtaken by any other, on each link and each way alone; so a cut
//     link is one on which nothing is delivered. That the owner takes a link for broken, or whole, is an event that may
//     come at any time, as gossip's hint may.
//   - Crashes. What is durable stays: term, vote, log. A node that is down is one that nothing happens to; stepping down and restarting
//     take its role and what it had counted, which of a follower is nothing. What an owner has written becomes durable at any later
//     time, and until then a loss of power takes it (rule G, fast form): answers wait for that. Whoever answers has stored first.
//   - Elections may begin at any time: pre-votes, promises and timers, which only forbid some, are left out.
//   - Refusals are not sent: they are messages that are lost. What commits at a follower is not looked at.
//   - Time is one unit in which every limit of the gate passes. Members do not change, and logs are never cut.
const (
	modelNodes = 3
	modelTerms = 4 // highest term, at most
	modelLog   = 5 // entries
	modelWire  = 4 // messages under way, at most
	theWitness = 2
)

// modelTiming: every limit is one unit, and a copy is nearly there with one entry missing.
var modelTiming = Timing{
	LinkGrace: time.Second, NoProgress: time.Second, CatchUp: time.Second, Window: 1,
}

// entries are a log or a part of one: the term of each entry. With one owner a term, index and term say what an entry is.
type entries struct {
	n    uint8
	term [modelLog]uint8
}

func (e *entries) at(index uint8) uint8 { // 0 before the first and behind the last
	if index == 0 || index > e.n {
		return 0
	}
	return e.term[index-1]
}

func (e *entries) cut(n uint8) {
	for i := n; i < e.n; i++ {
		e.term[i] = 0
	}
	e.n = n
}

// upTo returns the first n.
func (e entries) upTo(n uint8) entries { e.cut(n); return e }

func (e *entries) push(term uint8) { e.term[e.n] = term; e.n++ }

// isWrite: the first entry of a term is its owner's own.
func (e *entries) isWrite(index uint8) bool { return e.at(index) == e.at(index-1) }

// upToDate is Raft's comparison of logs: whether a voter with the log of gives its vote to a candidate with the log e.
func (e *entries) upToDate(of *entries) bool {
	mine, theirs := e.at(e.n), of.at(of.n)
	return mine > theirs || mine == theirs && e.n >= of.n
}

type role uint8

const (
	follower role = iota
	candidate
	owner
)

// gateState is a Gate with one replica as a value. Of its times it is enough to know whether the connection is taken for broken:
// a unit in which nothing happens ends every state that time can end, so what is not over has just begun. The times a lost copy
// must keep up, which only keep it out for longer, are left out with Settle.
//
// begun, where the log ended when the term began, matters until the copy has acknowledged something or is out: 0 from then on.
type gateState struct {
	level, acked, offered, begun uint8
	down                         bool
}

var modelNow = time.Unix(1000, 0)

const theCopy = "copy"

// gate makes the product's Gate of it, in the place of the last one it made.
func (m *model) gate(s gateState) *Gate {
	if m.reused == nil {
		m.reused = New(modelTiming, 0, modelNow, theCopy)
	}
	g := m.reused
	g.offered, g.begun = uint64(s.offered), uint64(s.begun)
	*g.peers[theCopy] = peer{level: Level(s.level), acked: uint64(s.acked), entered: modelNow, since: modelNow}
	if s.down {
		g.peers[theCopy].down = modelNow
	}
	return g
}

func (s *gateState) keep(g *Gate) {
	p := g.peers[theCopy]
	// An answer, which alone brings a lost copy back, says that the connection is whole, too.
	*s = gateState{level: uint8(p.level), acked: uint8(p.acked), offered: uint8(g.offered), down: p.level != Out && !p.down.IsZero()}
	if p.acked == 0 && p.level == InSync {
		s.begun = uint8(g.begun)
	}
}

type modelNode struct {
	// What stays, but for the end of the log.
	term, vote uint8 // vote: for whom in this term, and 1; 0 for nobody
	log        entries
	durable    uint8 // up to where the log is on disk; of the rest a loss of power takes everything
	// Gone with a restart.
	role        role
	votes       uint8 // candidate: who has voted for it, as bits
	commit      uint8 // owner
	next, match [modelNodes]uint8
	gate        gateState
}

type messageKind uint8

const (
	askVote messageKind = 1 + iota
	vote
	appendEntries
	appended
	mismatch // appendEntries that did not follow
)

type message struct {
	kind               messageKind
	from, to           uint8
	term               uint8
	index, termAtIndex uint8   // askVote: the end of the log; appendEntries: what it follows; appended, mismatch: up to where
	entries            entries // appendEntries
	whole              uint8   // appendEntries: how many entries it had before the gate shortened it; only a mutant looks
}

// state is everything there is. It is comparable.
type state struct {
	nodes [modelNodes]modelNode
	wire  [modelWire]message // in order, empty ones first, so that states that differ in order only are one

	// What has happened, for what must hold.
	owners    [modelTerms + 1]uint8 // who has owned the LUN in a term, and 1
	committed entries               // by whichever owner
	acked     uint8                 // which of them were acknowledged to the initiator, as bits
	kept      uint8                 // copies the last owner had in sync when it ceased to own, until there is another
}

// broken is what must hold and does not.
type broken string

func (b broken) Error() string { return string(b) }

func check(ok bool, format string, args ...any) {
	if !ok {
		panic(broken(fmt.Sprintf(format, args...)))
	}
}

func bit(n uint8) uint8 { return 1 << n }

func otherCopy(n uint8) uint8 { return 1 - n }

// send puts a message under way, unless there are too many.
func (s *state) send(most uint8, m message) bool {
	if s.wire[modelWire-most].kind != 0 || slices.Contains(s.wire[:], m) {
		return false
	}
	s.wire[0] = m
	for i := 0; i+1 < modelWire && s.wire[i+1].less(&s.wire[i]); i++ {
		s.wire[i], s.wire[i+1] = s.wire[i+1], s.wire[i]
	}
	return true
}

// take removes a message.
func (s *state) take(i int) message {
	m := s.wire[i]
	copy(s.wire[1:i+1], s.wire[:i])
	s.wire[0] = message{}
	return m
}

func (m *message) key() uint64 {
	k := uint64(m.kind)
	for _, b := range [...]uint8{m.from, m.to, m.term, m.index, m.termAtIndex, m.entries.n} {
		k = k<<4 | uint64(b)
	}
	for _, t := range m.entries.term {
		k = k<<4 | uint64(t)
	}
	return k<<4 | uint64(m.whole)
}

func (m *message) less(than *message) bool { return m.key() < than.key() }

// mirrored is the state with the two copies' names exchanged: what holds in one holds in the other.
func (s *state) mirrored() state {
	swap := func(n uint8) uint8 {
		if n == theWitness {
			return n
		}
		return otherCopy(n)
	}
	swapNext := func(n uint8) uint8 { // a node and 1, or nobody
		if n == 0 {
			return 0
		}
		return 1 + swap(n-1)
	}
	swapBits := func(b uint8) uint8 { return b&4 | b&1<<1 | b&2>>1 }
	t := *s
	t.nodes[0], t.nodes[1] = s.nodes[1], s.nodes[0]
	for i := range t.nodes {
		n := &t.nodes[i]
		n.vote, n.votes = swapNext(n.vote), swapBits(n.votes)
		n.next[0], n.next[1] = n.next[1], n.next[0]
		n.match[0], n.match[1] = n.match[1], n.match[0]
	}
	for i, o := range t.owners {
		t.owners[i] = swapNext(o)
	}
	t.kept = swapBits(t.kept)
	t.wire = [modelWire]message{}
	for _, m := range s.wire {
		if m.kind != 0 {
			m.from, m.to = swap(m.from), swap(m.to)
			t.send(modelWire, m)
		}
	}
	return t
}
