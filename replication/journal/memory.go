package journal

import (
	"encoding/binary"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// memoryLog keeps everything in RAM: it ends with the process, as its replica's data does, and never outlives its Raft server ID.
type memoryLog struct {
	snapshots *Snapshots
	recent    recent

	mu     sync.Mutex
	values map[string][]byte
}

// NewMemory returns an empty log in memory. It holds what Raft has not truncated.
func NewMemory() Log {
	s, _ := openSnapshots(nil, func([]byte) error { return nil }) // of nothing: it cannot fail
	return &memoryLog{snapshots: s, values: map[string][]byte{}}
}

func (j *memoryLog) Snapshots() *Snapshots                      { return j.snapshots }
func (j *memoryLog) Failed() error                              { return nil }
func (j *memoryLog) Stalled() time.Duration                     { return 0 }
func (j *memoryLog) Tight() bool                                { return false }
func (j *memoryLog) Takes() bool                                { return true }
func (j *memoryLog) Admit(int64) bool                           { return true }
func (j *memoryLog) Arrived(int64)                              {}
func (j *memoryLog) Damaged() []Damage                          { return nil }
func (j *memoryLog) Mend(*raft.Log) error                       { return ErrCutOff }
func (j *memoryLog) Append(logs []*raft.Log) error              { return j.StoreLogs(logs) }
func (j *memoryLog) AwaitDurable(uint64, <-chan struct{}) error { return nil }
func (j *memoryLog) Durable() uint64                            { _, last := j.recent.bounds(); return last }

func (j *memoryLog) FirstIndex() (uint64, error) { first, _ := j.recent.bounds(); return first, nil }

func (j *memoryLog) LastIndex() (uint64, error) { _, last := j.recent.bounds(); return last, nil }

func (j *memoryLog) StoreLog(l *raft.Log) error      { return j.StoreLogs([]*raft.Log{l}) }
func (j *memoryLog) Bytes() int64                    { return j.recent.held() }
func (j *memoryLog) Close() error                    { return nil }
func (j *memoryLog) DeleteRange(lo, hi uint64) error { j.recent.deleteRange(lo, hi); return nil }

func (j *memoryLog) Reset() error { return j.DeleteRange(0, math.MaxUint64) }

func (j *memoryLog) SetUint64(key []byte, v uint64) error {
	return j.Set(key, binary.BigEndian.AppendUint64(nil, v))
}
func (j *memoryLog) GetUint64(key []byte) (uint64, error) { return number(key, j.Get) }

func (j *memoryLog) GetLog(index uint64, out *raft.Log) error {
	if j.recent.get(index, out) {
		return nil
	}
	return raft.ErrLogNotFound
}

// Head returns the whole entry: it costs nothing.
func (j *memoryLog) Head(index uint64, out *raft.Log) error { return j.GetLog(index, out) }

func (j *memoryLog) StoreLogs(logs []*raft.Log) error {
	if len(logs) > 0 {
		j.recent.add(logs)
	}
	return nil
}

func (j *memoryLog) Set(key, value []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.values[string(key)] = append([]byte(nil), value...)
	return nil
}

func (j *memoryLog) Get(key []byte) ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]byte{}, j.values[string(key)]...), nil
}
