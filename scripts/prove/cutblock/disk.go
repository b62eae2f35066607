// Package cutblock is a disk for a virtual machine, in memory and served over NBD, that does to the machine what a power cut does: what was
// not flushed is lost, or in part not.
//
// A write is in the disk's cache until a flush, or goes past it if it says so (FUA). At a cut each sector of 512 bytes has, by itself,
// what was flushed last or any of what was written to it since: writes are lost, torn and reordered as a disk may. What was flushed
// is there.
//
// Invariant: reads see the newest write. It does not fail, is never full and does not rot: other tests do that.
package cutblock

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

const (
	// SectorBytes is written whole or not at all.
	SectorBytes = 512
	// cacheBytes is what waits for a flush at most: beyond it the whole cache goes to the medium, as a disk's own writing does.
	cacheBytes = 32 << 20
)

// Disk is one such disk. Safe for concurrent use.
type Disk struct {
	size int64

	mu      sync.Mutex
	medium  map[int64][]byte   // by number of the sector; one that is not there is zero
	cache   map[int64][][]byte // written since the last flush, oldest first
	cached  int64              // bytes of it
	flushes uint64
	off     bool
	trap    chan struct{} // nil, or closed when the power goes with the next write
}

// Loss is what a cut did.
type Loss struct {
	Sectors int // that had been written and not flushed
	Lost    int // of those, how many do not have what was written last
}

func (l Loss) String() string {
	return fmt.Sprintf("%d of %d unflushed sectors", l.Lost, l.Sectors)
}

// New returns a disk of zeros; size is a multiple of SectorBytes.
func New(size int64) *Disk {
	return &Disk{size: size, medium: map[int64][]byte{}, cache: map[int64][][]byte{}}
}

// Flushes returns how often the disk was asked to flush.
func (d *Disk) Flushes() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

// read fills p from off on; both are multiples of SectorBytes. ok is false without power.
func (d *Disk) read(p []byte, off int64) (ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ; len(p) > 0; p, off = p[SectorBytes:], off+SectorBytes {
		n := off / SectorBytes
		from := d.medium[n]
		if versions := d.cache[n]; len(versions) > 0 {
			from = versions[len(versions)-1]
		}
		if from == nil {
			clear(p[:SectorBytes])
		} else {
			copy(p, from)
		}
	}
	return !d.off
}

// write takes p, which is the disk's from now on. through: it is on the medium when write returns.
func (d *Disk) write(p []byte, off int64, through bool) (ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return false
	}
	for ; len(p) > 0; p, off = p[SectorBytes:], off+SectorBytes {
		n, sector := off/SectorBytes, p[:SectorBytes:SectorBytes]
		if through {
			d.cached -= int64(len(d.cache[n])) * SectorBytes
			delete(d.cache, n)
			d.medium[n] = sector
		} else {
			d.cache[n] = append(d.cache[n], sector)
			d.cached += SectorBytes
		}
	}
	if d.trap != nil && !through {
		close(d.trap)
		d.trap, d.off = nil, true
		return false
	}
	if d.cached > cacheBytes {
		d.save()
	}
	return true
}

func (d *Disk) flush() (ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return false
	}
	d.flushes++
	d.save()
	return true
}

// save puts the cache on the medium. The caller holds mu.
func (d *Disk) save() {
	for n, versions := range d.cache {
		d.medium[n] = versions[len(versions)-1]
	}
	clear(d.cache)
	d.cached = 0
}

// PowerOff ends all answers at once. What is connected must be gone before PowerOn.
func (d *Disk) PowerOff() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
}

// PowerOffAtWrite is PowerOff as soon as something has been written that was not flushed; the channel is closed then.
func (d *Disk) PowerOffAtWrite() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trap = make(chan struct{})
	return d.trap
}

// PowerOn decides what of the cache has reached the medium.
func (d *Disk) PowerOn(rng *rand.Rand) (l Loss) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// Of some cuts nearly nothing is left, of others nearly all.
	kept := rng.Float64()
	for n, versions := range d.cache {
		l.Sectors++
		if last := versions[len(versions)-1]; rng.Float64() < kept {
			d.medium[n] = last
			continue
		}
		l.Lost++
		if older := rng.IntN(len(versions)); older > 0 {
			d.medium[n] = versions[older-1]
		}
	}
	clear(d.cache)
	d.cached = 0
	d.off, d.trap = false, nil
	return l
}
