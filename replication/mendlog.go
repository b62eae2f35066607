package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
)

// An entry of the log that cannot be read is damaged, not missing: this replica has acknowledged it, and perhaps nobody else but the owner has. Until
// it has the entry again it takes no part: it neither votes nor stands, and takes no entries, whose acknowledgement would say that it has all before them.
//
// Another copy that has an entry of the same index and term has the same entry (Raft's log matching property), committed or not; the journal makes sure of
// it with the checksum it has kept. So any data replica will do, whether it serves or not: two that were both damaged, in different
// places, mend each other. Two things may have become of the entry meanwhile:
//
//   - The volume has it, durably: then the log is cut off behind it, as after any checkpoint. One that has been applied, and that no other copy has
//     (whoever owns the LUN may be the only one), is made so by a checkpoint (cutApplied).
//   - The owner's log no longer reaches back to it, or has another entry in its place. Then this replica gives up its log behind the volume's checkpoint, and is
//     a replica that fell behind: it is served from the owner's log, or rebuilt. It does not vote before it has again as much as it once had
//     (mustReach), because until then it has forgotten entries that it acknowledged.
//
// Where nobody is left who could give it anything, an operator can have it go on without (Recover).

// keyMustReach is the last index this replica had when it gave up its log, in the log's stable store; 0: it has reached it since.
const keyMustReach = "must-reach"

// mendPause is between two attempts to fetch a damaged entry.
const mendPause = time.Second

var errDamagedLog = errors.New("an entry of this replica's log is damaged, and it takes no part until it has it again")

// mending is what a group knows of the damage to its log.
type mending struct {
	damaged atomic.Bool
	reach   atomic.Uint64 // mustReach
	wake    chan struct{} // capacity 1

	mu   sync.Mutex
	done chan struct{} // closed and replaced when nothing is damaged any more
}

func (m *mending) init() {
	m.wake, m.done = make(chan struct{}, 1), make(chan struct{})
}

// found notes damage, and returns what is closed when there is none any more.
func (m *mending) found() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.damaged.Store(true)
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return m.done
}

func (m *mending) over() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.damaged.Store(false)
	close(m.done)
	m.done = make(chan struct{})
}

// beginMending looks at the log before Raft does.
func (g *Group) beginMending() error {
	reach, err := g.cfg.Journal.GetUint64([]byte(keyMustReach))
	if err != nil {
		return err
	}
	g.mending.reach.Store(reach)
	if err := g.cutObsolete(); err != nil {
		return err
	}
	if len(g.cfg.Journal.Damaged()) > 0 {
		g.mending.found()
	}
	return nil
}

// cutObsolete cuts the log off behind damage that the volume's checkpoint covers.
func (g *Group) cutObsolete() error {
	obsolete, checkpoint := uint64(0), g.checkpointed()
	for _, d := range g.cfg.Journal.Damaged() {
		if d.Index <= checkpoint {
			obsolete = max(obsolete, d.Index)
		}
	}
	if obsolete == 0 {
		return nil
	}
	g.log.Warn("entries of the log that the volume has already are damaged: the log is cut off behind them", "index", obsolete)
	return g.cfg.Journal.DeleteRange(0, obsolete)
}

// abstains says why this replica must not vote or stand, or nil.
func (g *Group) abstains() error {
	switch {
	case g.mending.damaged.Load():
		return errDamagedLog
	case g.mending.reach.Load() > 0:
		last, err := g.cfg.Journal.LastIndex()
		if err != nil {
			return err
		}
		if last < g.mending.reach.Load() {
			return fmt.Errorf("this replica has lost part of its log, and does not vote before it has got to entry %d again", g.mending.reach.Load())
		}
	}
	return nil
}

// mendLog fetches what is damaged, whenever something is.
func (g *Group) mendLog() {
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-g.mending.wake:
		}
		for g.Err() == nil {
			whole, err := g.mendOnce()
			if whole {
				g.mending.over()
				g.log.Info("the log is whole again")
				break
			}
			g.log.Warn("an entry of this replica's log is damaged; it is fetched from another copy", "error", err)
			select {
			case <-g.ctx.Done():
				return
			case <-time.After(mendPause):
			}
		}
	}
}

// mendOnce tries to mend everything; whole says that nothing is damaged now. One that cannot be mended yet does not keep others from it: it may be
// they that something waits for.
func (g *Group) mendOnce() (whole bool, err error) {
	for _, d := range g.cfg.Journal.Damaged() {
		gone, failed := g.fetchEntry(d)
		switch {
		case !gone && failed == nil, g.cutApplied(d):
		case gone:
			return g.giveUpLog()
		default:
			err = errors.Join(err, failed)
		}
	}
	return len(g.cfg.Journal.Damaged()) == 0, err
}

// fetchEntry mends one entry. gone says that the owner can be asked, and does not have it.
func (g *Group) fetchEntry(d journal.Damage) (gone bool, err error) {
	err = errors.New("no other data replica is known")
	for _, m := range g.copies() {
		a, asked := g.askEntry(m, d)
		if asked != nil {
			err = fmt.Errorf("%s: %w", m.ID, asked)
			continue
		}
		if a.log != nil {
			if err := g.cfg.Journal.Mend(a.log); err == nil || errors.Is(err, journal.ErrCutOff) {
				return false, nil
			}
		}
		if a.serving {
			gone = true
		} else {
			err = fmt.Errorf("%s does not have entry %d of term %d, and the LUN has no owner that could say whether it is needed", m.ID, d.Index, d.Term)
		}
	}
	if gone {
		return true, nil
	}
	return false, err
}

// cutApplied cuts the log off behind a damaged entry that has been applied, and says whether it has. Who needs what was there is rebuilt. What comes after stays:
// of a log without any entry Raft would not know where it ends.
func (g *Group) cutApplied(d journal.Damage) bool {
	inst := g.running()
	last, err := g.cfg.Journal.LastIndex()
	if inst == nil || err != nil || g.cfg.Store == nil || d.Index >= last || d.Index > inst.raft.AppliedIndex() {
		return false
	}
	if g.checkpointed() < d.Index {
		g.setTrailing(inst)
		ctx, cancel := context.WithTimeout(g.ctx, 10*time.Second) // Raft may be waiting for another damaged entry
		defer cancel()
		if err := g.waitFor(ctx, inst.raft.Snapshot()); err != nil || g.checkpointed() < d.Index {
			g.log.Debug("checkpoint put off", "error", err)
			return false
		}
	}
	if err := g.cutObsolete(); err != nil {
		g.log.Warn("the log is not cut off behind a damaged entry", "error", err)
		return false
	}
	return true
}

// giveUpLog makes this a replica that has fallen behind to its volume's checkpoint.
func (g *Group) giveUpLog() (whole bool, err error) {
	last, err := g.cfg.Journal.LastIndex()
	if err != nil {
		return false, err
	}
	g.log.Warn("the owner has no copy of a damaged entry any more: this replica goes back to its last checkpoint, and is brought up to date from there", "checkpoint", g.checkpointed(), "last", last)
	reach := max(last, g.mending.reach.Load())
	if err := g.cfg.Journal.SetUint64([]byte(keyMustReach), reach); err != nil {
		return false, err
	}
	g.mending.reach.Store(reach)
	g.halt()
	if err := g.cfg.Journal.Reset(); err != nil {
		return false, err
	}
	if err := g.start(); err != nil && !errors.Is(err, block.ErrClosed) {
		g.fail(fmt.Errorf("start without the damaged log: %w", err))
	}
	return true, nil
}

// reached notes that this replica has again what it once had.
func (g *Group) reached(last uint64) {
	reach := g.mending.reach.Load()
	if reach == 0 || last < reach || g.mending.damaged.Load() {
		return
	}
	if err := g.cfg.Journal.SetUint64([]byte(keyMustReach), 0); err != nil {
		return // the journal has failed, which is seen elsewhere
	}
	g.mending.reach.Store(0)
	g.log.Info("this replica has again what it had before its log was damaged, and may vote")
}

// entryAnswer is what another replica says of an entry.
type entryAnswer struct {
	serving bool      // it is the owner
	log     *raft.Log // nil: it does not have it
}

// askEntry asks another replica for an entry.
//
//	request: u64 index, u64 term, LUN "\n" replica asked
//	answer:  u8 1 if it is the owner, u8 1 if it has the entry; then u8 type, u32 length of the data, data, extensions
func (g *Group) askEntry(m Member, d journal.Damage) (a entryAnswer, err error) {
	ctx, cancel := context.WithTimeout(g.ctx, 5*time.Second)
	defer cancel()
	req := binary.LittleEndian.AppendUint64(nil, d.Index)
	req = binary.LittleEndian.AppendUint64(req, d.Term)
	raw, err := g.host.mux.Call(ctx, m.Node, methodEntry, append(req, g.cfg.LUN+"\n"+string(m.ID)...))
	if err != nil {
		return a, err
	}
	if len(raw) < 2 {
		return a, errors.New("malformed answer")
	}
	a.serving = raw[0] == 1
	if raw[1] != 1 {
		return a, nil
	}
	if raw = raw[2:]; len(raw) < 5 {
		return a, errors.New("malformed answer")
	}
	l := &raft.Log{Index: d.Index, Term: d.Term, Type: raft.LogType(raw[0])}
	n := binary.LittleEndian.Uint32(raw[1:])
	if raw = raw[5:]; uint64(n) > uint64(len(raw)) {
		return a, errors.New("malformed answer")
	}
	l.Data = raw[:n:n]
	if len(raw) > int(n) {
		l.Extensions = raw[n:]
	}
	a.log = l
	return a, nil
}

// serveEntry answers askEntry.
func (h *Host) serveEntry(_ context.Context, _ string, req []byte) ([]byte, error) {
	if len(req) < 16 {
		return nil, errors.New("malformed request")
	}
	index, term := binary.LittleEndian.Uint64(req), binary.LittleEndian.Uint64(req[8:])
	g, err := h.namedGroup(req[16:])
	if err != nil {
		return nil, err
	}
	answer := []byte{0, 0}
	if g.tenure.Load() != nil {
		answer[0] = 1
	}
	var l raft.Log
	if g.cfg.Self.Witness || g.cfg.Journal.GetLog(index, &l) != nil || l.Term != term {
		return answer, nil
	}
	answer[1] = 1
	answer = append(answer, byte(l.Type))
	answer = binary.LittleEndian.AppendUint32(answer, uint32(len(l.Data)))
	return append(append(answer, l.Data...), l.Extensions...), nil
}
