package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"sanctuary/blockstore/block"
)

// FormatVersion is the version of everything a pool stores. Docs: docs/FORMATS.md, "Blockstore".
const FormatVersion = 2

// ErrVersion: the pool was written by a newer version of the software.
var ErrVersion = errors.New("unknown format version")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func damaged(what string) error {
	return fmt.Errorf("%s: %w", what, &block.CorruptError{Where: "metadata"})
}

func checkVersion(what string, version uint32) error {
	if version != FormatVersion {
		return fmt.Errorf("%s has %w %d; this software knows versions up to %d: use the software that wrote it", what, ErrVersion, version, FormatVersion)
	}
	return nil
}

// The medium's header lies in its first sector and never changes. It says whose medium this is, to this software and to
// whoever else looks at the device.
//
//	 0  8  "SANCPOOL"
//	 8  4  version
//	12  4  chunk size in bytes
//	16 16  UUID of the pool, drawn when it is created
//	32 12  zeros
//	44  4  CRC32C of bytes 0..43
//	48     zeros to the end of the sector (512)
const (
	mediumMagic       = "SANCPOOL"
	mediumHeaderBytes = 48
)

func encodeMediumHeader(uuid [16]byte) []byte {
	b := make([]byte, block.SectorSize)
	copy(b, mediumMagic)
	binary.LittleEndian.PutUint32(b[8:], FormatVersion)
	binary.LittleEndian.PutUint32(b[12:], block.ChunkSize)
	copy(b[16:], uuid[:])
	binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
	return b
}

// A superblock is the root of everything, in 4 KiB. Generation g is written twice, at superblockOffsets of its parity, so
// the one before it is untouched until g is durable, and one rotten sector does not lose the pool.
//
//	 0  8  "SANCSUPR"
//	 8  4  version
//	12  4  CRC32C of the 4096 bytes with this field zero
//	16 16  UUID of the pool
//	32  8  generation, from 1
//	40  8  capacity in bytes, a multiple of 256 KiB
//	48  4  number of the next volume
//	52 16  catalogue, twice: page (0: no volumes) and checksum
//	68  4  number of regions, 1 to 64
//	72     regions, 32 bytes each:
//	         0  8  offset of the first data slot
//	         8  8  offset of the checksums
//	        16  8  offset of the metadata pages
//	        24  4  data slots
//	        28  4  metadata pages
const (
	superblockMagic = "SANCSUPR"
	maxRegions      = 64
	regionBytes     = 32
)

var superblockOffsets = [2][2]int64{{32 << 10, 160 << 10}, {96 << 10, 224 << 10}}

type superblock struct {
	uuid          [16]byte
	generation    uint64
	capacityBytes int64
	nextVolume    uint32
	catalogue     twins
	regions       []region
}

func (s superblock) encode() []byte {
	b := make([]byte, 0, pageBytes)
	b = append(b, superblockMagic...)
	b = binary.LittleEndian.AppendUint32(b, FormatVersion)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = append(b, s.uuid[:]...)
	b = binary.LittleEndian.AppendUint64(b, s.generation)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.capacityBytes))
	b = binary.LittleEndian.AppendUint32(b, s.nextVolume)
	b = s.catalogue.append(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.regions)))
	for _, r := range s.regions {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.data))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.sums))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.pages))
		b = binary.LittleEndian.AppendUint32(b, r.slots)
		b = binary.LittleEndian.AppendUint32(b, r.pageCount)
	}
	b = b[:pageBytes]
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, castagnoli))
	return b
}

// decodeSuperblock returns an error for what is not a superblock, or a damaged one; errors.Is(err, ErrVersion) for one of a
// newer version. Every version begins with magic, version and checksum.
func decodeSuperblock(b []byte) (superblock, error) {
	if string(b[:8]) != superblockMagic || sumWithout(b, 12) != binary.LittleEndian.Uint32(b[12:]) {
		return superblock{}, damaged("superblock")
	}
	if err := checkVersion("the pool", binary.LittleEndian.Uint32(b[8:])); err != nil {
		return superblock{}, err
	}
	d := decoder{b: b[16:]}
	var s superblock
	copy(s.uuid[:], d.bytes(16))
	s.generation = d.u64()
	s.capacityBytes = int64(d.u64())
	s.nextVolume = d.u32()
	s.catalogue = d.twins()
	n := d.u32()
	if n < 1 || n > maxRegions {
		return s, damaged("superblock")
	}
	slots := uint64(0)
	for range n {
		r := region{data: int64(d.u64()), sums: int64(d.u64()), pages: int64(d.u64()), slots: d.u32(), pageCount: d.u32()}
		slots += uint64(r.slots)
		s.regions = append(s.regions, r)
	}
	if slots > math.MaxUint32-1 || s.capacityBytes != int64(slots)*block.ChunkSize || s.generation == 0 {
		return s, damaged("superblock")
	}
	return s, nil
}

// sumWithout is the CRC32C of b with the four bytes at the given place taken as zeros.
func sumWithout(b []byte, at int) uint32 {
	sum := crc32.Update(crc32.Checksum(b[:at], castagnoli), castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(sum, castagnoli, b[at+4:])
}

// decoder reads little-endian fields; beyond the end it reads zeros and remembers it.
type decoder struct {
	b     []byte
	short bool
}

func (d *decoder) bytes(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.short = true
		d.b = nil
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) u16() uint16 {
	if b := d.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// volumeRecord is what the root page chain of a volume holds.
//
//	4  version
//	4  flags: bit 0 = an import has begun and not ended; bit 1 = deleted, and kept for its clones
//	8  capacity in sectors of 512 bytes
//	4  logical block length in bytes
//	8  index of the newest entry in this checkpoint
//	8  floor: below it the last-modified indexes of the map are not to be believed (Volume.Changed)
//	8  of a clone, number of the origin volume and epoch of the snapshot; else zeros
//	4  epoch of the live state
//	   path of the live state
//	2  length of the name, and the name
//	8  version of the state
//	4  length of the state, and the state
//	4  number of snapshots; each:
//	    16  ID
//	     8  created, milliseconds since the Unix epoch
//	     8  index of the entry that made it
//	     8  capacity in sectors
//	     8  stored blocks
//	     4  epoch
//	     4  flags: bit 0 = deleted, and kept for clones
//	        its path
//	     2  length of the name, and the name
//	4  number of directories, and for each its page and checksum
//
// A path is a count (2) and so many ranges of epochs, first and last (4 and 4).
type volumeRecord struct {
	id             string
	geometry       block.Geometry
	applied, floor uint64
	inconsistent   bool
	deleted        bool
	originVolume   uint32
	originEpoch    uint32
	lineage        *lineage
	state          block.State
	directories    []pagePtr
}

const (
	flagInconsistent = 1 << 0
	flagDeleted      = 1 << 1
	flagHidden       = 1 << 0 // of a snapshot
	flagBefore       = 1 << 1 // of a snapshot, with flagHidden
)

func (r *volumeRecord) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, FormatVersion)
	flags := uint32(0)
	if r.inconsistent {
		flags |= flagInconsistent
	}
	if r.deleted {
		flags |= flagDeleted
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.geometry.Capacity))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.geometry.LogicalBlockBytes))
	b = binary.LittleEndian.AppendUint64(b, r.applied)
	b = binary.LittleEndian.AppendUint64(b, r.floor)
	b = binary.LittleEndian.AppendUint32(b, r.originVolume)
	b = binary.LittleEndian.AppendUint32(b, r.originEpoch)
	b = binary.LittleEndian.AppendUint32(b, r.lineage.epoch)
	b = r.lineage.live.append(b)
	b = appendString(b, r.id)
	b = binary.LittleEndian.AppendUint64(b, r.state.Version)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.state.Blob)))
	b = append(b, r.state.Blob...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.lineage.snapshots)))
	for i := range r.lineage.snapshots {
		s := &r.lineage.snapshots[i]
		b = append(b, s.ID[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Created))
		b = binary.LittleEndian.AppendUint64(b, s.Index)
		b = binary.LittleEndian.AppendUint64(b, uint64(s.Capacity))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.stored))
		b = binary.LittleEndian.AppendUint32(b, s.epoch)
		flags := uint32(0)
		if s.hidden {
			flags = flagHidden
		}
		if s.before {
			flags |= flagBefore
		}
		b = binary.LittleEndian.AppendUint32(b, flags)
		b = s.path.append(b)
		b = appendString(b, s.Name)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.directories)))
	for _, p := range r.directories {
		b = p.append(b)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(s))), s...)
}

func decodeVolume(name string, b []byte) (r volumeRecord, err error) {
	d := decoder{b: b}
	if err := checkVersion("volume "+name, d.u32()); err != nil {
		return r, err
	}
	flags := d.u32()
	if flags&^(flagInconsistent|flagDeleted) != 0 {
		return r, fmt.Errorf("volume %s uses a feature this software does not know (flags %#x)", name, flags)
	}
	r.inconsistent, r.deleted = flags&flagInconsistent != 0, flags&flagDeleted != 0
	r.geometry = block.Geometry{Capacity: block.Count(d.u64()), LogicalBlockBytes: int(d.u32())}
	r.applied, r.floor = d.u64(), d.u64()
	r.originVolume, r.originEpoch = d.u32(), d.u32()
	r.lineage = &lineage{epoch: d.u32()}
	r.lineage.live = decodePath(&d)
	r.id = string(d.bytes(int(d.u16())))
	r.state.Version = d.u64()
	if n := d.u32(); n > block.MaxStateBytes {
		return r, damaged("volume")
	} else if n > 0 {
		r.state.Blob = append([]byte(nil), d.bytes(int(n))...)
	}
	for range d.u32() {
		if d.short {
			break
		}
		var s snapshot
		copy(s.ID[:], d.bytes(16))
		s.Created, s.Index, s.Capacity = int64(d.u64()), d.u64(), block.Count(d.u64())
		s.stored, s.epoch = int64(d.u64()), d.u32()
		flags := d.u32()
		s.hidden, s.before = flags&flagHidden != 0, flags&flagBefore != 0
		s.path = decodePath(&d)
		s.Name = string(d.bytes(int(d.u16())))
		r.lineage.snapshots = append(r.lineage.snapshots, s)
	}
	n := d.u32()
	if uint64(n)*ptrBytes != uint64(len(d.b)) {
		return r, damaged("volume")
	}
	for range n {
		r.directories = append(r.directories, d.ptr())
	}
	if d.short {
		return r, damaged("volume")
	}
	return r, r.geometry.Validate()
}
