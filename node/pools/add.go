package pools

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/node/catalog"
)

// Refusal says that something is not done, and what would be. Nothing has changed.
type Refusal struct {
	Missing  bool // there is no such pool
	Conflict bool // it contradicts what there is, rather than making no sense
	What     string
	Next     string
}

func (r *Refusal) Error() string { return r.What }

func invalid(next, format string, args ...any) error {
	return &Refusal{What: fmt.Sprintf(format, args...), Next: next}
}

func conflict(next, format string, args ...any) error {
	return &Refusal{Conflict: true, What: fmt.Sprintf(format, args...), Next: next}
}

var nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// MaxPools is how many pools a node may have.
const MaxPools = 64

// Add makes a pool, or takes one of this node's that was removed, and remembers it. A *Refusal changes nothing; any other error leaves
// nothing behind that hinders another attempt.
func (s *Set) Add(spec Spec) (*Pool, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	for _, p := range s.List() {
		if p.ID != "" && p.ID == spec.ID {
			return p, nil // asked twice
		}
	}
	p, err := s.check(spec)
	if err != nil {
		return nil, err
	}
	if err := s.prepare(p, spec.Force); err != nil {
		return nil, err
	}
	if err := s.make(p, spec.Force); err != nil {
		return nil, err
	}
	if err := writeList(s.cfg.Dir, append(s.List(), p)); err != nil {
		return nil, errors.Join(err, p.store.Close())
	}
	s.note(p, "pool added")
	s.mu.Lock()
	s.list[p.Name] = p
	s.mu.Unlock()
	return p, nil
}

// check looks at what can be told without the medium.
func (s *Set) check(spec Spec) (*Pool, error) {
	p := &Pool{
		Name: spec.Name, ID: cmp.Or(spec.ID, catalog.NewID()), Media: spec.Media, Path: filepath.Clean(spec.Path), Class: spec.Class, ClassWhy: "it was said when the pool was added",
		capacity: spec.CapacityBytes, sparse: spec.Sparse,
	}
	known := s.List()
	if len(known) >= MaxPools {
		return nil, conflict("Remove one first.", "this node has %d pools, the largest number supported", MaxPools)
	}
	switch {
	case spec.Media == blockstore.MediaRAM && spec.Path != "":
		return nil, invalid("Give a size only.", "a pool in memory has no path")
	case spec.Media == blockstore.MediaRAM:
		p.Path = ""
	case spec.Media != blockstore.MediaFile && spec.Media != blockstore.MediaDevice:
		return nil, invalid("Use file, device or ram.", "media %q", spec.Media)
	case !filepath.IsAbs(spec.Path):
		return nil, invalid("Give the absolute path on that node, such as /srv/pool2 or /dev/disk/by-id/….", "path %q is not absolute", spec.Path)
	}
	if p.Media != blockstore.MediaDevice && p.capacity < MinBytes {
		return nil, invalid("Give at least 64MiB.", "a capacity of %d bytes is too small for a pool", p.capacity)
	}
	if p.Class == "" {
		p.Class, p.ClassWhy = s.classFor(p)
	}
	if ram := p.Class == catalog.ClassRAM; ram != (p.Media == blockstore.MediaRAM) || !ram && p.Class != catalog.ClassSSD && p.Class != catalog.ClassHDD {
		return nil, invalid("Use ssd or hdd for files and devices; a pool in memory is of class ram.", "class %q of a pool on %s", p.Class, p.Media)
	}
	if p.Name == "" {
		p.Name = freeName(p.Class, known)
	}
	if !nameRule.MatchString(p.Name) {
		return nil, invalid("Use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end.", "%q cannot be the name of a pool", p.Name)
	}
	if p.Name == NameFile || p.Name == NameRAM {
		return nil, invalid("Choose another name.", "the name %q is kept for the pool of the configuration file", p.Name)
	}
	for _, other := range known {
		switch {
		case other.Name == p.Name:
			return nil, conflict("Choose another name.", "node %s has a pool %q already, on %s", s.cfg.Node, p.Name, other.Where())
		case p.Path != "" && samePlace(p.Path, other.Path):
			return nil, conflict("Give another path.", "%s is pool %q of this node already", p.Path, other.Name)
		}
	}
	return p, nil
}

// classFor is classOf for a directory that may not be there yet.
func (s *Set) classFor(p *Pool) (catalog.Class, string) {
	path := p.Path
	if _, err := os.Stat(path); p.Media == blockstore.MediaFile && errors.Is(err, os.ErrNotExist) {
		path = filepath.Dir(path)
	}
	return classOf(p.Media, path)
}

// freeName returns the first of ssd1, ssd2, … that is free.
func freeName(class catalog.Class, known []*Pool) string {
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s%d", class, n)
		if !slices.ContainsFunc(known, func(p *Pool) bool { return p.Name == name }) {
			return name
		}
	}
}

// samePlace says whether two paths are one directory or one device, whatever they are called.
func samePlace(a, b string) bool {
	if a == b {
		return true
	}
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	if err1 != nil || err2 != nil {
		return false
	}
	if os.SameFile(x, y) {
		return true
	}
	if x.Mode().Type() != os.ModeDevice || y.Mode().Type() != os.ModeDevice {
		return false
	}
	return x.Sys().(*syscall.Stat_t).Rdev == y.Sys().(*syscall.Stat_t).Rdev
}

// prepare makes sure that the medium may be taken, and clears what Force says may go.
func (s *Set) prepare(p *Pool, force bool) error {
	switch p.Media {
	case blockstore.MediaFile:
		return s.prepareDir(p, force)
	case blockstore.MediaDevice:
		return s.prepareDevice(p, force)
	case blockstore.MediaRAM:
	}
	return nil
}

const takeByForce = "Give another one; or, if what it holds may be lost, repeat with force (--force)."

func (s *Set) prepareDir(p *Pool, force bool) error {
	info, err := os.Stat(p.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return invalid("Check the path and the permissions.", "%v", err)
	}
	if !info.IsDir() {
		return invalid("Give a directory; a block device is given with --device.", "%s is not a directory", p.Path)
	}
	entries, err := os.ReadDir(p.Path)
	if err != nil {
		return invalid("Check the path and the permissions.", "%v", err)
	}
	m, err := readMarker(p.Path)
	if err != nil {
		return conflict("Repair or remove that file.", "%v", err)
	}
	has, err := blockstore.HasPool(p.Path)
	if err != nil {
		return err
	}
	switch {
	case m != nil && m.Cluster == s.cfg.Cluster && m.Node == s.cfg.Node:
		return nil // a pool of this node's that was removed: its way back
	case m != nil && !force:
		return conflict(takeByForce, "%s holds pool %q of node %q of cluster %q", p.Path, m.Name, m.Node, m.Cluster)
	case m == nil && has && !force:
		return conflict(takeByForce, "%s holds a pool of Sanctuary that does not say whose it is", p.Path)
	case m == nil && !has:
		for _, e := range entries {
			if e.Name() != "lost+found" {
				return conflict("Give a directory that is empty or not there yet.", "%s is not empty: there is %s in it", p.Path, e.Name())
			}
		}
		return nil
	}
	err = blockstore.ErasePool(blockstore.PoolConfig{Media: blockstore.MediaFile, Dir: p.Path})
	if errors.Is(err, vfs.ErrLocked) {
		return conflict("Stop the process that has it.", "the pool in %s is open in another process", p.Path)
	}
	if err != nil && !errors.Is(err, blockstore.ErrNoPool) {
		return err
	}
	return nil
}

func (s *Set) prepareDevice(p *Pool, force bool) error {
	size, err := claim(p.Path)
	if err != nil {
		return err
	}
	if size < MinBytes+block.ChunkSize {
		return invalid("Give a larger one: at least 65MiB.", "%s has %d bytes and is too small for a pool", p.Path, size)
	}
	if p.capacity != 0 {
		return invalid("Leave the capacity out.", "a device is used as a whole")
	}
	found, err := vfs.Probe(p.Path)
	if err != nil {
		return err
	}
	uuid, ours := found.Pool()
	switch {
	case len(found) == 0 || force && !ours:
		return nil
	case ours && force:
		if err := p.config().Validate(); err != nil { // nothing is erased for a pool that cannot be made
			return explain(p, err)
		}
		return blockstore.ErasePool(p.config())
	case ours:
		return conflict(takeByForce, "%s holds a pool of Sanctuary already (UUID %s): of this node from before it was removed, or of another node or cluster", p.Path, uuid)
	}
	return conflict(takeByForce, "%v", &vfs.ForeignError{Path: p.Path, Found: found})
}

// claim finds out whether the device can be had, and how large it is.
func claim(path string) (size int64, err error) {
	d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: path})
	switch {
	case errors.Is(err, vfs.ErrLocked):
		return 0, conflict("See lsblk, and take it out of use first; what is in use is not taken by force either.", "%v", err)
	case errors.Is(err, vfs.ErrNotDevice):
		return 0, invalid("Give a block device, such as /dev/disk/by-id/…; a directory is given with --file.", "%v", err)
	case err != nil:
		return 0, invalid("Check the path, the permissions of the node's user, and the device.", "%v", err)
	}
	return d.Size(), d.Close()
}

// make makes the pool on a medium that may be taken, or opens the one of this node's that is there.
func (s *Set) make(p *Pool, force bool) error {
	if p.Media == blockstore.MediaFile {
		return s.makeFiles(p)
	}
	cfg := p.config()
	cfg.Force = force && p.Media == blockstore.MediaDevice
	store, err := blockstore.OpenPool(cfg)
	if err != nil {
		return explain(p, err)
	}
	if p.Media == blockstore.MediaDevice {
		found, err := vfs.Probe(p.Path)
		uuid, ours := found.Pool()
		if err == nil && !ours {
			err = fmt.Errorf("%s does not show the pool that was just made on it", p.Path)
		}
		if err != nil {
			return errors.Join(err, store.Close())
		}
		p.medium = uuid
	}
	p.store = store
	return nil
}

// makeFiles is make for a directory. What it has made goes again if it does not succeed.
func (s *Set) makeFiles(p *Pool) error {
	err := os.Mkdir(p.Path, 0o700)
	madeDir := err == nil
	if err != nil && !errors.Is(err, os.ErrExist) {
		return invalid("Make the directory it is to be in, or give another path.", "%v", err)
	}
	had, err := blockstore.HasPool(p.Path)
	if err != nil {
		return err
	}
	// The marker first: a directory that holds a pool says whose it is.
	if err = errors.Join(vfs.SyncDir(filepath.Dir(p.Path)), s.writeMarker(p)); err == nil {
		cfg := p.config()
		cfg.Insist = cfg.Preallocate
		p.store, err = blockstore.OpenPool(cfg)
	}
	switch {
	case err == nil:
		return nil
	case had && (errors.Is(err, vfs.ErrNoSpace) || errors.Is(err, errors.ErrUnsupported)): // it is as it was
		return explain(p, err)
	case had:
		return conflict("Correct that, or remove that pool's files.", "the pool in %s cannot be taken back: %v", p.Path, err)
	}
	reason := explain(p, err)
	if err := erased(p); err != nil {
		return errors.Join(reason, err)
	}
	if madeDir {
		return errors.Join(reason, os.Remove(p.Path))
	}
	return reason
}

func explain(p *Pool, err error) error {
	switch {
	case errors.Is(err, vfs.ErrNoSpace):
		return conflict("Ask for less, make room, or take space only as it is needed (--sparse).", "the file system of %s has no room for %d bytes: %v", p.Path, p.capacity, err)
	case errors.Is(err, vfs.ErrLocked):
		return conflict("Stop the process that has it.", "%s is open in another process: %v", p.Path, err)
	case errors.Is(err, syscall.EFBIG):
		return invalid("Ask for less (ext4 has files of 16TiB at most, of which 1.7 % are metadata), or use XFS or a block device.", "the file system of %s cannot have a file for %d bytes: %v", p.Path, p.capacity, err)
	case errors.Is(err, errors.ErrUnsupported) && p.Media == blockstore.MediaFile:
		return conflict("Take space only as it is needed (--sparse), or use a file system that can reserve it, such as XFS or ext4.",
			"the file system of %s cannot reserve space: %v", p.Path, err)
	case errors.Is(err, errors.ErrUnsupported):
		return invalid("Use a pool of files.", "%v", err)
	}
	return err
}

// erased deletes a pool of files and its marker, and leaves whatever else is there.
func erased(p *Pool) error {
	err := blockstore.ErasePool(p.config())
	if errors.Is(err, blockstore.ErrNoPool) {
		err = nil
	}
	if p.Media != blockstore.MediaFile || err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(p.Path, markerFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return vfs.SyncDir(p.Path)
}
