package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// store is the catalog's log and stable store: raft-boltdb, with what it lacks.
//
// Every log entry is sealed on its way in and checked on its way out, so that neither a flipped bit nor a misplaced page
// reaches Raft. The seal is four bytes at the end of Extensions: CRC32C of index, term and type (each 8 bytes, little
// endian), the length of Data (8 bytes), Data and Extensions. Every stable value ends in its own CRC32C, which also
// covers its key.
//
// A vote is one write: Raft sets the term it voted in and the candidate one after the other, and a crash between them
// would leave the vote of an older term standing under a newer one (hashicorp/raft#661).
type store struct {
	bolt *raftboltdb.BoltStore
	// damaged is called, perhaps repeatedly and from any goroutine, before an error about damage is returned to Raft.
	damaged func(error)

	mu       sync.Mutex
	voteTerm uint64 // set by SetUint64(LastVoteTerm), made durable with the candidate by Set(LastVoteCand)
}

var (
	keyTerm     = []byte("CurrentTerm")
	keyVoteTerm = []byte("LastVoteTerm")
	keyVoteCand = []byte("LastVoteCand")
	keyVote     = []byte("Vote")      // term (8 bytes, little endian), candidate
	keyMember   = []byte("Confirmed") // see guard
)

// dbFile holds log, term and vote.
const dbFile = "raft.db"

// lockWait bounds the wait for another process that has the file open.
const lockWait = 2 * time.Second

func openStore(dir string, damaged func(error)) (*store, error) {
	path := filepath.Join(dir, dbFile)
	b, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: lockWait}})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("catalog %s is in use by another process: is the node running already?", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", path, err)
	}
	return &store{bolt: b, damaged: damaged}, nil
}

func (s *store) Close() error { return s.bolt.Close() }

func (s *store) FirstIndex() (uint64, error) { return s.bolt.FirstIndex() }

func (s *store) LastIndex() (uint64, error) { return s.bolt.LastIndex() }

func (s *store) DeleteRange(low, high uint64) error { return s.bolt.DeleteRange(low, high) }

func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *store) StoreLogs(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		c := *l // Raft goes on using l
		c.Extensions = binary.LittleEndian.AppendUint32(append([]byte(nil), l.Extensions...), entrySum(l))
		sealed[i] = &c
	}
	return s.bolt.StoreLogs(sealed)
}

func (s *store) GetLog(index uint64, l *raft.Log) error {
	var c raft.Log
	if err := s.bolt.GetLog(index, &c); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		return s.damage("log entry %d cannot be read: %v", index, err)
	}
	n := len(c.Extensions) - 4
	if n < 0 {
		return s.damage("log entry %d carries no checksum", index)
	}
	want := binary.LittleEndian.Uint32(c.Extensions[n:])
	c.Extensions = c.Extensions[:n:n]
	if n == 0 {
		c.Extensions = nil
	}
	if c.Index != index || entrySum(&c) != want {
		return s.damage("log entry %d does not match its checksum", index)
	}
	*l = c
	return nil
}

func (s *store) damage(format string, args ...any) error {
	err := fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	s.damaged(err)
	return err
}

func entrySum(l *raft.Log) uint32 {
	var head [32]byte
	binary.LittleEndian.PutUint64(head[0:], l.Index)
	binary.LittleEndian.PutUint64(head[8:], l.Term)
	binary.LittleEndian.PutUint64(head[16:], uint64(l.Type))
	binary.LittleEndian.PutUint64(head[24:], uint64(len(l.Data)))
	crc := crc32.Checksum(head[:], castagnoli)
	crc = crc32.Update(crc, castagnoli, l.Data)
	return crc32.Update(crc, castagnoli, l.Extensions)
}

// verify reads the whole log once, before Raft does: Raft panics over a hole.
// The log must continue the newest snapshot, which holds everything up to snapshotIndex.
func (s *store) verify(snapshotIndex uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return fmt.Errorf("read catalog log: %w", err)
	}
	last, err := s.LastIndex()
	if err != nil {
		return fmt.Errorf("read catalog log: %w", err)
	}
	if last == 0 {
		return nil
	}
	if first > snapshotIndex+1 {
		return fmt.Errorf("%w: the log begins at entry %d, the newest snapshot that can be read ends at %d", ErrCorrupt, first, snapshotIndex)
	}
	var l raft.Log
	for i := first; i <= last; i++ {
		if err := s.GetLog(i, &l); errors.Is(err, raft.ErrLogNotFound) {
			return fmt.Errorf("%w: log entry %d is missing; the log goes on to %d", ErrCorrupt, i, last)
		} else if err != nil {
			return err
		}
		if l.Type == raft.LogCommand {
			if _, err := DecodeChange(l.Data); err != nil {
				return fmt.Errorf("log entry %d: %w", i, err)
			}
		}
	}
	return nil
}

func (s *store) Set(key, value []byte) error {
	if string(key) != string(keyVoteCand) {
		return s.put(key, value)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(keyVote, append(binary.LittleEndian.AppendUint64(nil, s.voteTerm), value...))
}

// Get returns raftboltdb.ErrKeyNotFound for a key that is not there: Raft compares the text "not found".
func (s *store) Get(key []byte) ([]byte, error) {
	if string(key) != string(keyVoteCand) {
		return s.get(key)
	}
	v, err := s.get(keyVote)
	if err != nil {
		return nil, err
	}
	return v[8:], nil
}

func (s *store) SetUint64(key []byte, v uint64) error {
	if string(key) != string(keyVoteTerm) {
		return s.put(key, binary.LittleEndian.AppendUint64(nil, v))
	}
	s.mu.Lock()
	s.voteTerm = v
	s.mu.Unlock()
	return nil
}

func (s *store) GetUint64(key []byte) (uint64, error) {
	if string(key) == string(keyVoteTerm) {
		key = keyVote
	}
	v, err := s.get(key)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(v), nil
}

func (s *store) put(key, value []byte) error {
	return s.bolt.Set(key, binary.LittleEndian.AppendUint32(append([]byte(nil), value...), valueSum(key, value)))
}

func (s *store) get(key []byte) ([]byte, error) {
	v, err := s.bolt.Get(key)
	if err != nil {
		return nil, err
	}
	n := len(v) - 4
	number := string(key) == string(keyVote) || string(key) == string(keyTerm)
	if n < 0 || number && n < 8 || binary.LittleEndian.Uint32(v[n:]) != valueSum(key, v[:n]) {
		return nil, s.damage("stored %q does not match its checksum", key)
	}
	return v[:n:n], nil
}

func valueSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}
