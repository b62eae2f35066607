package blockstore

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

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
	dev, err := openMedium(cfg)
	if err != nil {
		return nil, err
	}
	p := newPool(dev)
	if err := p.start(cfg); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return p, nil
}

func newPool(dev vfs.Dev) *Pool {
	return &Pool{
		dev: dev, volumes: map[string]*Volume{}, buried: map[uint32]*Volume{}, broken: map[string]error{}, open: map[string]bool{}, holds: map[hold]int{},
	}
}

// useLayout prepares the pool for what a superblock says.
func (p *Pool) useLayout(s superblock) {
	p.layout = newLayout(s.regions)
	p.slots = newSlots(p.layout.slots)
	p.pages = newPageStore(p.dev, &p.layout)
	p.sums.cached = newCachedSums(p.dev, &p.layout)
	p.catalogue.super = s
}

// openMedium opens what the pool lies on, as large as the configuration wants it.
func openMedium(cfg PoolConfig) (vfs.Dev, error) {
	switch {
	case cfg.Device != nil:
		return cfg.Device, nil
	case cfg.Media == MediaRAM:
		return vfs.NewArena(ramMediumBytes(cfg.CapacityBytes))
	case cfg.Media == MediaDevice:
		return openDevice(cfg)
	}
	return openFile(cfg)
}

// openDevice takes a block device that holds a pool, or nothing. What it held is wiped first if that was asked for, so that it is
// not taken for what it was if this is cut off.
func openDevice(cfg PoolConfig) (vfs.Dev, error) {
	found, err := vfs.Probe(cfg.Path)
	if err != nil {
		return nil, err
	}
	_, ours := found.Pool()
	if len(found) > 0 && !ours && !cfg.Force {
		return nil, &vfs.ForeignError{Path: cfg.Path, Found: found}
	}
	dev, err := vfs.OpenDevice(vfs.DeviceConfig{Path: cfg.Path})
	if err != nil {
		return nil, err
	}
	if len(found) > 0 && !ours {
		if err := wipe(dev); err != nil {
			return nil, errors.Join(fmt.Errorf("wipe %s: %w", cfg.Path, err), dev.Close())
		}
	}
	return dev, nil
}

// wipeBytes is how much of both ends of a device is overwritten: signatures lie there.
const wipeBytes = 2 << 20

// wipe overwrites both ends of a medium with zeros.
func wipe(dev vfs.Dev) error {
	zeros := make([]byte, min(wipeBytes, dev.Size()))
	for _, off := range []int64{dev.Size() - int64(len(zeros)), 0} {
		if err := dev.WriteAt(zeros, off); err != nil {
			return err
		}
	}
	return dev.Sync()
}

// openFile opens the file of a pool in its directory, and upgrades it if need be.
func openFile(cfg PoolConfig) (vfs.Dev, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := vfs.SyncDir(filepath.Dir(filepath.Clean(cfg.Dir))); err != nil {
		return nil, err
	}
	if err := upgradeFromV1(cfg.Dir); err != nil {
		return nil, err
	}
	path := filepath.Join(cfg.Dir, dataFile)
	size := int64(0)
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		if size, err = wantedFileBytes(path, cfg.CapacityBytes); err != nil {
			return nil, err
		}
	} else if cfg.CapacityBytes == 0 {
		return nil, errors.New("there is no pool here, and a new one needs a size: set CapacityBytes")
	} else {
		size = MediumBytes(cfg.CapacityBytes)
	}
	return vfs.OpenFile(vfs.FileConfig{Path: path, SizeBytes: size, Preallocate: cfg.Preallocate, Insist: cfg.Insist})
}

// wantedFileBytes returns how long the file of a pool must be for the capacity wanted, which may be more than it has.
func wantedFileBytes(path string, capacityBytes int64) (int64, error) {
	f, err := vfs.OpenFile(vfs.FileConfig{Path: path})
	if err != nil {
		return 0, err
	}
	s, found, err := readSuperblock(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	if !found {
		return MediumBytes(capacityBytes), nil // it was cut off while it was made, or start refuses it
	}
	regions, err := grownRegions(s, capacityBytes)
	if err != nil {
		return 0, err
	}
	return mediumEnd(regions), nil
}

func mediumEnd(regions []region) (end int64) {
	for _, r := range regions {
		end = max(end, r.end())
	}
	return end
}

// grownRegions returns the regions of a pool for the capacity wanted: those it has, and one more for what is missing.
func grownRegions(s superblock, capacityBytes int64) ([]region, error) {
	want := capacityBytes / block.ChunkSize * block.ChunkSize
	switch {
	case want == 0 || want == s.capacityBytes:
		return s.regions, nil
	case want < s.capacityBytes:
		return nil, fmt.Errorf("the pool has %d bytes and cannot shrink to %d: ask for no less", s.capacityBytes, want)
	case len(s.regions) == maxRegions:
		return nil, fmt.Errorf("the pool has been made larger %d times and cannot grow any more", maxRegions-1)
	}
	end := (mediumEnd(s.regions) + block.ChunkSize - 1) / block.ChunkSize * block.ChunkSize
	return append(s.regions[:len(s.regions):len(s.regions)], planRegion(end, uint32((want-s.capacityBytes)/block.ChunkSize))), nil
}

// start reads what is on the medium, or makes a pool of it.
func (p *Pool) start(cfg PoolConfig) error {
	if v, ok := p.dev.(vfs.Volatile); ok && v.Volatile() {
		p.volatile = true
		slots, err := slotsFor(cfg.CapacityBytes)
		if err != nil {
			return err
		}
		p.layout = newLayout([]region{{data: 0, slots: slots}})
		p.slots = newSlots(slots)
		p.sums.resident = newResidentSums(slots)
		p.catalogue.super.nextVolume = 1
		if need := int64(slots) * block.ChunkSize; p.dev.Size() < need {
			return fmt.Errorf("the medium has %d bytes, the pool needs %d", p.dev.Size(), need)
		}
		return nil
	}
	// What a process that was killed has left in the system's cache is read as if it were durable: make it so before anything
	// that only it has freed is overwritten. And what it could not make durable is not believed (vfs.Cached).
	if err := p.dev.Sync(); err != nil {
		return fmt.Errorf("sync of the medium: %w", err)
	}
	if err := vfs.Forget(p.dev, 0, min(superblockBytes, p.dev.Size())); err != nil {
		return fmt.Errorf("read the medium itself: %w", err)
	}
	s, found, err := readSuperblock(p.dev)
	if err != nil {
		return err
	}
	if !found {
		if s, err = p.format(cfg); err != nil {
			return err
		}
	}
	regions, err := grownRegions(s, cfg.CapacityBytes)
	if err != nil {
		return err
	}
	grew := len(regions) > len(s.regions)
	s.regions = regions
	s.capacityBytes = 0
	for _, r := range regions {
		s.capacityBytes += int64(r.slots) * block.ChunkSize
	}
	p.useLayout(s)
	if err := p.layout.check(p.dev.Size()); err != nil {
		return err
	}
	for _, r := range regions { // data are as their checksums say
		err := vfs.Forget(p.dev, r.sums, int64(r.slots)*sumsPerSlotBytes)
		if err = errors.Join(err, vfs.Forget(p.dev, r.pages, int64(r.pageCount)*pageBytes)); err != nil {
			return fmt.Errorf("read the medium itself: %w", err)
		}
	}
	if err := p.load(); err != nil {
		return err
	}
	var c MapCheck
	if err := p.checkRoots(&c); err != nil {
		return err
	}
	p.rotted += c.Damaged - c.cutOff
	if !grew && c.Damaged == 0 && p.catalogue.unread == 0 {
		return nil
	}
	err = p.publish(p.pages.newWriter(p.nextGeneration()), func(*catalogueState) error { return nil })
	if !grew && errors.Is(err, block.ErrNoSpace) {
		return nil // what is left is enough; the next commit makes two of it
	}
	return err
}

// ramMediumBytes is the size of memory for a RAM pool: it has no metadata.
func ramMediumBytes(capacityBytes int64) int64 {
	return capacityBytes / block.ChunkSize * block.ChunkSize
}

// rottenHeaderBytes is how many bytes of a header have to differ for it to count as that of something else.
const rottenHeaderBytes = 5

// readSuperblock returns the newest superblock of a medium. found is false if there is no pool on it, nor anything else.
func readSuperblock(dev vfs.Dev) (best superblock, found bool, err error) {
	if dev.Size() < superblockBytes {
		return best, false, fmt.Errorf("a medium of %d bytes has no room for a pool", dev.Size())
	}
	header := make([]byte, block.SectorSize)
	if err := dev.ReadAt(header, 0); err != nil {
		return best, false, fmt.Errorf("read the header of the medium: %w", err)
	}
	var newer error
	b := make([]byte, pageBytes)
	for _, copies := range superblockOffsets {
		for _, off := range copies {
			if err := dev.ReadAt(b, off); err != nil {
				return best, false, fmt.Errorf("read the superblock at %d: %w", off, err)
			}
			s, err := decodeSuperblock(b)
			switch {
			case errors.Is(err, ErrVersion):
				newer = err
			case err == nil && s.generation > best.generation:
				best, found = s, true
			}
		}
	}
	found, err = judgeMedium(header, best, found, newer)
	return best, found, err
}

// judgeMedium says whether there is a pool on a medium, by its header, the newest superblock, if any was found, and ErrVersion if there is one
// of a newer version.
func judgeMedium(header []byte, best superblock, found bool, newer error) (bool, error) {
	different := 0
	for i, want := range encodeMediumHeader(best.uuid) {
		if header[i] != want {
			different++
		}
	}
	ours := found && different == 0
	blank := bytes.Count(header, []byte{0}) == len(header)
	switch {
	case newer != nil:
		return false, newer
	case ours:
		return true, nil
	case found && !blank:
		if string(header[:8]) == mediumMagic || different < rottenHeaderBytes {
			return true, nil // the header has rotted; the superblocks, which are checked, say the same
		}
		return false, errors.New("the medium has the superblocks of a pool and the header of something else: it has been overwritten. Its replicas must be rebuilt from their peers on a new pool")
	case found && best.generation > 1:
		return true, nil // as above
	case blank:
		return false, nil // nothing, or a pool that was cut off before it was complete
	case string(header[:8]) == mediumMagic:
		if version := le32(header[8:]); version > FormatVersion {
			return false, checkVersion("the medium", version)
		}
		return false, damaged("all superblocks of the pool")
	}
	return false, errors.New("the medium holds something that is no pool")
}

func le32(b []byte) uint32 { d := decoder{b: b}; return d.u32() }

// format makes a pool of a blank medium. The header comes last: without it there is none.
func (p *Pool) format(cfg PoolConfig) (superblock, error) {
	capacity := cfg.CapacityBytes
	if capacity == 0 {
		var err error
		if capacity, err = CapacityOf(p.dev.Size()); err != nil {
			return superblock{}, err
		}
	}
	slots, err := slotsFor(capacity)
	if err != nil {
		return superblock{}, err
	}
	s := superblock{generation: 1, capacityBytes: int64(slots) * block.ChunkSize, nextVolume: 1, regions: []region{planRegion(superblockBytes, slots)}}
	if need := s.regions[0].end(); p.dev.Size() < need {
		return s, fmt.Errorf("the medium has %d bytes, a pool of %d needs %d", p.dev.Size(), capacity, need)
	}
	if _, err := rand.Read(s.uuid[:]); err != nil {
		return s, err
	}
	// Whatever lies where the checksums and pages go does not matter: nothing leads to it.
	blank := make([]byte, pageBytes)
	for _, off := range superblockOffsets[0] {
		if err := p.dev.WriteAt(blank, off); err != nil {
			return s, err
		}
	}
	if err := writeSuperblock(p.dev, s); err != nil {
		return s, err
	}
	if err := p.dev.WriteAt(encodeMediumHeader(s.uuid), 0); err != nil {
		return s, err
	}
	return s, p.dev.Sync()
}

// writeSuperblock writes both copies and syncs: before, and after.
func writeSuperblock(dev vfs.Dev, s superblock) error {
	if err := dev.Sync(); err != nil {
		return err
	}
	image := s.encode()
	for _, off := range superblockOffsets[s.generation%2] {
		if err := dev.WriteAt(image, off); err != nil {
			return err
		}
	}
	return dev.Sync()
}
