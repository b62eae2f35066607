// Package crashdev is a device for tests that does to its owner what disks and power cuts do.
//
// Invariant: what was synced survives, everything else is at the mercy of a seed: each unsynced write is kept, lost or
// torn at 512-byte sectors, and unsynced writes are reordered, so an older one may end up over a newer one. It may do no
// more than that by itself; flipped bits and I/O errors are asked for by the test. The same seed does the same damage.
//
// It is not a model of speed, and does not itself decide when to crash: a Power, shared by all that loses power together,
// does.
package crashdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"

	"sanctuary/blockstore/vfs"
)

// ErrPowerLost is what everything returns once the power is gone.
var ErrPowerLost = errors.New("power lost")

// Kind says what a device is asked to do.
type Kind uint8

// The operations a hook may fail.
const (
	Read Kind = iota
	Write
	Sync
	Discard
	Allocate
)

func (k Kind) String() string {
	return [...]string{"read", "write", "sync", "discard", "allocate"}[k]
}

// Power is shared by the devices of one machine. Each event that changes a medium costs one unit; the event that finds
// none left is the one during which the power fails.
type Power struct {
	mu    sync.Mutex
	left  int64
	spent int64
	lost  bool
}

// NewPower returns power for the given number of events; a negative number is endless.
func NewPower(events int64) *Power { return &Power{left: events} }

// Spend returns ErrPowerLost when the power fails during this event (first is true then, and only then) or has failed.
func (p *Power) Spend() (first bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.lost:
		return false, ErrPowerLost
	case p.left == 0:
		p.lost = true
		return true, ErrPowerLost
	}
	p.left--
	p.spent++
	return false, nil
}

// Cut ends the power now, between two events.
func (p *Power) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = true
}

// Lost says whether the power is gone.
func (p *Power) Lost() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// Spent returns the number of events so far.
func (p *Power) Spent() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spent
}

const pageSize = 4096

// pages is the contents of a device. What has the length of a page and was written whole is kept as it came, and copies share
// what they have in common: thousands of crashes of the same few megabytes would otherwise be spent on copying them.
type pages map[int64]page

type page struct {
	data []byte // pageSize bytes
	own  bool   // nobody else has data: it may be changed
}

// pending is a write that was not synced. data is never changed.
type pending struct {
	off  int64
	data []byte
}

// Dev is a vfs.Dev in memory. All methods are safe for concurrent use.
type Dev struct {
	mu      sync.Mutex
	size    int64
	stable  pages // what was synced
	current pages // what a read sees: stable and every pending write
	pending []pending
	syncs   int
	power   *Power
	hook    func(k Kind, off, n int64) error
	rnd     *rand.Rand
	closed  bool
	opened  bool // by Folder.Open
}

var (
	_ vfs.Dev       = (*Dev)(nil)
	_ vfs.Allocator = (*Dev)(nil)
)

// New returns a device of the given size, all zeros.
func New(sizeBytes int64, power *Power) *Dev {
	return &Dev{
		size: sizeBytes, stable: pages{}, current: pages{}, power: power,
		rnd: rand.New(rand.NewPCG(1, uint64(sizeBytes))),
	}
}

// SetHook makes every operation ask f first and fail with the error it returns. A failing Sync loses what it should have
// made durable: later reads still see it and a later Sync succeeds, but a crash forgets it, as Linux does. A failing
// write leaves any of its sectors changed. f may wait for others that use the device, and may use it itself.
func (d *Dev) SetHook(f func(k Kind, off, n int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = f
}

// ask returns the error with which an operation fails. It is not called with mu held, and injected is the hook's.
func (d *Dev) ask(k Kind, off, n int64) (injected bool, err error) {
	d.mu.Lock()
	closed, hook := d.closed, d.hook
	d.mu.Unlock()
	if closed {
		return false, vfs.ErrClosed
	}
	if err := vfs.CheckRange(off, n, d.size); err != nil {
		return false, err
	}
	if hook != nil {
		if err := hook(k, off, n); err != nil {
			return true, fmt.Errorf("%v of %d bytes at %d: %w", k, n, off, err)
		}
	}
	return false, nil
}

// ReadAt implements vfs.Dev.
func (d *Dev) ReadAt(p []byte, off int64) error {
	if _, err := d.ask(Read, off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.power.Lost() {
		return ErrPowerLost
	}
	d.current.read(p, off)
	return nil
}

// WriteAt implements vfs.Dev.
func (d *Dev) WriteAt(p []byte, off int64) error {
	injected, err := d.ask(Write, off, int64(len(p)))
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		if injected {
			d.tear(pending{off: off, data: p}, d.current)
		}
		return err
	}
	first, err := d.power.Spend()
	if err != nil && !first {
		return err
	}
	w := pending{off: off, data: append([]byte(nil), p...)}
	d.pending = append(d.pending, w)
	d.current.write(w.data, off)
	return err
}

// Sync implements vfs.Dev.
func (d *Dev) Sync() error {
	_, err := d.ask(Sync, 0, 0)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.pending = nil
		return err
	}
	if _, err := d.power.Spend(); err != nil {
		return err
	}
	for _, w := range d.pending {
		d.stable.write(w.data, w.off)
	}
	d.pending = nil
	d.syncs++
	return nil
}

// Discard implements vfs.Dev. The range reads as noise afterwards, because no one may rely on anything better.
func (d *Dev) Discard(off, n int64) error {
	if _, err := d.ask(Discard, off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	first, err := d.power.Spend()
	if err != nil && !first {
		return err
	}
	for n > 0 {
		part := noise()[d.rnd.IntN(noiseBytes):]
		part = part[:min(n, int64(len(part)))]
		d.pending = append(d.pending, pending{off: off, data: part})
		d.current.write(part, off)
		off, n = off+int64(len(part)), n-int64(len(part))
	}
	return err
}

// Allocate implements vfs.Allocator; only a hook makes it fail.
func (d *Dev) Allocate(off, n int64) error {
	if _, err := d.ask(Allocate, off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.power.Lost() {
		return ErrPowerLost
	}
	return nil
}

// Size implements vfs.Dev.
func (d *Dev) Size() int64 { return d.size }

// SectorSize implements vfs.Dev.
func (d *Dev) SectorSize() int { return vfs.SectorSize }

// Close implements vfs.Dev. The contents stay for CloneForCrash.
func (d *Dev) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

// Syncs returns how often Sync has succeeded.
func (d *Dev) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// FlipBit inverts one bit of the stored byte at off, as rot does.
func (d *Dev) FlipBit(off int64, bit uint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range []pages{d.stable, d.current} {
		var b [1]byte
		p.read(b[:], off)
		b[0] ^= 1 << (bit % 8)
		p.write(b[:], off)
	}
}

// CloneForCrash returns the device as a machine might find it after losing power now. The original is not changed.
func (d *Dev) CloneForCrash(seed uint64, power *Power) *Dev {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(d.size, power)
	c.rnd = rand.New(rand.NewPCG(seed, 2))
	c.stable = d.stable.clone()
	order := c.rnd.Perm(len(d.pending))
	// Half of the seeds keep the order, so that the plain prefix-like crashes are seen as often as the wild ones.
	if seed%2 == 0 {
		for i := range order {
			order[i] = i
		}
	}
	for _, i := range order {
		switch w := d.pending[i]; c.rnd.IntN(3) {
		case 0: // lost
		case 1:
			c.stable.write(w.data, w.off)
		default:
			c.tear(w, c.stable)
		}
	}
	c.current = c.stable.clone()
	return c
}

// Clone returns the device as it is, with nothing lost: a process that was killed, not a machine.
func (d *Dev) Clone(power *Power) *Dev {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(d.size, power)
	c.stable, c.current, c.pending = d.stable.clone(), d.current.clone(), append([]pending(nil), d.pending...)
	return c
}

// tear writes some sectors. They are copied: w.data need not stay as it is.
func (d *Dev) tear(w pending, to pages) {
	for at := int64(0); at < int64(len(w.data)); {
		next := min((w.off+at)/vfs.SectorSize*vfs.SectorSize+vfs.SectorSize-w.off, int64(len(w.data)))
		if d.rnd.IntN(2) == 0 {
			to.write(w.data[at:next], w.off+at)
		}
		at = next
	}
}

// clone returns the same contents; neither changes with the other from then on.
func (p pages) clone() pages {
	for at, page := range p {
		if page.own {
			page.own = false
			p[at] = page
		}
	}
	return maps.Clone(p)
}

func (p pages) read(dst []byte, off int64) {
	for len(dst) > 0 {
		within := off % pageSize
		n := min(int64(len(dst)), pageSize-within)
		if page, ok := p[off/pageSize]; ok {
			copy(dst[:n], page.data[within:])
		} else {
			clear(dst[:n])
		}
		dst, off = dst[n:], off+n
	}
}

// write changes the contents. src is never changed afterwards, by anybody.
func (p pages) write(src []byte, off int64) {
	for len(src) > 0 {
		at, within := off/pageSize, off%pageSize
		if within == 0 && len(src) >= pageSize {
			p[at] = page{data: src[:pageSize:pageSize]}
			src, off = src[pageSize:], off+pageSize
			continue
		}
		was := p[at]
		if !was.own {
			fresh := make([]byte, pageSize)
			copy(fresh, was.data)
			was = page{data: fresh, own: true}
			p[at] = was
		}
		n := copy(was.data[within:], src)
		src, off = src[n:], off+int64(n)
	}
}

// noise is what Discard leaves behind.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 0, 2*noiseBytes)
	for rnd := rand.New(rand.NewPCG(3, 5)); len(b) < cap(b); {
		b = binary.LittleEndian.AppendUint64(b, rnd.Uint64())
	}
	return b
})

const noiseBytes = 256 << 10
