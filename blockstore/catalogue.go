package blockstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"sanctuary/blockstore/block"
)

// Errors of the pool's catalogue of volumes.
var (
	// ErrExists: there is a volume of that name.
	ErrExists = errors.New("the volume exists already")
	// ErrNotFound: there is no volume of that name.
	ErrNotFound = errors.New("no such volume")
	// ErrInUse: the volume is open.
	ErrInUse = errors.New("the volume is in use")
)

// maxNameBytes bounds the name of a volume.
const maxNameBytes = 255

// Create makes a volume, durable before Create returns, and opens it. Errors: ErrExists, block.ErrFailed.
func (p *Pool) Create(id string, g block.Geometry) (*Volume, error) {
	if err := checkName(id); err != nil {
		return nil, err
	}
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return nil, err
	}
	next := p.header
	next.nextVolume++ // numbers are never used again, so a stray record cannot come to life
	err := p.update(func(tx MetadataTx) error {
		if tx.Get(nameKey(id)) != nil {
			return fmt.Errorf("volume %s: %w", id, ErrExists)
		}
		n := p.header.nextVolume
		key, applied := volumeKey(keyVolume, n), volumeKey(keyApplied, n)
		return errors.Join(
			tx.Put(nameKey(id), binary.BigEndian.AppendUint32(nil, n)),
			tx.Put(key, encodeVolume(key, g)),
			tx.Put(applied, appliedRecord{}.encode(applied)),
			tx.Put(poolKey, next.encode()))
	})
	if err != nil {
		return nil, err
	}
	p.header = next
	return p.openLocked(id)
}

func checkName(id string) error {
	if id == "" || len(id) > maxNameBytes {
		return fmt.Errorf("volume name of %d bytes: use 1 to %d", len(id), maxNameBytes)
	}
	return nil
}

// Open opens a volume as of its last checkpoint. Errors: ErrNotFound, ErrInUse, *block.CorruptError, block.ErrFailed.
func (p *Pool) Open(id string) (*Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return nil, err
	}
	return p.openLocked(id)
}

func (p *Pool) openLocked(id string) (*Volume, error) {
	if p.open[id] != nil {
		return nil, fmt.Errorf("volume %s: %w", id, ErrInUse)
	}
	v, err := p.loadVolume(id)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", id, err)
	}
	p.open[id] = v
	return v, nil
}

// Delete removes a volume and frees what it has; both are durable when it returns. Errors: ErrNotFound, ErrInUse, block.ErrFailed.
func (p *Pool) Delete(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return err
	}
	if p.open[id] != nil {
		return fmt.Errorf("delete volume %s: %w", id, ErrInUse)
	}
	var freed []uint32
	err := p.update(func(tx MetadataTx) (err error) {
		freed, err = deleteRecords(tx, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	return p.giveBack(freed, 0)
}

// deleteRecords returns the slots that the volume had.
func deleteRecords(tx MetadataTx, id string) (freed []uint32, err error) {
	number, err := volumeNumber(tx, id)
	if err != nil {
		return nil, err
	}
	keys := [][]byte{nameKey(id), volumeKey(keyVolume, number), volumeKey(keyApplied, number)}
	for _, kind := range []byte{keyMap, keySums} {
		err := tx.Scan(volumeKey(kind, number), func(key, value []byte) error {
			keys = append(keys, bytes.Clone(key))
			if kind != keyMap {
				return nil
			}
			e, err := decodeMapEntry(key, value)
			if e.slot != 0 {
				freed = append(freed, uint32(e.slot))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for _, key := range keys {
		if err := tx.Delete(key); err != nil {
			return nil, err
		}
	}
	return freed, nil
}

func volumeNumber(tx MetadataTx, id string) (uint32, error) {
	b := tx.Get(nameKey(id))
	switch {
	case b == nil:
		return 0, ErrNotFound
	case len(b) != 4:
		return 0, damaged("volume name")
	}
	return binary.BigEndian.Uint32(b), nil
}

// Volumes returns the names of all volumes, open or not, in ascending order.
func (p *Pool) Volumes() ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, block.ErrClosed
	}
	var ids []string
	err := p.meta.View(func(tx MetadataTx) error {
		return tx.Scan([]byte{keyName}, func(key, _ []byte) error {
			ids = append(ids, string(key[1:]))
			return nil
		})
	})
	slices.Sort(ids)
	return ids, err
}
