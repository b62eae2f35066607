package blockstore

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// Media says what a pool lies on.
type Media string

const (
	// MediaFile is a directory with a data file and a metadata file.
	MediaFile Media = "file"
	// MediaRAM is memory: nothing is left of it when the process ends.
	MediaRAM Media = "ram"
	// MediaDevice is a raw block device, with the metadata on it too.
	MediaDevice Media = "device"
)

// The files of a pool in its directory.
const (
	dataFile = "data"
	metaFile = "meta.db"
)

// PoolConfig says what to open, and how to make it if it is not there.
type PoolConfig struct {
	Media Media
	// Dir is the pool's directory (MediaFile only); it is created if need be.
	Dir string
	// CapacityBytes is how much data the pool may hold, from 256 KiB to 1 PiB, rounded down to chunks of 256 KiB. A pool
	// that exists grows to it and cannot shrink; 0 leaves it as it is. Its metadata come on top: about 0.2 %.
	CapacityBytes int64
	// Preallocate reserves the whole capacity on the file system at once (MediaFile only).
	Preallocate bool
	// Path is the block device (MediaDevice only). A device that holds a pool is opened as that pool. One that looks empty
	// becomes a pool; one that holds anything else is refused with a *vfs.ForeignError, unless Force is set: then what it holds is lost.
	Path  string
	Force bool

	// Device and Metadata replace what Media would open; set both or neither. The pool closes them. The device holds
	// CapacityBytes and one chunk for the header.
	Device   vfs.Dev
	Metadata Metadata
}

// Validate returns an error that names the field and the way out.
func (c PoolConfig) Validate() error {
	switch {
	case c.CapacityBytes < 0:
		return fmt.Errorf("CapacityBytes %d: use a positive size", c.CapacityBytes)
	case (c.Device == nil) != (c.Metadata == nil):
		return errors.New("set both Device and Metadata, or neither")
	case c.Device != nil:
		if c.CapacityBytes > c.Device.Size()-block.ChunkSize {
			return fmt.Errorf("CapacityBytes %d: the device has %d, of which 256 KiB are for the header", c.CapacityBytes, c.Device.Size())
		}
	case c.Media == MediaFile && c.Dir == "":
		return errors.New("a file pool needs a directory: set Dir")
	case c.Media == MediaRAM && c.CapacityBytes == 0:
		return errors.New("a RAM pool needs a size: set CapacityBytes")
	case c.Media == MediaDevice && !filepath.IsAbs(c.Path):
		return fmt.Errorf("a device pool needs the absolute path of a block device, such as /dev/disk/by-id/…: set Path, which is %q", c.Path)
	case c.Media == MediaDevice:
		return errNoDevicePools
	case c.Media != MediaDevice && (c.Path != "" || c.Force):
		return fmt.Errorf("only a pool of Media %q has Path and Force", MediaDevice)
	case c.Media != MediaFile && c.Media != MediaRAM && c.Media != MediaDevice:
		return fmt.Errorf("Media %q: use %q, %q or %q", c.Media, MediaFile, MediaDevice, MediaRAM)
	}
	if c.CapacityBytes > 0 {
		_, err := slotsFor(c.CapacityBytes)
		return err
	}
	return nil
}

// slotsFor returns the number of slots, with slot 0, in a pool of the given capacity.
func slotsFor(capacityBytes int64) (uint32, error) {
	n := capacityBytes / block.ChunkSize
	if n < 1 || n >= maxSlots {
		return 0, fmt.Errorf("pool capacity of %d bytes: use at least 256 KiB and less than 1 PiB", capacityBytes)
	}
	return uint32(n) + 1, nil
}

// Pool is one medium and the volumes on it. All methods may be called concurrently.
type Pool struct {
	dev      vfs.Dev
	meta     Metadata
	volatile bool
	sums     []atomic.Pointer[sumSlab] // by slot: the checksums of what lies there, guarded by the lock of the chunk that has it

	failure atomic.Pointer[error] // the first error of the medium: final

	// mu guards what follows. It is never held while reading or writing data; it is held across metadata transactions of
	// Create, Open and Delete, which data paths do not wait for except to take new slots.
	mu     sync.Mutex
	header poolHeader
	open   map[string]*Volume
	closed bool

	slotsMu     sync.Mutex // guards slots, pendingFree and promised; never held across I/O
	slots       *slots
	pendingFree int64 // slots that are taken only until a checkpoint records that they were freed
	promised    int64 // bytes, see Volume.Promise
}

// sumSlab holds the checksums of 1024 slots, in one piece that the garbage collector need not look into.
const slabSlots = 1024

type sumSlab [slabSlots]chunkSums

// OpenPool opens a pool, creating it if there is none. Errors: vfs.ErrLocked (another process has it), ErrVersion,
// *block.CorruptError (damaged metadata), and whatever the system says.
func OpenPool(cfg PoolConfig) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("pool configuration: %w", err)
	}
	p, err := openPool(cfg)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", cmp.Or(cfg.Dir, cfg.Path, string(cfg.Media)), err)
	}
	return p, nil
}

func openPool(cfg PoolConfig) (*Pool, error) {
	p := &Pool{dev: cfg.Device, meta: cfg.Metadata, open: map[string]*Volume{}}
	err := func() error {
		if p.meta == nil {
			if err := p.openMetadata(cfg); err != nil {
				return err
			}
		}
		if err := p.loadHeader(cfg); err != nil {
			return err
		}
		if p.dev == nil {
			if err := p.openDevice(cfg); err != nil {
				return err
			}
		}
		if v, ok := p.dev.(vfs.Volatile); ok {
			p.volatile = v.Volatile()
		}
		return p.load()
	}()
	if err != nil {
		return nil, errors.Join(err, p.closeMedia())
	}
	return p, nil
}

// errNoDevicePools: the metadata of a pool are a file of its own, for which there is no place on a device.
var errNoDevicePools = fmt.Errorf("%w: this version cannot keep a pool's metadata on a raw block device yet. Make a file system on it, and a pool of files there", errors.ErrUnsupported)

func (p *Pool) openMetadata(cfg PoolConfig) error {
	if cfg.Media == MediaRAM {
		p.meta = NewMemoryMetadata()
		return nil
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := vfs.SyncDir(filepath.Dir(filepath.Clean(cfg.Dir))); err != nil {
		return err
	}
	path := filepath.Join(cfg.Dir, metaFile)
	m, err := openBolt(path)
	if errors.Is(err, fs.ErrNotExist) {
		// Metadata come first, so a data file without them has lost them; starting anew would throw its data away.
		if _, err := os.Stat(filepath.Join(cfg.Dir, dataFile)); err == nil {
			return fmt.Errorf("%s is missing though %s is there: the pool's data cannot be read without it. Restore it, or move the directory away to start anew (the replicas of its LUNs are then rebuilt from their peers)", metaFile, dataFile)
		}
		if cfg.CapacityBytes == 0 {
			return errors.New("there is no pool here, and a new one needs a size: set CapacityBytes")
		}
		if err := createBolt(path, func(tx MetadataTx) error { return putNewHeader(tx, cfg.CapacityBytes) }); err != nil {
			return err
		}
		m, err = openBolt(path)
	}
	if err != nil {
		return err
	}
	p.meta = m
	return nil
}

func putNewHeader(tx MetadataTx, capacityBytes int64) error {
	if _, err := slotsFor(capacityBytes); err != nil {
		return err
	}
	h := poolHeader{capacityBytes: capacityBytes / block.ChunkSize * block.ChunkSize, nextVolume: 1}
	if _, err := rand.Read(h.uuid[:]); err != nil {
		return err
	}
	return tx.Put(poolKey, h.encode())
}

// loadHeader reads the pool's header, writing one if the store is new, and grows the pool if asked to.
func (p *Pool) loadHeader(cfg PoolConfig) error {
	var sealed []byte
	read := func(tx MetadataTx) error {
		sealed = bytes.Clone(tx.Get(poolKey))
		return nil
	}
	if err := p.meta.View(read); err != nil {
		return err
	}
	if sealed == nil {
		if err := p.meta.Update(func(tx MetadataTx) error { return putNewHeader(tx, cfg.CapacityBytes) }); err != nil {
			return err
		}
		if err := p.meta.View(read); err != nil {
			return err
		}
	}
	h, err := decodePoolHeader(sealed)
	if err != nil {
		return err
	}
	want := cfg.CapacityBytes / block.ChunkSize * block.ChunkSize
	switch {
	case want != 0 && want < h.capacityBytes:
		return fmt.Errorf("the pool has %d bytes and cannot shrink to %d: ask for no less", h.capacityBytes, want)
	case want > h.capacityBytes:
		h.capacityBytes = want
		if err := p.meta.Update(func(tx MetadataTx) error { return tx.Put(poolKey, h.encode()) }); err != nil {
			return err
		}
	}
	p.header = h
	return nil
}

func (p *Pool) openDevice(cfg PoolConfig) error {
	size := p.header.capacityBytes + block.ChunkSize
	if cfg.Media == MediaRAM {
		arena, err := vfs.NewArena(size)
		if err != nil {
			return err // not into p.dev: a nil *Arena there is not nil, and would be closed
		}
		p.dev = arena
		return nil
	}
	file, err := vfs.OpenFile(vfs.FileConfig{Path: filepath.Join(cfg.Dir, dataFile), SizeBytes: size, Preallocate: cfg.Preallocate})
	if err != nil {
		return err
	}
	p.dev = file
	return nil
}

// load checks that the medium belongs to the metadata and finds out which slots are taken.
func (p *Pool) load() error {
	count, err := slotsFor(p.header.capacityBytes)
	if err != nil {
		return err
	}
	if need := int64(count) * block.ChunkSize; p.dev.Size() < need {
		return fmt.Errorf("the medium has %d bytes, the pool needs %d", p.dev.Size(), need)
	}
	p.slots = newSlots(count)
	p.sums = make([]atomic.Pointer[sumSlab], (uint64(count)+slabSlots-1)/slabSlots)
	volumes := 0
	err = p.meta.View(func(tx MetadataTx) error {
		if err := tx.Scan([]byte{keyVolume}, func(_, _ []byte) error { volumes++; return nil }); err != nil {
			return err
		}
		return tx.Scan([]byte{keyMap}, func(key, value []byte) error {
			e, err := decodeMapEntry(key, value)
			if err != nil {
				return err
			}
			if e.slot != 0 && !p.slots.mark(e.slot) {
				return fmt.Errorf("slot %d of %d is beyond the end or in two places: %w", e.slot, count, damaged("map entry"))
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	return p.checkMedium(volumes)
}

// checkMedium reads the header of the medium, or writes it if the pool has no volume yet: it may have been cut off
// between creating the metadata and this.
func (p *Pool) checkMedium(volumes int) error {
	want := encodeMediumHeader(p.header.uuid)
	got := make([]byte, len(want))
	if err := p.dev.ReadAt(got, 0); err != nil {
		return fmt.Errorf("read the header of the medium: %w", err)
	}
	switch {
	case bytes.Equal(got, want):
		return nil
	case volumes == 0 && bytes.Count(got, []byte{0}) == len(got):
		if err := p.dev.WriteAt(want, 0); err != nil {
			return fmt.Errorf("write the header of the medium: %w", err)
		}
		return p.dev.Sync()
	case string(got[:8]) == mediumMagic && binary.LittleEndian.Uint32(got[8:]) != FormatVersion:
		return checkVersion("the medium", binary.LittleEndian.Uint32(got[8:]))
	}
	return errors.New("the medium does not belong to this pool's metadata, or its header is damaged: bring the two together that were created together")
}

// Failed returns nil, or the error that ended the pool; errors.Is(err, block.ErrFailed).
func (p *Pool) Failed() error {
	if f := p.failure.Load(); f != nil {
		return *f
	}
	return nil
}

// Close closes the open volumes, each with a last checkpoint, and the medium. It waits for calls under way. Closing a
// closed pool does nothing.
func (p *Pool) Close() error {
	p.mu.Lock()
	volumes := make([]*Volume, 0, len(p.open))
	for _, v := range p.open {
		volumes = append(volumes, v)
	}
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	for _, v := range volumes {
		err = errors.Join(err, v.Close())
	}
	// Open, Create and Delete hold mu and see closed; no data path is left.
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(err, p.closeMedia())
}

// forget makes room for opening the volume again.
func (p *Pool) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, id)
}

func (p *Pool) closeMedia() error {
	var err error
	if p.dev != nil {
		err = p.dev.Close()
	}
	if p.meta != nil {
		err = errors.Join(err, p.meta.Close())
	}
	return err
}

// usable is called with mu held.
func (p *Pool) usable() error {
	if p.closed {
		return block.ErrClosed
	}
	return p.Failed()
}

// fail ends the pool. It returns the error that everything returns from now on: the first.
func (p *Pool) fail(doing string, cause error) error {
	err := fmt.Errorf("%w: %s: %w", block.ErrFailed, doing, cause)
	p.failure.CompareAndSwap(nil, &err)
	return *p.failure.Load()
}

// errRefused marks an error with which a transaction's own function has ended it.
type errRefused struct{ error }

func (e errRefused) Unwrap() error { return e.error }

// update runs a metadata transaction. fn's own error comes back as it is; no space as block.ErrNoSpace; any other ends
// the pool.
func (p *Pool) update(fn func(MetadataTx) error) error {
	err := p.meta.Update(func(tx MetadataTx) error {
		if err := fn(tx); err != nil {
			return errRefused{err}
		}
		return nil
	})
	var refused errRefused
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return refused.error
	case errors.Is(err, vfs.ErrNoSpace):
		return fmt.Errorf("%w for metadata: %w", block.ErrNoSpace, err)
	}
	return p.fail("commit of metadata", err)
}
