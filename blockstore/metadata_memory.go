package blockstore

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
)

// MemoryMetadata is a Metadata that ends with the process: for RAM pools, and for crash tests, which Clone it.
type MemoryMetadata struct {
	mu      sync.RWMutex
	records map[string][]byte
}

var _ Metadata = (*MemoryMetadata)(nil)

// NewMemoryMetadata returns an empty store.
func NewMemoryMetadata() *MemoryMetadata { return &MemoryMetadata{records: map[string][]byte{}} }

// Clone returns the state after the last Update.
func (m *MemoryMetadata) Clone() *MemoryMetadata {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &MemoryMetadata{records: maps.Clone(m.records)} // values are never changed in place
}

// Update implements Metadata.
func (m *MemoryMetadata) Update(fn func(MetadataTx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	tx := &memoryTx{records: m.records, undo: map[string][]byte{}, writable: true}
	if err := fn(tx); err != nil {
		for key, old := range tx.undo {
			if old == nil {
				delete(m.records, key)
			} else {
				m.records[key] = old
			}
		}
		return err
	}
	return nil
}

// View implements Metadata.
func (m *MemoryMetadata) View(fn func(MetadataTx) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return fn(&memoryTx{records: m.records})
}

// Close implements Metadata.
func (m *MemoryMetadata) Close() error { return nil }

var errReadOnlyTx = errors.New("a read-only transaction cannot change records")

type memoryTx struct {
	records  map[string][]byte
	undo     map[string][]byte // the value before the first change in this transaction; nil: none
	writable bool
}

func (t *memoryTx) Get(key []byte) []byte { return t.records[string(key)] }

func (t *memoryTx) Put(key, value []byte) error {
	if !t.writable {
		return errReadOnlyTx
	}
	t.remember(string(key))
	t.records[string(key)] = append([]byte{}, value...)
	return nil
}

func (t *memoryTx) Delete(key []byte) error {
	if !t.writable {
		return errReadOnlyTx
	}
	t.remember(string(key))
	delete(t.records, string(key))
	return nil
}

func (t *memoryTx) remember(key string) {
	if _, done := t.undo[key]; !done {
		t.undo[key] = t.records[key]
	}
}

func (t *memoryTx) Scan(prefix []byte, fn func(key, value []byte) error) error {
	var keys []string
	for key := range t.records {
		if strings.HasPrefix(key, string(prefix)) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := fn([]byte(key), t.records[key]); err != nil {
			return err
		}
	}
	return nil
}
