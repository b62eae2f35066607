package catalog

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// fsm is the model as Raft sees it. Raft calls Apply, Snapshot and Restore from one goroutine; anyone reads the model.
type fsm struct {
	cluster string
	model   atomic.Pointer[Model]
	// changed is called after each new model, on Raft's goroutine.
	changed func(*Model)
	// fail is called with the first error that makes it impossible to go on. From then on nothing is applied.
	fail   func(error)
	failed atomic.Bool

	mu   sync.Mutex
	next chan struct{} // closed when a newer model is there
}

type applied struct {
	result Result
	err    error
}

func newFSM(cluster string, changed func(*Model), fail func(error)) *fsm {
	f := &fsm{cluster: cluster, changed: changed, fail: fail, next: make(chan struct{})}
	f.model.Store(NewModel(cluster))
	return f
}

func (f *fsm) Apply(l *raft.Log) any {
	if f.failed.Load() {
		return applied{err: fmt.Errorf("%w: nothing is applied after the damage", ErrCorrupt)}
	}
	c, err := DecodeChange(l.Data)
	if err != nil {
		// Skipping it would make this model differ from the others' without anybody noticing.
		err = fmt.Errorf("log entry %d: %w", l.Index, err)
		f.stop(err)
		return applied{err: err}
	}
	m := f.model.Load()
	next, result, err := Apply(m, l.Index, c)
	if next != m {
		f.publish(next)
	}
	return applied{result: result, err: err}
}

func (f *fsm) stop(err error) {
	if f.failed.CompareAndSwap(false, true) {
		f.fail(err)
	}
}

func (f *fsm) publish(m *Model) {
	f.model.Store(m)
	f.mu.Lock()
	close(f.next)
	f.next = make(chan struct{})
	f.mu.Unlock()
	f.changed(m)
}

func (f *fsm) watch() (*Model, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// The channel is taken before the model: a model published in between closes it.
	ch := f.next
	return f.model.Load(), ch
}

// snapshotVersion is the version of the snapshot's envelope.
const snapshotVersion = 1

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.failed.Load() {
		return nil, fmt.Errorf("%w: no snapshot after the damage", ErrCorrupt)
	}
	return &snapshot{f.model.Load()}, nil
}

type snapshot struct{ model *Model }

func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := encodeSnapshot(s.model)
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		return fmt.Errorf("write catalog snapshot: %w (%w)", err, sink.Cancel())
	}
	return sink.Close()
}

func (*snapshot) Release() {}

func encodeSnapshot(m *Model) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	e := envelope{Version: snapshotVersion, Kind: "model", Body: body}
	e.CRC = e.sum()
	return json.Marshal(e)
}

// maxSnapshotBytes bounds what is read into memory: MaxLUNs at 4 KiB each is a quarter of it.
const maxSnapshotBytes = 64 << 20

func decodeSnapshot(r io.Reader, cluster string) (*Model, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSnapshotBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read catalog snapshot: %w", err)
	}
	if len(b) > maxSnapshotBytes {
		return nil, fmt.Errorf("%w: snapshot of more than %d bytes", ErrCorrupt, maxSnapshotBytes)
	}
	var e envelope
	if err := strictJSON(b, &e); err != nil {
		return nil, fmt.Errorf("%w: snapshot: %w", ErrCorrupt, err)
	}
	if e.CRC != e.sum() {
		return nil, fmt.Errorf("%w: snapshot does not match its checksum", ErrCorrupt)
	}
	m := NewModel(cluster)
	if e.Version != snapshotVersion || e.Kind != "model" {
		return nil, fmt.Errorf("catalog snapshot of format %d (%s): this program knows format %d; upgrade it", e.Version, e.Kind, snapshotVersion)
	}
	if err := strictJSON(e.Body, m); err != nil {
		return nil, fmt.Errorf("catalog snapshot holds what this program does not know (%w); upgrade it", err)
	}
	if m.Version < modelVersion || m.Version > newestVersion {
		return nil, fmt.Errorf("catalog of format %d: this program knows formats %d to %d; upgrade it", m.Version, modelVersion, newestVersion)
	}
	if m.Cluster != cluster {
		return nil, fmt.Errorf("the catalog on this disk is of cluster %q and this node is configured for %q: set the name back, or use another data directory", m.Cluster, cluster)
	}
	return m, nil
}

func (f *fsm) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	if f.failed.Load() {
		return fmt.Errorf("%w: nothing is restored after the damage", ErrCorrupt)
	}
	m, err := decodeSnapshot(r, f.cluster)
	if err != nil {
		return err
	}
	if have := f.model.Load().Index; m.Index < have {
		return fmt.Errorf("snapshot refused: it ends at change %d and %d has been applied here", m.Index, have)
	}
	f.publish(m)
	return nil
}
