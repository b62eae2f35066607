package blockstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

// Media says what a pool lies on.
type Media string

const (
	// MediaFile is a directory with a data file.
	MediaFile Media = "file"
	// MediaDevice is a raw block device.
	MediaDevice Media = "device"
	// MediaRAM is memory: nothing is left of it when the process ends.
	MediaRAM Media = "ram"
)

// dataFile is the file of a pool in its directory.
const dataFile = "data"

// PoolConfig says what to open, and how to make it if it is not there.
type PoolConfig struct {
	Media Media
	// Dir is the pool's directory (MediaFile only); it is created if need be.
	Dir string
	// Path is the block device (MediaDevice only). A device that holds a pool is opened as that pool. One that looks empty
	// becomes a pool; one that holds anything else is refused with a *vfs.ForeignError, unless Force is set: then what it holds is lost.
	Path  string
	Force bool
	// CapacityBytes is how much data the pool may hold, from 256 KiB to 1 PiB, rounded down to chunks of 256 KiB. A pool
	// that exists grows to it and cannot shrink; 0 leaves it as it is. Its metadata come on top: about 1.7 %. For a device, 0
	// is as much as there is room for.
	CapacityBytes int64
	// Preallocate reserves the whole capacity on the file system at once (MediaFile only). Insist with it is vfs.FileConfig's: for a pool that is
	// made.
	Preallocate, Insist bool

	// Device replaces what Media would open. The pool closes it. It must have MediumBytes(CapacityBytes).
	Device vfs.Dev
}

// Validate returns an error that names the field and the way out.
func (c PoolConfig) Validate() error {
	switch {
	case c.CapacityBytes < 0:
		return fmt.Errorf("CapacityBytes %d: use a positive size", c.CapacityBytes)
	case c.Device != nil:
	case c.Media == MediaFile && c.Dir == "":
		return errors.New("a file pool needs a directory: set Dir")
	case c.Media == MediaDevice && !filepath.IsAbs(c.Path):
		return fmt.Errorf("path %q: a device pool needs the absolute path of a block device, such as /dev/disk/by-id/…: set Path", c.Path)
	case c.Media != MediaDevice && (c.Path != "" || c.Force):
		return fmt.Errorf("only a pool of Media %q has Path and Force", MediaDevice)
	case c.Media == MediaRAM && c.CapacityBytes == 0:
		return errors.New("a RAM pool needs a size: set CapacityBytes")
	case c.Media != MediaFile && c.Media != MediaDevice && c.Media != MediaRAM:
		return fmt.Errorf("Media %q: use %q, %q or %q", c.Media, MediaFile, MediaDevice, MediaRAM)
	}
	if c.CapacityBytes > 0 {
		_, err := slotsFor(c.CapacityBytes)
		return err
	}
	return nil
}

// slotsFor returns the number of data slots in a pool of the given capacity.
func slotsFor(capacityBytes int64) (uint32, error) {
	n := capacityBytes / block.ChunkSize
	if n < 1 || n >= maxSlots {
		return 0, fmt.Errorf("pool capacity of %d bytes: use at least 256 KiB and less than 1 PiB", capacityBytes)
	}
	return uint32(n), nil
}

// Pool is one medium and the volumes on it. All methods may be called concurrently.
type Pool struct {
	dev      vfs.Dev
	volatile bool
	layout   layout
	sums     sums
	pages    *pageStore // nil if volatile

	failure atomic.Pointer[error] // the first error of the medium: final
	rotted  int                   // see Rotted; not changed once the pool is open

	// mu guards what follows. It is never held while reading or writing data; it is held across Create, Open, Clone and the step by
	// which Delete has happened, which data paths do not wait for.
	mu      sync.Mutex
	volumes map[string]*Volume // those that have a name
	buried  map[uint32]*Volume // deleted, and kept for their clones
	broken  map[string]error   // volumes whose root cannot be read, by name or number
	open    map[string]bool
	closed  bool

	deletions sync.WaitGroup // those that give back what a volume had; none begins once closed is set

	holdsMu sync.Mutex // guards holds; taken last
	holds   map[hold]int

	commitMu  sync.Mutex // one change of the superblock at a time; guards what follows
	catalogue catalogueState

	slotsMu     sync.Mutex // guards what follows; never held across I/O
	slots       *slots
	pendingFree int64 // slots that are taken only until a checkpoint records that they were freed
	promised    int64 // bytes, see Volume.Promise
	// promisedPages is metadata besides a page for each chunk of promised, see Volume.PromiseMetadata.
	promisedPages int64
	unrecorded    int // what was lost of maps and is not durably so: until then no slot is given away (unread.go)
}

// hold is a snapshot that clones need.
type hold struct{ volume, epoch uint32 }

// held says whether a snapshot is needed by clones.
func (p *Pool) held(volume, epoch uint32) bool {
	p.holdsMu.Lock()
	defer p.holdsMu.Unlock()
	return p.holds[hold{volume, epoch}] > 0
}

// addHold changes the number of clones of a snapshot, and returns what it is then.
func (p *Pool) addHold(h hold, n int) int {
	p.holdsMu.Lock()
	defer p.holdsMu.Unlock()
	if p.holds[h] += n; p.holds[h] == 0 {
		delete(p.holds, h)
	}
	return p.holds[h]
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
	var volumes []*Volume
	for id := range p.open {
		volumes = append(volumes, p.volumes[id])
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
	p.deletions.Wait()
	// Open, Create and Delete hold mu and see closed; no data path is left.
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(err, p.dev.Close())
}

// closedVolume makes a volume ready to be opened again.
func (p *Pool) closedVolume(v *Volume) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, v.id)
	p.volumes[v.id] = v.successor()
}

// usable is called with mu held.
func (p *Pool) usable() error {
	if p.closed {
		return block.ErrClosed
	}
	return p.Failed()
}

// Rotted returns how much of what there are two of (superblock, catalogue, the volumes' roots), or of the header, was damaged when the pool was
// opened, though a power cut does not explain it: the disk has changed what was written. Nothing was lost by it, and there are two again since, of a
// root after the volume's next checkpoint. What rots while the pool is open is for CheckMap to find.
func (p *Pool) Rotted() int { return p.rotted }

// fail ends the pool. It returns the error that everything returns from now on: the first.
func (p *Pool) fail(doing string, cause error) error {
	if errors.Is(cause, block.ErrFailed) {
		return cause
	}
	err := fmt.Errorf("%w: %s: %w", block.ErrFailed, doing, cause)
	p.failure.CompareAndSwap(nil, &err)
	return *p.failure.Load()
}
