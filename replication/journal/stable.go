package journal

import (
	"encoding/binary"
	"fmt"
)

// Raft writes its vote in two steps, the term voted in and then the candidate (hashicorp/raft #661): a crash between
// them would leave the vote of one election beside the candidate of another. The first is held back and stored together with the second.
const (
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
	keySnapshot      = "snapshot"
)

// Set implements raft.StableStore. The value is written twice, in two batches: so it is there after damage to either, and that the second is there shows
// that the first is not torn.
func (l *groupLog) Set(key, value []byte) error {
	if len(key) == 0 || len(key) > 255 || len(value) > 2*MaxSnapshotBytes {
		return fmt.Errorf("journal: a stable key of %d bytes with %d bytes", len(key), len(value))
	}
	l.j.mu.Lock()
	if string(key) == keyVoteTerm {
		l.voteTerm = append([]byte(nil), value...)
		l.j.mu.Unlock()
		return nil
	}
	records, err := l.ready()
	if err != nil {
		l.j.mu.Unlock()
		return err
	}
	var values []record
	if string(key) == keyVoteCandidate && l.voteTerm != nil {
		values = append(values, newRecord(record{group: l.number, kind: kindStable, exts: []byte(keyVoteTerm), data: l.voteTerm}))
	}
	values = append(values, newRecord(record{group: l.number, kind: kindStable, exts: append([]byte(nil), key...), data: append([]byte(nil), value...)}))
	voted := l.voteTerm
	if err := l.j.submit(&request{records: append(records, values...), done: make(chan error, 1)}); err != nil {
		return err
	}
	l.j.mu.Lock()
	if records, err = l.ready(); err != nil {
		l.j.mu.Unlock()
		return err
	}
	if string(key) == keyVoteCandidate && len(voted) > 0 {
		l.voteTerm = nil
	}
	return l.j.submit(&request{records: append(records, values...), done: make(chan error, 1)})
}

// Get implements raft.StableStore: a key never set reads as empty.
func (l *groupLog) Get(key []byte) ([]byte, error) {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	return append([]byte{}, l.stable(string(key))...), nil
}

// SetUint64 implements raft.StableStore.
func (l *groupLog) SetUint64(key []byte, v uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore: a key never set reads as 0.
func (l *groupLog) GetUint64(key []byte) (uint64, error) { return number(key, l.Get) }

func number(key []byte, get func([]byte) ([]byte, error)) (uint64, error) {
	v, err := get(key)
	if err != nil || len(v) == 0 {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("stable key %q holds %d bytes, not 8", key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}
