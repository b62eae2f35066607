package scsi

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
)

// A reservation by RESERVE ends with the session that made it (SPC-2 r20 §5.5.1: the loss of the I_T nexus). There is no time in which a session
// could be taken up again: Time2Retain is 0.
//
// A session that ends releases its reservation through the owner (Target.releaseSession). If there is no owner then, or the session ends with its
// node's process, nobody does. So whenever the owner is about to answer RESERVATION CONFLICT for the sake of a RESERVE, it asks the node through
// which the holder came whether the session is still there, whoever owned the LUN when it was made. A node that has answered nothing for
// holderSilence, asked again and again, counts as lost with its sessions: none of their commands could be carried out meanwhile. Should one be there all the same it is told
// that the reservation has been released (06/2A/04), before its next command.

const (
	// holderAnswers bounds the wait for that node, and with it a RESERVATION CONFLICT.
	holderAnswers = 500 * time.Millisecond
	// holderAsked is how often it is asked at most.
	holderAsked = 500 * time.Millisecond
	// holderGap is how long between two questions without an answer at most counts as silence. Nothing is known of more.
	holderGap = 5 * time.Second
	// holderSilence is longer than initiators ping through a connection before they give it up.
	holderSilence = 15 * time.Second
)

// holderWatch is what the owner knows of the session that holds the unit with RESERVE, through another node.
type holderWatch struct {
	// mu is held while that node is asked. Nobody waits for it: who finds it taken hears RESERVATION CONFLICT.
	mu      sync.Mutex
	session uint64
	asked   time.Time
	silent  time.Time // since when it has not answered; zero: it has
}

// releaseOrphan ends a reservation by RESERVE whose session is gone, and says whether there was one.
func (u *Unit) releaseOrphan(ctx context.Context, fence block.Fence, now *standing) bool {
	l := now.state.reservations.Legacy()
	access := u.cfg.Access()
	if l == nil || access.LocalState() != ActiveOptimized {
		return false
	}
	purge := Purge{What: purgeSession}
	switch local := slices.Contains(access.localPorts(), l.By.Port); {
	case local && u.HasSession(l.Session):
		return false
	case local && u.cfg.HolderLives != nil:
		if lives, err := u.cfg.HolderLives(ctx, l.By.Port, l.Session); lives || err != nil {
			return false
		}
	case !local:
		lives, silent := u.holderLives(ctx, l)
		if lives {
			return false
		}
		if silent {
			purge.What = purgeSilent
			u.cfg.Log.Warn("a RESERVE is released because the node through which its holder came does not answer", "lun", u.cfg.Identity.Name,
				"initiator", l.By.Initiator, "port", l.By.Port, "silent", holderSilence)
		}
	}
	_, err := u.purgeHere(ctx, rand.Uint64(), fence, purge, l.By, l.Session)
	return err == nil
}

// holderLives says whether the session that holds the unit through another node is to be taken for alive, and if not, whether that is because the
// node is silent.
func (u *Unit) holderLives(ctx context.Context, l *reserve.Legacy) (lives, silent bool) {
	w := &u.holder
	if u.cfg.HolderLives == nil || !w.mu.TryLock() {
		return true, false
	}
	defer w.mu.Unlock()
	if w.session != l.Session {
		w.session, w.asked, w.silent = l.Session, time.Time{}, time.Time{}
	}
	began := time.Now()
	if began.Sub(w.asked) < holderAsked {
		return true, false
	}
	before := w.asked
	w.asked = began
	asking, cancel := context.WithTimeout(ctx, holderAnswers)
	defer cancel()
	lives, err := u.cfg.HolderLives(asking, l.By.Port, l.Session)
	switch {
	case err == nil:
		w.silent = time.Time{}
		return lives, false
	case ctx.Err() != nil:
		return true, false
	case w.silent.IsZero(), began.Sub(before) > holderGap:
		w.silent = began
	}
	silent = began.Sub(w.silent) >= holderSilence
	return !silent, silent
}

// localPorts returns the relative target port identifiers of this node.
func (a *Access) localPorts() []uint16 {
	for _, g := range a.Groups {
		if g.ID == a.Local {
			return append([]uint16{a.LocalPort}, g.Ports...)
		}
	}
	return []uint16{a.LocalPort}
}

// HasSession says whether a session is attached to any target of the unit on this node: that of a RESERVE, as UnitConfig.HolderLives has it.
func (u *Unit) HasSession(session uint64) bool {
	for _, t := range u.targets() {
		if t.HasSession(session) {
			return true
		}
	}
	return false
}
