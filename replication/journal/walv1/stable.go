package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// Raft writes its vote in two steps, the term voted in and then the candidate (hashicorp/raft #661): a crash between
// them would leave the vote of one election beside the candidate of another. Both stores here hold the first back and
// commit it together with the second.
const (
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
)

var stableBucket = []byte("stable-v1")

// Stable is Raft's term and vote on disk: one fsync per change, in place before Raft tells anyone. Concurrent-safe.
type Stable struct {
	db *bbolt.DB

	// mu guards voteTerm. Raft calls from one goroutine; the lock is for whoever inspects.
	mu       sync.Mutex
	voteTerm []byte // written by Raft, not yet committed: waits for its candidate
}

// OpenStable opens or creates the store at path.
func OpenStable(path string) (*Stable, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("open term and vote %s (is another process using it?): %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(stableBucket)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Stable{db: db}, nil
}

// Set implements raft.StableStore.
func (s *Stable) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(key) == keyVoteTerm {
		s.voteTerm = append([]byte(nil), value...)
		return nil
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(stableBucket)
		if string(key) == keyVoteCandidate && s.voteTerm != nil {
			if err := b.Put([]byte(keyVoteTerm), s.voteTerm); err != nil {
				return err
			}
		}
		return b.Put(key, value)
	})
	if err == nil && string(key) == keyVoteCandidate {
		s.voteTerm = nil
	}
	return err
}

// Get implements raft.StableStore: a key never set reads as empty.
func (s *Stable) Get(key []byte) (value []byte, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		value = append([]byte{}, tx.Bucket(stableBucket).Get(key)...)
		return nil
	})
	return value, err
}

// SetUint64 implements raft.StableStore.
func (s *Stable) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore: a key never set reads as 0.
func (s *Stable) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil || len(v) == 0 {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("stable key %q holds %d bytes, not 8", key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// Close closes the store.
func (s *Stable) Close() error { return s.db.Close() }

// memoryStable is the term and vote of a replica in RAM, which never outlives its Raft server ID.
type memoryStable struct {
	mu     sync.Mutex
	values map[string][]byte
}

func newMemoryStable() *memoryStable { return &memoryStable{values: map[string][]byte{}} }

func (s *memoryStable) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[string(key)] = append([]byte(nil), value...)
	return nil
}

func (s *memoryStable) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte{}, s.values[string(key)]...), nil
}

func (s *memoryStable) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

func (s *memoryStable) GetUint64(key []byte) (uint64, error) {
	v, _ := s.Get(key)
	if len(v) == 0 {
		return 0, nil
	}
	return binary.BigEndian.Uint64(v), nil
}
