package replication

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/mutant"
)

// The two halves of rule L. On the owner, a lease: a quorum of voters has promised not to elect anyone else until a
// moment that has not come. On every voter, the promise: having answered a leader, it refuses every vote, and asks for
// none, for the promised time. The owner counts from when it *sent* the heartbeat, the voter from when it *answered*,
// which is later; so the lease ends before the promise does, whatever the delays. Both use the monotonic clock, and the
// owner takes a tenth off for clocks that tick at different rates.
//
// A process that slept (SIGSTOP, a stalled machine) finds its lease over as soon as it looks, which is why a read is
// checked after the blocks were read and not before.

// lease is the owner's half.
type lease struct {
	duration time.Duration

	mu      sync.Mutex
	term    uint64 // 0: none
	revoked bool   // the lease was given up for a transfer; see restore
	handed  uint64 // how often that has been, in any term
	self    raft.ServerID
	sent    map[raft.ServerID]time.Time // voter -> when the newest heartbeat it answered was sent
}

func newLease(self raft.ServerID, promise time.Duration) *lease {
	return &lease{self: self, duration: promise * 9 / 10}
}

// begin starts a term's lease with no answers yet.
func (l *lease) begin(term uint64, voters []raft.ServerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term, l.revoked, l.sent = term, false, map[raft.ServerID]time.Time{}
	l.setVotersLocked(voters)
}

// setVoters takes over a changed configuration. Voters who stay keep what they answered. Raft changes one server at a
// time, so every quorum of the old configuration meets every quorum of the new one, and the lease stays sound meanwhile.
func (l *lease) setVoters(voters []raft.ServerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setVotersLocked(voters)
}

func (l *lease) setVotersLocked(voters []raft.ServerID) {
	next := make(map[raft.ServerID]time.Time, len(voters))
	for _, v := range voters {
		next[v] = l.sent[v]
	}
	l.sent = next
}

// renew notes that voter has answered, in this term, a heartbeat that was sent at the given time.
func (l *lease) renew(voter raft.ServerID, term uint64, sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.sent[voter]; ok && term == l.term && sent.After(at) {
		l.sent[voter] = sent
	}
}

// revoke ends the lease: called before another node is asked to stand for election.
func (l *lease) revoke() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked = true
	l.handed++
}

// revocations counts calls of revoke, for restore.
func (l *lease) revocations() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handed
}

// restore takes revoke back, unless it was called again since there were so many, or the term has ended. Transfer says when that is safe.
func (l *lease) restore(term, revocations uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term == term && l.handed == revocations {
		l.revoked = false
	}
}

// given says whether the lease was given up for a transfer.
func (l *lease) given() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.revoked
}

// end ends the lease with the term.
func (l *lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term, l.sent = 0, nil
}

// valid says whether at the moment now no voter of some quorum would elect another owner than this one in term.
func (l *lease) valid(term uint64, now time.Time) bool { return l.vouched(term, now, nil) }

// vouched is valid, with what q says was sent counted like heartbeats. q may be nil.
func (l *lease) vouched(term uint64, now time.Time, q *quiet) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != term || l.revoked {
		return false
	}
	if mutant.L {
		return true
	}
	var buf [8]time.Time
	times := buf[:0]
	for voter, at := range l.sent {
		if voter == l.self {
			at = now
		} else if q != nil {
			if sent := q.sent(voter); sent.After(at) {
				at = sent
			}
		}
		times = append(times, at)
	}
	if len(times) == 0 {
		return false
	}
	slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
	oldest := times[len(times)/2] // the newest answers of a quorum, the oldest of them
	return !oldest.IsZero() && now.Before(oldest.Add(l.duration))
}

// promise is a voter's half.
type promise struct {
	duration time.Duration

	mu     sync.Mutex
	term   uint64 // leader's; 0: there has been none
	leader raft.ServerID
	until  time.Time
}

// newPromise begins with a promise to nobody: before the process was restarted it may have made one it cannot remember.
func newPromise(d time.Duration, now time.Time) *promise {
	return &promise{duration: d, until: now.Add(d)}
}

// give is called when the heartbeat of a term's leader has been accepted, before the answer is sent; false if there has been one of a later
// term, to which the promise stays.
func (p *promise) give(leader raft.ServerID, term uint64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term < p.term {
		return false
	}
	p.term, p.leader = term, leader
	if until := now.Add(p.duration); until.After(p.until) {
		p.until = until
	}
	return true
}

// madeTo says whether the newest promise was made to this replica.
func (p *promise) madeTo(leader raft.ServerID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leader == leader
}

// forbids says whether voting for candidate now would break the promise. Standing for election is voting for oneself.
func (p *promise) forbids(candidate raft.ServerID, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Before(p.until) && candidate != p.leader
}
