package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// MaxSnapshotBytes bounds a snapshot's body. Block data is never in one (a snapshot is the index up to which the
// volume is durable, and a few words about the LUN).
const MaxSnapshotBytes = 64 << 10

// Snapshots keeps the newest snapshot's metadata and its small body: in one file, replaced whole, or in memory.
// It implements raft.SnapshotStore.
type Snapshots struct {
	path string // "" = memory

	mu      sync.Mutex
	current *snapshotFile
}

// snapshotFile is the file's content: JSON, so that an operator can read it, with a checksum over Meta and Body.
type snapshotFile struct {
	Version int               `json:"version"`
	Meta    raft.SnapshotMeta `json:"meta"`
	Body    []byte            `json:"body"`
	CRC32C  uint32            `json:"crc32c"`
}

const snapshotVersion = 1

// ErrVersion: it was written by a newer version of the software.
var ErrVersion = errors.New("unknown version")

func (f *snapshotFile) sum() (uint32, error) {
	meta, err := json.Marshal(f.Meta)
	if err != nil {
		return 0, err
	}
	return block.Sum(append(meta, f.Body...)), nil
}

// NewMemorySnapshots returns a store that ends with the process.
func NewMemorySnapshots() *Snapshots { return &Snapshots{} }

// OpenSnapshots reads the store at path; a missing file is an empty store, a damaged one an error: without it the log
// could be taken to begin elsewhere than it does.
func OpenSnapshots(path string) (*Snapshots, error) {
	s := &Snapshots{path: path}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	var f snapshotFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("snapshot metadata %s: %w", path, err)
	}
	if f.Version != snapshotVersion {
		return nil, fmt.Errorf("snapshot metadata %s has %w %d, this program reads version %d", path, ErrVersion, f.Version, snapshotVersion)
	}
	if sum, err := f.sum(); err != nil || sum != f.CRC32C {
		return nil, errors.Join(fmt.Errorf("snapshot metadata %s does not match its checksum", path), err)
	}
	s.current = &f
	return s, nil
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

func (s *Snapshots) put(meta raft.SnapshotMeta, body []byte) error {
	f := &snapshotFile{Version: snapshotVersion, Meta: meta, Body: body}
	sum, err := f.sum()
	if err != nil {
		return err
	}
	f.CRC32C = sum
	if s.path != "" {
		raw, err := json.Marshal(f)
		if err != nil {
			return err
		}
		if err := vfs.ReplaceFile(s.path, raw); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.current = f
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
	return k.store.put(k.meta, k.body.Bytes())
}

func (k *sink) Cancel() error { k.done = true; return nil }
