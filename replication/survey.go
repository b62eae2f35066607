package replication

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/journal"
)

// Position is a place in a log. Of two logs of one history the one that ends at the later position holds more of what was committed.
type Position struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
}

// Less compares as Raft's voters do.
func (p Position) Less(q Position) bool {
	return p.Term < q.Term || p.Term == q.Term && p.Index < q.Index
}

// lastOf returns the end of a log: zero if there is none.
func lastOf(j journal.Log) (Position, error) {
	meta, _, _ := j.Snapshots().Newest()
	p := Position{meta.Term, meta.Index}
	last, err := j.LastIndex()
	if err != nil || last <= p.Index {
		return p, err
	}
	var l raft.Log
	if err := j.Head(last, &l); err != nil {
		return p, fmt.Errorf("entry %d: %w", last, err)
	}
	return Position{l.Term, last}, nil
}

// Survey is what a replica knows of itself and of the others, for whoever has to decide about a LUN that nobody can own.
type Survey struct {
	Replica      raft.ServerID `json:"replica"`
	Epoch        uint64        `json:"epoch"`
	Witness      bool          `json:"witness,omitempty"`
	Serving      bool          `json:"serving,omitempty"`
	Inconsistent bool          `json:"inconsistent,omitempty"` // in the middle of being rebuilt
	Kept         bool          `json:"kept,omitempty"`         // and what it held before is kept: see FallBack
	Failed       string        `json:"failed,omitempty"`       // why it is out for good
	Damaged      int           `json:"damaged,omitempty"`      // entries of its log that are to be fetched from another copy
	DamagedAt    []uint64      `json:"damaged_at,omitempty"`   // which, at most maxRuns of them; an older program does not tell
	Term         uint64        `json:"term"`                   // its current one
	Last         Position      `json:"last"`                   // the end of its log
	Sound        Position      `json:"sound"`                  // up to where it could go on alone; see Holds
	Reach        uint64        `json:"reach,omitempty"`        // it once had this entry, and does not vote before it has it again; 0: it has
	LastAt       time.Time     `json:"last_at,omitzero"`       // about when it was stored here, up to timeKept too early after a restart; zero: not known
	Runs         []Position    `json:"runs,omitempty"`         // where each term of its log begins, the newest first; at most maxRuns
	Empty        bool          `json:"empty,omitempty"`        // its log has no entry that counts: Last and Runs are where it begins, behind a checkpoint. An older program does not tell
	Voters       []string      `json:"voters,omitempty"`       // of the newest configuration in its log
	// Heard is when another replica was last heard, by ID. One that is missing has not been since Since, when this replica was started.
	Heard map[raft.ServerID]time.Time `json:"heard,omitempty"`
	Since time.Time                   `json:"since"`
}

// Holds returns up to where a copy could go on alone: where its log ends, or its volume, if that has more, or what is damaged begins. An older program does not tell.
func (s *Survey) Holds() Position {
	if s.Sound == (Position{}) {
		return s.Last
	}
	return s.Sound
}

// EndsBefore says whether what a copy could go on with ends before a place in another's log. Terms compare where logs end; what a volume has beyond its
// log was committed, in a term that is not known here, and nothing that ends before it has as much.
func (s *Survey) EndsBefore(p Position) bool {
	holds := s.Holds()
	if holds.Index > s.Last.Index {
		return holds.Index < p.Index
	}
	return holds.Less(p)
}

// HoldsLess says whether a copy could go on with less than another.
func (s *Survey) HoldsLess(than *Survey) bool {
	holds := than.Holds()
	if holds.Index > than.Last.Index {
		return s.Holds().Index < holds.Index
	}
	return s.EndsBefore(holds)
}

// Abstains says that this replica gives nobody its vote, itself neither, before it has again what it once had.
func (s *Survey) Abstains() bool { return s.Last.Index < s.Reach }

// maxRuns bounds Survey.Runs. A log rarely has more terms; what is left out makes two logs seem to part earlier than they do.
const maxRuns = 64

// Survey asks this replica alone, and looks at all of its log that its volume does not have, unless it serves: what is found to be damaged only later would be
// lost unannounced. An error means that its log could not be read.
func (g *Group) Survey() (Survey, error) {
	s := Survey{Replica: g.cfg.Self.ID, Epoch: g.cfg.Epoch, Witness: g.cfg.Self.Witness, Serving: g.tenure.Load() != nil, Since: g.opened}
	if g.cfg.Store != nil {
		s.Inconsistent = g.cfg.Store.Inconsistent()
		_, s.Kept = g.Before()
	}
	if err := g.Err(); err != nil {
		s.Failed = err.Error()
	}
	if g.cfg.Store != nil && !s.Serving && !s.Inconsistent {
		if err := g.lookAhead(); err != nil {
			return s, err
		}
	}
	for _, d := range g.cfg.Journal.Damaged() {
		if s.Damaged++; s.Damaged <= maxRuns {
			s.DamagedAt = append(s.DamagedAt, d.Index)
		}
	}
	g.mu.Lock()
	s.Heard = make(map[raft.ServerID]time.Time, len(g.contacts))
	for id, at := range g.contacts {
		s.Heard[id] = at
	}
	g.mu.Unlock()
	var err error
	if s.Term, err = g.cfg.Journal.GetUint64([]byte("CurrentTerm")); err != nil {
		return s, err
	}
	if s.Last, err = lastOf(g.cfg.Journal); err != nil {
		return s, err
	}
	s.Reach = g.mending.reach.Load()
	if s.Sound, err = g.sound(s.Last); err != nil {
		return s, err
	}
	if s.Runs, s.Empty, err = runsOf(g.cfg.Journal, s.Last); err != nil {
		return s, err
	}
	at := uint64(g.storedAt.Load())
	if at == 0 {
		if at, err = g.cfg.Journal.GetUint64([]byte(keyStored)); err != nil {
			return s, err
		}
	}
	if at != 0 {
		s.LastAt = time.UnixMilli(int64(at))
	}
	if inst := g.running(); inst != nil {
		f := inst.raft.GetConfiguration()
		if err := f.Error(); err != nil {
			return s, err
		}
		for _, v := range f.Configuration().Servers {
			if v.Suffrage == raft.Voter {
				s.Voters = append(s.Voters, string(v.ID))
			}
		}
	}
	return s, nil
}

// lookAhead reads the log behind the volume's checkpoint. What is damaged there counts as met.
func (g *Group) lookAhead() error {
	last, err := g.cfg.Journal.LastIndex()
	if err != nil {
		return err
	}
	err = look(g.cfg.Journal, max(g.cfg.Store.Durable(), g.checkpointed())+1, last)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) { // cut off meanwhile
		return err
	}
	if len(g.cfg.Journal.Damaged()) > 0 {
		g.mending.found()
	}
	return nil
}

// sound returns up to where Recover would keep what is here. last is where the log ends.
func (g *Group) sound(last Position) (Position, error) {
	if g.cfg.Store == nil || g.cfg.Store.Inconsistent() {
		return last, nil
	}
	have := g.cfg.Store.Durable()
	_, cut := damageOf(g.cfg.Journal, max(have, g.checkpointed()))
	if cut > 0 {
		meta, _, _ := g.cfg.Journal.Snapshots().Newest()
		last = Position{meta.Term, cut - 1}
		var l raft.Log
		switch err := g.cfg.Journal.Head(cut-1, &l); {
		case err == nil:
			last.Term = l.Term
		case !errors.Is(err, raft.ErrLogNotFound):
			return last, err
		}
	}
	last.Index = max(last.Index, have)
	return last, nil
}

// keyStored is where a replica keeps about when it stored entries last, for a Survey after a restart: nothing else in a log tells times.
const (
	keyStored = "LastStored"
	timeKept  = 10 * time.Second
)

// noteTime keeps the time at which entries were stored last, if it is later than what was kept last by timeKept. Only maintain and
// Close call it, one after the other.
func (g *Group) noteTime(closing bool) {
	at := g.storedAt.Load()
	if at == g.timeNoted || !closing && at-g.timeNoted < timeKept.Milliseconds() {
		return
	}
	if g.Err() == nil && g.cfg.Journal.SetUint64([]byte(keyStored), uint64(at)) == nil { // else it is not known: nothing rests on it
		g.timeNoted = at
	}
}

// runsOf finds where the terms of a log begin, by bisection: terms only rise. Of a log that does not reach to its own end, which then is that of its snapshot, it is
// only known that it is the same up to there: it is empty, or what is in it is older, of a witness that was away.
func runsOf(j journal.Log, last Position) (runs []Position, empty bool, err error) {
	first, err1 := j.FirstIndex()
	end, err2 := j.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return nil, false, err
	}
	if first == 0 || end < last.Index {
		if last.Index > 0 {
			runs = []Position{last}
		}
		return runs, true, nil
	}
	at := func(i uint64) (raft.Log, error) {
		var l raft.Log
		err := j.Head(i, &l)
		return l, err
	}
	for end := last; len(runs) < maxRuns; {
		lo, hi := first, end.Index // the run begins in [lo, hi]
		for lo < hi {
			mid := lo + (hi-lo)/2
			l, err := at(mid)
			if err != nil {
				return nil, false, err
			}
			if l.Term >= end.Term {
				hi = mid
			} else {
				lo = mid + 1
			}
		}
		runs = append(runs, Position{end.Term, lo})
		if lo == first {
			break
		}
		before, err := at(lo - 1)
		if err != nil {
			return nil, false, err
		}
		end = Position{before.Term, lo - 1}
	}
	return runs, false, nil
}

// Shared returns up to where the logs of two surveys are the same, as far as their runs show: never more than they share.
func (s *Survey) Shared(other *Survey) uint64 {
	for _, mine := range s.Runs {
		i := slices.IndexFunc(other.Runs, func(p Position) bool { return p.Term == mine.Term })
		if i < 0 {
			continue
		}
		// Both have entries of this term, and so the same up to the last of them that both have.
		end := min(s.endOf(mine.Term), other.endOf(mine.Term))
		if end >= max(mine.Index, other.Runs[i].Index) {
			return end
		}
	}
	return 0
}

// endOf returns the last index of a term's run.
func (s *Survey) endOf(term uint64) uint64 {
	end := s.Last.Index
	for _, r := range s.Runs {
		if r.Term == term {
			return end
		}
		end = r.Index - 1
	}
	return 0
}
