package catalog

import (
	"slices"
	"time"
)

// RecoverLUN lets a LUN go on from one copy after the majority of its voters is gone for good. Its history gets a new epoch: the survivor
// becomes the only voter, and every other replica a new incarnation that holds nothing. It is the fence between two survivors: the catalog
// takes the first proposal, and refuses another for the same epoch.
type RecoverLUN struct {
	LUN      string   `json:"lun"` // ID
	Recovery Recovery `json:"recovery"`
}

// Recovery is the record of a forced recovery: who decided what, when, and on what evidence. It is never changed.
type Recovery struct {
	Epoch   uint64 `json:"epoch"`          // the one it began: the LUN's before and one
	Replica string `json:"replica"`        // the survivor's ID
	Term    uint64 `json:"term"`           // the newest of the old history that anybody told of
	At      int64  `json:"at"`             // when, in ms since the Unix epoch, by the clock of the node that proposed it
	Through string `json:"through"`        // the node that was asked
	By      string `json:"by,omitempty"`   // who asked, as they said
	Why     string `json:"why,omitempty"`  // in their words
	Lost    string `json:"lost,omitempty"` // what was known to be lost, as it was shown to them
}

// Limits of the texts in a record, in bytes, and of the records of one LUN: the oldest are forgotten.
const (
	maxRecoveryText = 1024
	maxRecoveries   = 16
)

// Time returns when it was decided.
func (r Recovery) Time() time.Time { return time.UnixMilli(r.At) }

func (*RecoverLUN) kind() string { return "recover_lun" }

// RecoveredBy returns the record of the LUN's present history, if that began with a recovery.
func (l LUN) RecoveredBy() (Recovery, bool) {
	if n := len(l.Recoveries); n > 0 && l.Recoveries[n-1].Epoch == l.Epoch {
		return l.Recoveries[n-1], true
	}
	return Recovery{}, false
}

func (c *RecoverLUN) apply(m *Model, r *Result) error {
	rec := c.Recovery
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	for _, text := range []string{rec.By, rec.Why, rec.Lost, rec.Through} {
		if len(text) > maxRecoveryText {
			return refuse(CodeInvalid, "LUN %q: a text of %d bytes, at most %d are allowed", l.Name, len(text), maxRecoveryText)
		}
	}
	if last, ok := l.RecoveredBy(); ok && rec.Epoch == l.Epoch {
		if last.Replica != rec.Replica {
			return refuse(CodeStale, "LUN %q has just been recovered from replica %s: it goes on from there. Look again", l.Name, last.Replica)
		}
		r.Changed, r.LUN = false, &l
		return nil
	}
	if rec.Epoch != l.Epoch+1 {
		return refuse(CodeStale, "LUN %q is in history %d, not %d: somebody has recovered it meanwhile. Look again", l.Name, l.Epoch, rec.Epoch-1)
	}
	i := slices.IndexFunc(l.Replicas, func(x Replica) bool { return x.ID == rec.Replica })
	switch {
	case i < 0:
		return refuse(CodeStale, "replica %s is not a replica of LUN %q any more: this node's catalog is behind", rec.Replica, l.Name)
	case l.Replicas[i].Witness:
		return refuse(CodeInvalid, "replica %s of LUN %q is the witness: it holds no data", rec.Replica, l.Name)
	case l.Replicas[i].State == ReplicaPending:
		return refuse(CodeInvalid, "replica %s of LUN %q has never been started: it holds no data", rec.Replica, l.Name)
	}
	var next []Replica
	survivor := l.Replicas[i].Node
	for _, rep := range l.Replicas {
		switch {
		case rep.ID == rec.Replica:
			// It is the group: what it took the place of is in no configuration any more, and its own log is whole.
			rep.State, rep.Replaces, rep.Leaving = ReplicaActive, "", false
			i, l.Preferred = len(next), rep.Node
		case rep.Leaving, rep.Node == survivor:
			m.leave(&l, rep)
			continue
		default:
			l.copied(rep.ID) // never now: its successor is rebuilt from the survivor
			rep = Replica{ID: m.nextReplicaID(rep.Node), Node: rep.Node, Witness: rep.Witness, Pool: rep.Pool, State: ReplicaJoining}
		}
		next = append(next, rep)
	}
	l.Replicas, l.Epoch, l.Lost = next, rec.Epoch, false
	l.Recoveries = append(slices.Clone(l.Recoveries), rec)
	if n := len(l.Recoveries); n > maxRecoveries {
		l.Recoveries = l.Recoveries[n-maxRecoveries:]
	}
	m.needs(versionMembers)
	m.put(l, i, r)
	return nil
}
