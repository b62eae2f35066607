// Package poolv1 answers: what did a pool of format version 1 hold?
//
// Version 1 kept its records in a bbolt file beside the data. This package reads that file and changes nothing; blockstore turns
// what it finds into the present format. Every record carries its CRC32C, bound to its key; one that does not match is a
// *block.CorruptError, and so is a file that bbolt cannot make sense of.
package poolv1

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// MetadataFile is the name of the metadata file in a pool's directory.
const MetadataFile = "meta.db"

// mediumHeader is what the data file of version 1 began with: "SANCPOOL", version (4), chunk size (4), UUID (16), zeros (12),
// CRC32C of those 44 bytes.
const mediumHeaderBytes = 48

// Keys of the records. Numbers in keys are big-endian, in records little-endian.
const (
	keyPool    = 'P' // version (4), chunk size (4), UUID (16), capacity in bytes (8), number of the next volume (4)
	keyName    = 'N' // + name: volume number (4, big-endian)
	keyVolume  = 'V' // + volume: version (4), capacity in sectors (8), logical block length (4), zero (4)
	keyApplied = 'A' // + volume: applied (8), floor (8), flags (4), state version (8), state length (4), state
	keyMap     = 'M' // + volume + chunk: slot (8), bitmap (8), index (8)
	keySums    = 'S' // + volume + chunk: 64 × CRC32C (4)
)

// Pool is the metadata of a pool.
type Pool struct {
	UUID          [16]byte
	CapacityBytes int64
	NextVolume    uint32
	Volumes       []Volume

	db *bbolt.DB
}

// Volume is one volume as of its last checkpoint.
type Volume struct {
	ID             string
	Number         uint32
	Geometry       block.Geometry
	Applied, Floor uint64
	Inconsistent   bool
	State          block.State
}

// Chunk is one entry of a volume's map.
type Chunk struct {
	Number uint32
	Slot   uint32 // where it lies: at byte Slot × 256 KiB of the data file; 0: nowhere
	Valid  uint64 // bit n: block n is stored
	Index  uint64 // of the entry that changed it last
	Sums   [block.BlocksPerChunk]uint32
}

func damaged(what string) error {
	return fmt.Errorf("%s in %s: %w", what, MetadataFile, &block.CorruptError{Where: "metadata"})
}

// Open reads the pool's records but for the maps. Errors: fs.ErrNotExist, vfs.ErrLocked, *block.CorruptError.
func Open(dir string) (*Pool, error) {
	path := filepath.Join(dir, MetadataFile)
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	p := &Pool{}
	err := guard(func() (err error) {
		p.db, err = bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
		return err
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", path, vfs.ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := p.view(p.read); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), p.Close())
	}
	return p, nil
}

// Close closes the file.
func (p *Pool) Close() error { return guard(p.db.Close) }

// Owns says whether the first sector of a data file is that of this pool.
func (p *Pool) Owns(sector []byte) bool {
	b := make([]byte, mediumHeaderBytes)
	copy(b, "SANCPOOL")
	binary.LittleEndian.PutUint32(b[8:], 1)
	binary.LittleEndian.PutUint32(b[12:], block.ChunkSize)
	copy(b[16:], p.UUID[:])
	binary.LittleEndian.PutUint32(b[44:], block.Sum(b[:44]))
	return bytes.HasPrefix(sector, b)
}

func (p *Pool) view(fn func(records *bbolt.Bucket) error) error {
	return guard(func() error {
		return p.db.View(func(tx *bbolt.Tx) error {
			records := tx.Bucket([]byte("blockstore"))
			if records == nil {
				return errors.New("not the metadata of a pool")
			}
			return fn(records)
		})
	})
}

// guard turns the panics of bbolt on a damaged file, and memory faults in its mapping, into errors.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = damaged(fmt.Sprint(r))
		}
	}()
	return fn()
}

// unseal returns a record without its checksum, if that is right and the rest has the length wanted at least.
func unseal(key, sealed []byte, atLeast int, what string) ([]byte, error) {
	if len(sealed) < 4+atLeast {
		return nil, damaged(what)
	}
	b := sealed[:len(sealed)-4]
	if sum := block.ExtendSum(block.Sum(key), b); sum != binary.LittleEndian.Uint32(sealed[len(b):]) {
		return nil, damaged(what)
	}
	return b, nil
}

func scan(records *bbolt.Bucket, prefix []byte, fn func(key, value []byte) error) error {
	c := records.Cursor()
	for key, value := c.Seek(prefix); key != nil && bytes.HasPrefix(key, prefix); key, value = c.Next() {
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}

func volumeKey(kind byte, number uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, number)
}

func (p *Pool) read(records *bbolt.Bucket) error {
	key := []byte{keyPool}
	b, err := unseal(key, records.Get(key), 36, "the pool's header")
	if err != nil {
		return err
	}
	if version := binary.LittleEndian.Uint32(b); version != 1 {
		return fmt.Errorf("version %d in a file that only version 1 has", version)
	}
	copy(p.UUID[:], b[8:])
	p.CapacityBytes = int64(binary.LittleEndian.Uint64(b[24:]))
	p.NextVolume = binary.LittleEndian.Uint32(b[32:])
	return scan(records, []byte{keyName}, func(key, value []byte) error {
		if len(value) != 4 {
			return damaged("a volume's name")
		}
		v := Volume{ID: string(key[1:]), Number: binary.BigEndian.Uint32(value)}
		if err := v.read(records); err != nil {
			return fmt.Errorf("volume %s: %w", v.ID, err)
		}
		p.Volumes = append(p.Volumes, v)
		return nil
	})
}

func (v *Volume) read(records *bbolt.Bucket) error {
	key := volumeKey(keyVolume, v.Number)
	b, err := unseal(key, records.Get(key), 20, "its header")
	if err != nil {
		return err
	}
	v.Geometry = block.Geometry{Capacity: block.Count(binary.LittleEndian.Uint64(b[4:])), LogicalBlockBytes: int(binary.LittleEndian.Uint32(b[12:]))}
	if err := v.Geometry.Validate(); err != nil {
		return err
	}
	key = volumeKey(keyApplied, v.Number)
	if b, err = unseal(key, records.Get(key), 32, "what it has applied"); err != nil {
		return err
	}
	v.Applied, v.Floor = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	v.Inconsistent = binary.LittleEndian.Uint32(b[16:])&1 != 0
	v.State.Version = binary.LittleEndian.Uint64(b[20:])
	if int64(binary.LittleEndian.Uint32(b[28:])) != int64(len(b)-32) {
		return damaged("its state")
	}
	v.State.Blob = bytes.Clone(b[32:])
	return nil
}

// Chunks calls fn for every entry of a volume's map, in ascending order. c is valid until fn returns.
func (p *Pool) Chunks(v Volume, fn func(c *Chunk) error) error {
	return p.view(func(records *bbolt.Bucket) error {
		var c Chunk
		return scan(records, volumeKey(keyMap, v.Number), func(key, value []byte) error {
			b, err := unseal(key, value, 24, "a map entry")
			if err != nil {
				return err
			}
			slot := binary.LittleEndian.Uint64(b)
			c = Chunk{Number: binary.BigEndian.Uint32(key[5:]), Slot: uint32(slot), Valid: binary.LittleEndian.Uint64(b[8:]), Index: binary.LittleEndian.Uint64(b[16:])}
			if slot > uint64(p.CapacityBytes/block.ChunkSize) || (slot == 0) != (c.Valid == 0) {
				return damaged("a map entry")
			}
			if slot != 0 {
				sums := append([]byte{keySums}, key[1:]...)
				if b, err = unseal(sums, records.Get(sums), 4*block.BlocksPerChunk, "checksums of a chunk"); err != nil {
					return err
				}
				for i := range c.Sums {
					c.Sums[i] = binary.LittleEndian.Uint32(b[4*i:])
				}
			}
			return fn(&c)
		})
	})
}
