package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// MaxSnapshotBytes bounds a snapshot's body. Block data is never in one (a snapshot is the index up to which the
// volume is durable, and a few words about the LUN).
const MaxSnapshotBytes = 64 << 10

// Snapshots keeps the newest snapshot's metadata and its small body, as one value of the log's stable store. It implements
// raft.SnapshotStore.
type Snapshots struct {
	save func(raw []byte) error

	mu      sync.Mutex
	current *snapshotValue
}

// snapshotValue is that value, as JSON.
type snapshotValue struct {
	Version int               `json:"version"`
	Meta    raft.SnapshotMeta `json:"meta"`
	Body    []byte            `json:"body"`
}

const snapshotVersion = 1

// ErrVersion: it was written by a newer version of the software.
var ErrVersion = errors.New("unknown version")

// openSnapshots decodes the value; none is an empty store.
func openSnapshots(raw []byte, save func([]byte) error) (*Snapshots, error) {
	s := &Snapshots{save: save}
	if len(raw) == 0 {
		return s, nil
	}
	v, err := decodeSnapshot(raw)
	if err != nil {
		return nil, err
	}
	s.current = v
	return s, nil
}

func decodeSnapshot(raw []byte) (*snapshotValue, error) {
	v := &snapshotValue{}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("snapshot metadata: %w", err)
	}
	if v.Version != snapshotVersion {
		return nil, fmt.Errorf("snapshot metadata has %w %d, this program reads version %d", ErrVersion, v.Version, snapshotVersion)
	}
	return v, nil
}

// List implements raft.SnapshotStore: the newest snapshot or none.
func (s *Snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil, nil
	}
	meta := s.current.Meta
	return []*raft.SnapshotMeta{&meta}, nil
}

// Open implements raft.SnapshotStore.
func (s *Snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil || s.current.Meta.ID != id {
		return nil, nil, fmt.Errorf("no snapshot %s", id)
	}
	meta := s.current.Meta
	return &meta, io.NopCloser(bytes.NewReader(s.current.Body)), nil
}

// Create implements raft.SnapshotStore. The snapshot takes effect when the sink is closed.
func (s *Snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	return &sink{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// Newest returns the newest snapshot's metadata and body; ok is false if there is none.
func (s *Snapshots) Newest() (meta raft.SnapshotMeta, body []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return raft.SnapshotMeta{}, nil, false
	}
	return s.current.Meta, s.current.Body, true
}

// Put makes a snapshot the newest one.
func (s *Snapshots) Put(meta raft.SnapshotMeta, body []byte) error {
	v := &snapshotValue{Version: snapshotVersion, Meta: meta, Body: body}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := s.save(raw); err != nil {
		return err
	}
	s.mu.Lock()
	s.current = v
	s.mu.Unlock()
	return nil
}

type sink struct {
	store *Snapshots
	meta  raft.SnapshotMeta
	body  bytes.Buffer
	done  bool
}

func (k *sink) ID() string { return k.meta.ID }

func (k *sink) Write(p []byte) (int, error) {
	if k.body.Len()+len(p) > MaxSnapshotBytes {
		return 0, fmt.Errorf("snapshot body beyond %d bytes", MaxSnapshotBytes)
	}
	return k.body.Write(p)
}

func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	k.meta.Size = int64(k.body.Len())
	return k.store.Put(k.meta, k.body.Bytes())
}

func (k *sink) Cancel() error { k.done = true; return nil }
