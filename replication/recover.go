package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/replication/journal"
	"sanctuary/replication/transport"
)

// Forced recovery: a LUN goes on from one copy although no majority of its voters can be had any more. Who may decide that, and from
// which copy, is not known here (the catalog decides, package node asks the operator); how the log goes on is.
//
// The copy keeps its log, all of it. An entry at its end that it does not know to be committed may have been acknowledged all the same, by an
// owner that had the answers of others; so none is dropped, and applying one that was never acknowledged is a write of unknown outcome that
// took effect after all (rule F drops those whose term is not that of their fence, as ever). Behind the log comes a configuration with this
// copy as the only voter. It wins the election among one, and its first entry commits what came before. The library's RecoverCluster is
// not used: it applies, snapshots and deletes the log in one go, and a crash in the middle of it is not repeatable.
//
// The group's epoch keeps the histories apart. The transport refuses messages of another epoch, so a voter of the old history takes nothing from
// the new one and has no say in it. If the old voters meet again without having heard of the recovery, they could elect an owner among
// themselves; therefore an owner asks, before it serves, whoever of the LUN's nodes it reaches for their epoch, and any replica that is refused because of
// its epoch does the same: one that finds a newer history ends for good (superseded). Two halves that cannot reach each other at all
// cannot be told apart by this or anything else: that the rest is gone is what the operator vouches for.

// methodEpoch: LUN → the epoch of the replica there, u64.
const methodEpoch = "replication.epoch"

// ErrNoLog: there is no log to go on from.
var ErrNoLog = errors.New("the replica has no log: there is nothing to go on from")

// ErrSuperseded: the replica belongs to a history of the LUN that has been given up. It takes part in nothing any more.
var ErrSuperseded = errors.New("the LUN was recovered by force without this replica")

// termGap lies between the newest term that is known of the old history and the first of the new one. Fences compare terms (rule F), so one
// that somebody still holds from before must not meet an equal one; voters that nobody reaches may have held elections meanwhile.
const termGap = 1000

// Recover makes a copy that does not run the beginning of a new history, with itself as the only voter. known is the newest term of the old
// history that anybody has told of. It must be done before the replica is first opened with the new epoch, and may be repeated as often as
// it is interrupted until then; never later, since it would undo every change of members since. What it writes is durable when it returns.
func Recover(j journal.Log, s Store, self Member, known uint64) error {
	if s == nil || self.Witness {
		return errors.New("a witness holds no data to go on from")
	}
	if s.Inconsistent() {
		return fmt.Errorf("replica %s is in the middle of being rebuilt: what it holds is of no one moment", self.ID)
	}
	if damaged := j.Damaged(); len(damaged) > 0 {
		return fmt.Errorf("replica %s: %d entries of its log are damaged, the first is %d: nobody is left to fetch them from", self.ID, len(damaged), damaged[0].Index)
	}
	last, err := lastOf(j)
	if err != nil {
		return err
	}
	if last.Index == 0 {
		return fmt.Errorf("replica %s: %w", self.ID, ErrNoLog)
	}
	if _, body, ok := j.Snapshots().Newest(); ok {
		at, err := MarkedIndex(body)
		if err != nil {
			return err
		}
		if have := s.Durable(); have < at {
			return fmt.Errorf("replica %s: the volume is durable to index %d, but the log before %d is gone: entries between the two are missing", self.ID, have, at)
		}
	}
	term, err := j.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return err
	}
	term = max(term, last.Term, known) + termGap
	if err := j.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	conf := raft.Configuration{Servers: []raft.Server{{ID: self.ID, Address: raft.ServerAddress(self.Node)}}}
	return j.StoreLog(&raft.Log{Index: last.Index + 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf)})
}

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
	Term         uint64        `json:"term"`                   // its current one
	Last         Position      `json:"last"`                   // the end of its log
	LastAt       time.Time     `json:"last_at,omitzero"`       // about when it was stored here, up to timeKept too early after a restart; zero: not known
	Runs         []Position    `json:"runs,omitempty"`         // where each term of its log begins, the newest first; at most maxRuns
	Voters       []string      `json:"voters,omitempty"`       // of the newest configuration in its log
	// Heard is when another replica was last heard, by ID. One that is missing has not been since Since, when this replica was started.
	Heard map[raft.ServerID]time.Time `json:"heard,omitempty"`
	Since time.Time                   `json:"since"`
}

// maxRuns bounds Survey.Runs. A log rarely has more terms; what is left out makes two logs seem to part earlier than they do.
const maxRuns = 64

// Survey asks this replica alone. An error means that its log could not be read.
func (g *Group) Survey() (Survey, error) {
	s := Survey{Replica: g.cfg.Self.ID, Epoch: g.cfg.Epoch, Witness: g.cfg.Self.Witness, Serving: g.tenure.Load() != nil, Since: g.opened}
	if g.cfg.Store != nil {
		s.Inconsistent = g.cfg.Store.Inconsistent()
		_, s.Kept = g.Before()
	}
	if err := g.Err(); err != nil {
		s.Failed = err.Error()
	}
	s.Damaged = len(g.cfg.Journal.Damaged())
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
	if s.Runs, err = runsOf(g.cfg.Journal, s.Last); err != nil {
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

// runsOf finds where the terms of a log begin, by bisection: terms only rise.
func runsOf(j journal.Log, last Position) (runs []Position, err error) {
	first, err := j.FirstIndex()
	if err != nil || first == 0 || last.Index < first {
		if last.Index > 0 {
			runs = []Position{last}
		}
		return runs, err
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
				return nil, err
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
			return nil, err
		}
		end = Position{before.Term, lo - 1}
	}
	return runs, nil
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

// hearing notes that a server has been heard, and returns what is known about it.
func (g *Group) hearing(id raft.ServerID) Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.contacts[id] = time.Now()
	return g.memberLocked(id)
}

// serveEpoch tells the epoch of the replica here.
func (h *Host) serveEpoch(_ context.Context, _ string, req []byte) ([]byte, error) {
	g, err := h.group(string(req))
	if err != nil {
		return nil, err
	}
	return binary.LittleEndian.AppendUint64(nil, g.cfg.Epoch), nil
}

// epochWait bounds the question for other nodes' epochs. A node that is up answers in a round trip; an owner waits for none that does not.
const epochWait = 100 * time.Millisecond

// newestEpoch asks the nodes of the LUN that can be reached for their epoch, and returns the newest, at least its own.
func (g *Group) newestEpoch(ctx context.Context) uint64 {
	ctx, cancel := context.WithTimeout(ctx, epochWait)
	defer cancel()
	g.mu.Lock()
	nodes := map[string]bool{}
	for _, m := range g.members {
		nodes[m.Node] = m.Node != g.cfg.Self.Node
	}
	g.mu.Unlock()
	var (
		mu     sync.Mutex // guards newest
		wg     sync.WaitGroup
		newest = g.cfg.Epoch
	)
	for node, other := range nodes {
		if !other || !g.host.mux.Up(node) {
			continue
		}
		wg.Go(func() {
			answer, err := g.host.mux.Call(ctx, node, methodEpoch, []byte(g.cfg.LUN))
			if err != nil || len(answer) != 8 {
				return // it has no replica, or is of a program that knows no recovery
			}
			mu.Lock()
			defer mu.Unlock()
			newest = max(newest, binary.LittleEndian.Uint64(answer))
		})
	}
	wg.Wait()
	return newest
}

// noteRefused looks, once at a time, whether a request was refused because the LUN has a newer history.
func (g *Group) noteRefused(err error) {
	if !errors.Is(err, transport.ErrWrongEpoch) || !g.asking.CompareAndSwap(false, true) {
		return
	}
	g.goFunc(func() {
		defer g.asking.Store(false)
		if newest := g.newestEpoch(g.ctx); newest > g.cfg.Epoch {
			g.supersede(newest)
		}
	})
}

// supersede ends this replica for good: the LUN goes on in a history that it is no part of. Its storage stays until the node's catalog knows too.
func (g *Group) supersede(newer uint64) {
	err := fmt.Errorf("%w: it is of history %d, and the LUN is in history %d", ErrSuperseded, g.cfg.Epoch, newer)
	if !g.failed.CompareAndSwap(nil, &err) {
		return
	}
	g.log.Warn("this replica is of an older history of the LUN and has ended; it is made anew when this node's catalog says so", "history", g.cfg.Epoch, "newest", newer)
	g.endTenure()
	g.goFunc(func() { // the caller may be Raft's own goroutine
		g.halt()
		g.cfg.OnChange()
	})
}
