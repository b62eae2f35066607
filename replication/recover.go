package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
	"sanctuary/replication/transport"
)

// Forced recovery: a LUN goes on from one copy although no majority of its voters can be had any more. Who may decide that, and from
// which copy, is not known here (the catalog decides, package node asks the operator); how the log goes on is.
//
// The copy keeps its log, all of it, up to what is damaged. An entry at its end that it does not know to be committed may have been acknowledged all the same, by an
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

// Recovery is how a LUN goes on from one copy.
type Recovery struct {
	LUN   string
	Epoch uint64 // of the history that begins
	Self  Member // the copy
	Known uint64 // the newest term of the old history that anybody has told of
}

// Recover makes a copy that does not run the beginning of a new history, with itself as the only voter. It must be done before the replica is first opened with the
// new epoch, and may be repeated as often as it is interrupted until then; never later, since it would undo every change of members since. What it writes is durable
// when it returns. The volume has just been opened: what it has applied is durable.
//
// Nobody is left from whom anything could be fetched, and whoever decided has accepted the loss:
//   - An entry that is damaged, and that the volume does not have, ends the log: it and what follows are cut off, for entries take effect in order or not at
//     all. cut is the first of them, 0 if there is none.
//   - A copy that has given up its log to damage must not vote before it has again what it once had (mustReach). That ends, last of all: while it may still be the
//     old history that this copy is opened in, it holds.
func Recover(j journal.Log, s Store, r Recovery) (cut uint64, err error) {
	if s == nil || r.Self.Witness {
		return 0, errors.New("a witness holds no data to go on from")
	}
	if s.Inconsistent() {
		return 0, fmt.Errorf("replica %s is in the middle of being rebuilt: what it holds is of no one moment", r.Self.ID)
	}
	have := s.Durable()
	meta, body, ok := j.Snapshots().Newest()
	if ok {
		at, err := MarkedIndex(body)
		if err != nil {
			return 0, err
		}
		if have < at {
			return 0, fmt.Errorf("replica %s: the volume is durable to index %d, but the log before %d is gone: entries between the two are missing", r.Self.ID, have, at)
		}
	}
	last, err := lastOf(j)
	if err != nil {
		return 0, err
	}
	if err := look(j, meta.Index+1, last.Index); err != nil { // of what only the volume needs, too: it is read again at the start
		return 0, err
	}
	obsolete, cut := damageOf(j, max(have, meta.Index))
	reach, err := j.GetUint64([]byte(keyMustReach))
	if err != nil {
		return 0, err
	}
	if cut == 1 || last.Index == 0 && reach == 0 { // a log that was given up has been: the volume is what is left
		return 0, fmt.Errorf("replica %s: %w", r.Self.ID, ErrNoLog)
	}
	known := max(last.Term, r.Known)
	if cut > 0 {
		if err := j.DeleteRange(cut, last.Index); err != nil {
			return 0, err
		}
		if last, err = lastOf(j); err != nil {
			return cut, err
		}
	}
	switch {
	case have > last.Index, obsolete > meta.Index: // the volume would take what comes next for what it has already; or the log begins behind what only the volume has
		err = r.cover(j, have, last)
	case obsolete > 0:
		err = j.DeleteRange(0, obsolete)
	}
	if err != nil {
		return cut, err
	}
	if last, err = lastOf(j); err != nil {
		return cut, err
	}
	term, err := j.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return cut, err
	}
	term = max(term, known) + termGap
	if err := j.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return cut, err
	}
	if err := j.StoreLog(&raft.Log{Index: last.Index + 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(r.members())}); err != nil {
		return cut, err
	}
	return cut, j.SetUint64([]byte(keyMustReach), 0)
}

// look reads entries, no more than a start would: a journal that has been opened again knows of damage only where it has been met.
func look(j journal.Log, from, to uint64) error {
	var l raft.Log
	var corrupt *block.CorruptError
	for i := from; i <= to; i++ {
		if err := j.GetLog(i, &l); err != nil && !errors.As(err, &corrupt) {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return nil
}

// damageOf returns the last damaged entry up to covered, and the first behind; 0 where there is none.
func damageOf(j journal.Log, covered uint64) (obsolete, cut uint64) {
	for _, d := range j.Damaged() { // the lowest index first
		if d.Index > covered {
			return obsolete, d.Index
		}
		obsolete = d.Index
	}
	return obsolete, 0
}

func (r *Recovery) members() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{ID: r.Self.ID, Address: raft.ServerAddress(r.Self.Node)}}}
}

// cover notes that the volume has everything up to index, and lets the log before that go: what is stored next comes behind it. last is where the log ends.
func (r *Recovery) cover(j journal.Log, index uint64, last Position) error {
	term := max(last.Term, 1)
	if index < last.Index {
		var l raft.Log
		if err := j.Head(index, &l); err != nil {
			return err
		}
		term = l.Term
	}
	sink, err := j.Snapshots().Create(1, index, term, r.members(), index, nil)
	if err != nil {
		return err
	}
	if _, err := sink.Write(encodeMark(r.LUN, r.Epoch, index)); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	return j.DeleteRange(0, index)
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
