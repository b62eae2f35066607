package scsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// TargetConfig describes a SCSI target device.
type TargetConfig struct {
	// Name is the iSCSI name; reported as SCSI name designator (VPD 83h). May be empty.
	Name string
	// Ports is set in the relative target port identifier of every nexus, where the transport knows only that of the portal: a
	// target has ports of its own, and a unit may be in several targets.
	Ports uint16
}

// Target is a set of LUNs and the nexuses that use them. It implements Executor. All methods may be called concurrently.
type Target struct {
	cfg TargetConfig

	// units is replaced as a whole, so that commands look a LUN up without a lock.
	units atomic.Pointer[unitSet]

	// mu guards nexuses and changes of units. Taken before a nexus' own mutex, never while a command runs.
	mu      sync.Mutex
	nexuses map[*Nexus]struct{}
}

// unitSet is the LUN inventory at one moment; never modified.
type unitSet struct {
	byLUN   map[uint16]*Unit
	version uint64 // counts changes

	was     map[uint16]described // what a number stands for, or stood for last
	renewed map[uint16]uint64    // the version in which a number came to stand for something else than before
}

var _ Executor = (*Target)(nil)

// MaxLUN is the largest LUN number flat space addressing can express (SAM-5 §4.7.7.4).
const MaxLUN = 0x3FFF

// ErrLUN: the LUN number is out of range, or in use, or not there.
var ErrLUN = errors.New("LUN")

// NewTarget returns a target without LUNs.
func NewTarget(cfg TargetConfig) *Target {
	t := &Target{cfg: cfg, nexuses: map[*Nexus]struct{}{}}
	t.units.Store(&unitSet{})
	return t
}

// Add makes u the LUN of that number. Every nexus gets unit attention 3F/0E, and 3F/03 if the number stood for another unit before. A unit may be a LUN of several targets.
func (t *Target) Add(lun uint16, u *Unit) error {
	// Before a command can find it: what ends the tasks of a unit must find them all.
	u.join(t)
	err := t.add(lun, u)
	if err != nil {
		u.part(t)
	}
	return err
}

func (t *Target) add(lun uint16, u *Unit) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	set := t.units.Load()
	switch {
	case lun > MaxLUN:
		return fmt.Errorf("%w %d: at most %d", ErrLUN, lun, MaxLUN)
	case set.byLUN[lun] != nil:
		return fmt.Errorf("%w %d is in use by %q", ErrLUN, lun, set.byLUN[lun].cfg.Identity.Name)
	}
	t.units.Store(set.next(lun, u))
	return nil
}

// Remove takes the LUN away: new commands get 05/25/00, running ones are aborted and waited for until ctx ends. Every nexus
// gets unit attention 3F/0E. To an initiator this is the end of the device (ESXi: permanent device loss): never
// remove a LUN for the time of a failover.
func (t *Target) Remove(ctx context.Context, lun uint16) error { return t.put(ctx, lun, nil) }

// Replace puts u under a number in the place of the unit that is there, as Remove and Add do, without a moment in which the number
// stands for nothing. Of a unit that tells the same no nexus hears but through it: 29/00. If both are of the same LUN, running commands end with a
// status upon which their initiators send them again.
func (t *Target) Replace(ctx context.Context, lun uint16, u *Unit) error {
	u.join(t)
	err := t.put(ctx, lun, u)
	if errors.Is(err, ErrLUN) {
		u.part(t)
	}
	return err
}

// put makes a number that is in use stand for u, nil for nothing, and ends what runs on the unit that it stood for.
func (t *Target) put(ctx context.Context, lun uint16, u *Unit) error {
	t.mu.Lock()
	set := t.units.Load()
	old := set.byLUN[lun]
	if old == nil {
		t.mu.Unlock()
		return fmt.Errorf("%w %d does not exist", ErrLUN, lun)
	}
	next := set.next(lun, u)
	t.units.Store(next)
	t.mu.Unlock()

	gone := !slices.Contains(slices.Collect(maps.Values(next.byLUN)), old)
	end := fateAborted
	if old.sameAs(u) {
		end = fateAnswered
	}
	err := await(ctx, t.mark(func(_ *Nexus, r *request) bool {
		return r.unit == old && (gone || set.lookup(r.LUN) == old && next.lookup(r.LUN) != old)
	}, end))
	if errors.Is(err, errUnsure) {
		err = nil // all have ended, and what became of one is its initiator's concern
	}
	if err == nil {
		old.part(t) // otherwise it stays found, for the tasks that have not ended yet
	}
	if gone {
		t.mu.Lock()
		defer t.mu.Unlock()
		for n := range t.nexuses {
			n.units.forget(old)
		}
	}
	return err
}

// Units returns the LUNs by number. The map is the caller's.
func (t *Target) Units() map[uint16]*Unit {
	units := maps.Clone(t.units.Load().byLUN)
	if units == nil {
		units = map[uint16]*Unit{}
	}
	return units
}

// numbers returns the LUN numbers in ascending order.
func (s *unitSet) numbers() []uint16 { return slices.Sorted(maps.Keys(s.byLUN)) }

// lookup returns the unit a LUN field addresses, nil if there is none.
func (s *unitSet) lookup(field uint64) *Unit {
	lun, ok := decodeLUN(field)
	if !ok {
		return nil
	}
	return s.byLUN[lun]
}

// decodeLUN understands single level LUN structures with peripheral device or flat space addressing (SAM-5 §4.7.7).
// Well known and multi-level LUNs are not found: there are none here.
func decodeLUN(field uint64) (lun uint16, ok bool) {
	if field<<16 != 0 {
		return 0, false // second to fourth level
	}
	switch first := uint16(field >> 48); first >> 14 {
	case 0: // peripheral device addressing: bus identifier 0
		return first, first < 256
	case 1:
		return first & MaxLUN, true
	}
	return 0, false
}

// EncodeLUN returns the 8-byte LUN field for a number up to MaxLUN: peripheral device addressing below 256, as every
// initiator expects it, flat space addressing above.
func EncodeLUN(lun uint16) uint64 {
	if lun >= 256 {
		lun = 0x4000 | lun&MaxLUN
	}
	return uint64(lun) << 48
}

// Attach makes n known. It must come before the first Execute of the nexus.
func (t *Target) Attach(n *Nexus) { t.attach(n, rand.Uint64()) }

func (t *Target) attach(n *Nexus, session uint64) {
	n.Port |= t.cfg.Ports
	n.introduce(session)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nexuses[n] = struct{}{}
	n.units.mu.Lock()
	defer n.units.mu.Unlock()
	n.units.attached = true
	n.units.luSet = t.units.Load().version
	n.units.joined, n.units.heard = n.units.luSet, nil
	n.units.luns, n.units.ended = nil, nil // a new login: unit attention 29/00 on every LUN
}

// Detach ends the tasks of n, waits for them and forgets n. Commands that come later end with TASK ABORTED.
func (t *Target) Detach(n *Nexus) {
	n.units.mu.Lock()
	n.units.attached = false
	n.units.mu.Unlock()
	// Without a time limit: the caller may only go on (answer a login that reinstates the session) when nothing of the old
	// session can land any more.
	_ = await(context.Background(), t.mark(func(of *Nexus, _ *request) bool { return of == n }, fateAborted))
	t.releaseSession(n)
	t.discard(n)
}

// releaseFor bounds how long the end of a session waits for its RESERVE to be released. A LUN that has no owner for longer
// keeps it, until somebody meets it there (Unit.releaseOrphan).
const releaseFor = 2 * time.Second

// releaseSession releases what a nexus that is lost holds by RESERVE (SPC-2 r20 §5.5.1). Persistent reservations stay.
func (t *Target) releaseSession(n *Nexus) {
	for _, u := range t.units.Load().byLUN {
		known := u.standing()
		l := known.state.reservations.Legacy()
		if l == nil || l.Session != n.units.session {
			continue
		}
		if _, err := u.purge(context.Background(), releaseFor, Purge{What: purgeSession}, l.By, l.Session); err != nil {
			u.cfg.Log.Warn("a session has ended and its RESERVE could not be released: the LUN's owner does so when another initiator meets it",
				"lun", u.cfg.Identity.Name, "initiator", n.Initiator, "error", err)
		}
	}
}

// discard forgets a nexus that has no tasks.
func (t *Target) discard(n *Nexus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.nexuses, n)
}

// HasSession says whether a nexus of that session is attached.
func (t *Target) HasSession(session uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.nexuses {
		if n.units.session == session {
			return true
		}
	}
	return false
}

// Accept implements Executor.
func (t *Target) Accept(task *Task) (dataOut int64) {
	u := t.units.Load().lookup(task.LUN)
	if u == nil {
		return 0
	}
	task.arrived.unit, task.arrived.era, task.Fence = u, u.era.Load(), u.cfg.Backend.Fence()
	return u.dataOutLength(&task.CDB)
}

// dataOutLength is the first half of Accept.
func (u *Unit) dataOutLength(cdb *[16]byte) int64 {
	cmd := find(cdb)
	if cmd == nil || cmd.dataOut == nil || cmd.check(cdb) != nil {
		return 0
	}
	n := cmd.dataOut(u, cdb)
	if n > u.cfg.MaxTransferBytes || cmd.writes && u.writeProtected() {
		return 0 // will be refused
	}
	return n
}

// appendLUN appends the 8-byte LUN field.
func appendLUN(dst []byte, lun uint16) []byte {
	return binary.BigEndian.AppendUint64(dst, EncodeLUN(lun))
}
