// Package cutdisk is a file system in memory, mounted for real programs, that does to them what a power cut does: what was not synced is
// lost, or in part not.
//
// Every file and directory exists twice: as programs see it, and as it is on the disk. In between is what has been done and not
// synced, in order. fsync of a file puts its data on the disk; fsync of a directory what was done to names up to its last change there.
// At a cut any of the rest may have reached the disk too: of data each sector of 512 bytes by itself, in any order; of names all up to a
// moment, as a file system with a journal has it. That is less than file systems keep: ext4 writes the entry of a new file with the
// file's own fsync. A program that is content with this disk has left nothing to them.
//
// Break makes parts of it fail, as a disk does that is pulled. It is never full and does not rot: other tests do that.
package cutdisk

import (
	"math/rand/v2"
	"slices"
	"sync"
)

const (
	pageBytes   = 4096
	sectorBytes = 512
	// writebackBytes of a file not synced are what is kept: beyond it the older half goes to the disk, as the kernel's own writing does.
	writebackBytes = 32 << 20
)

// content is a file's bytes; what is in no page is zero.
type content struct {
	pages map[int64][]byte // by number; never changed in place once shared
	size  int64
}

func (c *content) clone() content {
	d := content{pages: make(map[int64][]byte, len(c.pages)), size: c.size}
	for n, p := range c.pages {
		d.pages[n] = p
	}
	return d
}

// write stores data, or zeros if it is nil, of n bytes; a file grows only by data.
func (c *content) write(off int64, data []byte, n int64) {
	if data != nil {
		n = int64(len(data))
		c.size = max(c.size, off+n)
	}
	for done := int64(0); done < n; {
		page, at := (off+done)/pageBytes, (off+done)%pageBytes
		step := min(pageBytes-at, n-done)
		if data == nil && step == pageBytes {
			delete(c.pages, page)
			done += step
			continue
		}
		fresh := make([]byte, pageBytes)
		copy(fresh, c.pages[page])
		if data == nil {
			clear(fresh[at : at+step])
		} else {
			copy(fresh[at:], data[done:done+step])
		}
		c.pages[page] = fresh
		done += step
	}
}

func (c *content) read(off int64, dst []byte) int {
	n := int(max(0, min(int64(len(dst)), c.size-off)))
	for done := 0; done < n; {
		page, at := (off+int64(done))/pageBytes, int((off+int64(done))%pageBytes)
		step := min(pageBytes-at, n-done)
		if p := c.pages[page]; p != nil {
			copy(dst[done:done+step], p[at:])
		} else {
			clear(dst[done : done+step])
		}
		done += step
	}
	return n
}

func (c *content) truncate(size int64) {
	if size < c.size {
		for n := range c.pages {
			if n*pageBytes >= size {
				delete(c.pages, n)
			}
		}
		if at := size % pageBytes; at > 0 {
			c.write(size, nil, pageBytes-at)
		}
	}
	c.size = size
}

// inode is a file or a directory.
type inode struct {
	number  uint64
	dir     bool
	seen    content // as programs see it
	stored  content // on the disk
	entries map[string]*inode
	kept    map[string]*inode // entries on the disk
	unsaved []change          // of data, in order
	bytes   int               // in unsaved
	broken  bool              // everything fails
}

// change is one write, hole or new size of a file.
type change struct {
	off  int64
	data []byte // nil: a hole of n bytes, or if n is -1 the size off
	n    int64
}

func (c change) to(f *content) {
	if c.n < 0 {
		f.truncate(c.off)
		return
	}
	f.write(c.off, c.data, c.n)
}

// naming is a change of directories: entries that are set, or removed where the inode is nil.
type naming struct {
	where []*inode
	names []string
	what  []*inode
}

func (n naming) keep() {
	for i, d := range n.where {
		if n.what[i] == nil {
			delete(d.kept, n.names[i])
		} else {
			d.kept[n.names[i]] = n.what[i]
		}
	}
}

// Disk is one such file system.
type Disk struct {
	mu      sync.Mutex
	root    *inode
	unsaved []naming
	next    uint64
	power   chan struct{} // closed while it is off
	off     bool
	synced  uint64 // how many syncs there were
}

// New returns an empty disk.
func New() *Disk {
	d := &Disk{power: make(chan struct{})}
	d.root = d.inode(true)
	return d
}

func (d *Disk) inode(dir bool) *inode {
	d.next++
	n := &inode{number: d.next, dir: dir}
	n.seen.pages, n.stored.pages = map[int64][]byte{}, map[int64][]byte{}
	if dir {
		n.entries, n.kept = map[string]*inode{}, map[string]*inode{}
	}
	return n
}

// Syncs returns how often something was synced.
func (d *Disk) Syncs() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.synced
}

// change makes a change of data. The caller holds mu.
func (d *Disk) change(f *inode, c change) {
	c.to(&f.seen)
	f.unsaved = append(f.unsaved, c)
	f.bytes += len(c.data)
	for f.bytes > writebackBytes {
		half := len(f.unsaved)/2 + 1
		f.save(half)
	}
}

// save puts the first n changes on the disk.
func (f *inode) save(n int) {
	for _, c := range f.unsaved[:n] {
		c.to(&f.stored)
		f.bytes -= len(c.data)
	}
	f.unsaved = append([]change(nil), f.unsaved[n:]...)
}

// name makes a change of names. The caller holds mu.
func (d *Disk) name(n naming) {
	for i, dir := range n.where {
		if n.what[i] == nil {
			delete(dir.entries, n.names[i])
		} else {
			dir.entries[n.names[i]] = n.what[i]
		}
	}
	d.unsaved = append(d.unsaved, n)
}

// sync is fsync. The caller holds mu.
func (d *Disk) sync(f *inode) {
	d.synced++
	if !f.dir {
		f.save(len(f.unsaved))
		return
	}
	upTo := 0
	for i, n := range d.unsaved {
		for _, dir := range n.where {
			if dir == f {
				upTo = i + 1
			}
		}
	}
	d.keep(upTo)
}

func (d *Disk) keep(n int) {
	for _, u := range d.unsaved[:n] {
		u.keep()
	}
	d.unsaved = append([]naming(nil), d.unsaved[n:]...)
}

// PowerOff stops the disk: nothing that is asked of it from now on happens or is answered, until the program that asks is gone.
func (d *Disk) PowerOff() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.off {
		d.off = true
		close(d.power)
	}
}

// Break makes everything fail, from now on, that is asked of files and directories of the root, and of what is in them. What the kernel has
// in its cache it goes on reading.
func (d *Disk) Break(names ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		if n := d.root.entries[name]; n != nil {
			n.breakAll()
		}
	}
}

func (f *inode) breakAll() {
	f.broken = true
	for _, e := range f.entries {
		e.breakAll()
	}
}

// Replace puts empty directories in the place of what is broken. It must not be mounted.
func (d *Disk) Replace() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, n := range d.root.entries {
		if n.broken {
			fresh := d.inode(true)
			d.root.entries[name], d.root.kept[name] = fresh, fresh
		}
	}
	d.unsaved = slices.DeleteFunc(d.unsaved, func(n naming) bool { // else they would come back
		broken := func(i *inode) bool { return i != nil && i.broken }
		return slices.ContainsFunc(n.where, broken) || slices.ContainsFunc(n.what, broken)
	})
}

// Loss says what a cut cost.
type Loss struct {
	Changes, Lost int // of data: not synced, and lost at least in part
	Names, Gone   int // of names: not synced, and lost
}

// PowerOn decides what of that which was not synced has reached the disk, and forgets the rest. It must not be mounted.
func (d *Disk) PowerOn(rng *rand.Rand) (l Loss) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.Names = len(d.unsaved)
	kept := rng.IntN(len(d.unsaved) + 1)
	l.Gone = l.Names - kept
	d.keep(kept)
	d.unsaved = nil
	all := map[*inode]bool{}
	d.visit(d.root, all)
	for f := range all {
		odds := []int{0, 30, 90, 100}[rng.IntN(4)] // in percent, for a sector
		for _, c := range f.unsaved {
			l.Changes++
			if !c.survive(&f.stored, odds, rng) {
				l.Lost++
			}
		}
		f.unsaved, f.bytes = nil, 0
		f.seen = f.stored.clone()
		f.entries = map[string]*inode{}
		for name, n := range f.kept {
			f.entries[name] = n
		}
	}
	d.off, d.power = false, make(chan struct{})
	return l
}

func (d *Disk) visit(n *inode, all map[*inode]bool) {
	if all[n] {
		return
	}
	all[n] = true
	for _, e := range n.kept {
		d.visit(e, all)
	}
}

// survive has some of a change reach the disk, and says whether all of it did.
func (c change) survive(f *content, odds int, rng *rand.Rand) bool {
	if c.data == nil {
		if rng.IntN(100) >= odds {
			return false
		}
		c.to(f)
		return true
	}
	whole := true
	for at := int64(0); at < int64(len(c.data)); {
		n := min(sectorBytes-(c.off+at)%sectorBytes, int64(len(c.data))-at)
		if rng.IntN(100) < odds {
			f.write(c.off+at, c.data[at:at+n], n)
		} else {
			whole = false
		}
		at += n
	}
	return whole
}
