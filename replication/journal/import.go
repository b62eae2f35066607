package journal

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"sanctuary/replication/journal/walv1"
)

// importBatch is how many entries are read before they are stored.
const importBatch = 64

// Import stores what an older program kept in a directory of its own (walv1) as the group of that name, in place of what that has. It can be repeated until the
// directory is deleted. The group must not be open.
func (j *Journal) Import(name, dir string) (err error) {
	old, err := walv1.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	if err := j.Remove(name); err != nil {
		return err
	}
	l, err := j.Log(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := importAll(l, old); err != nil {
		return fmt.Errorf("move the journal in %s: %w", dir, err)
	}
	return nil
}

func importAll(l Log, old *walv1.Log) error {
	first, last, err := old.Bounds()
	if err != nil {
		return err
	}
	var batch []*raft.Log
	for i := first; i <= last && last > 0; i++ {
		e, err := old.Entry(i)
		if err != nil {
			return err
		}
		if batch = append(batch, e); len(batch) == importBatch || i == last {
			if err := l.StoreLogs(batch); err != nil {
				return err
			}
			batch = nil
		}
	}
	if s := old.Snapshot; s != nil {
		if err := l.Snapshots().Put(s.Meta, s.Body); err != nil {
			return err
		}
	}
	for key, value := range old.Values {
		if key == keyVoteTerm {
			continue // goes with the candidate
		}
		if key == keyVoteCandidate {
			if err := l.Set([]byte(keyVoteTerm), old.Values[keyVoteTerm]); err != nil {
				return err
			}
		}
		if err := l.Set([]byte(key), value); err != nil {
			return err
		}
	}
	return nil
}
