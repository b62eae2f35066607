package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"sanctuary/blockstore/block"
)

// FormatVersion is the version of everything a pool stores. Docs: docs/FORMATS.md, "Blockstore".
const FormatVersion = 1

// ErrVersion: the pool was written by a newer version of the software.
var ErrVersion = errors.New("unknown format version")

// Keys of the metadata store. Numbers are big-endian so that a scan goes in their order.
//
//	'P'                            pool header
//	'N' name                       volume number (u32)
//	'V' volume u32                 volume header
//	'A' volume u32                 what is applied, and the volume's state
//	'M' volume u32 chunk u32       map entry
//	'S' volume u32 chunk u32       checksums of an allocated chunk
const (
	keyPool    = 'P'
	keyName    = 'N'
	keyVolume  = 'V'
	keyApplied = 'A'
	keyMap     = 'M'
	keySums    = 'S'
)

var poolKey = []byte{keyPool}

func nameKey(id string) []byte { return append([]byte{keyName}, id...) }

func volumeKey(kind byte, volume uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, volume)
}

func chunkKey(kind byte, volume, chunk uint32) []byte {
	return binary.BigEndian.AppendUint32(volumeKey(kind, volume), chunk)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal appends the CRC32C of key and record, little-endian. The key is part of it so that a record found under another's
// key is not believed.
func seal(key, record []byte) []byte {
	return binary.LittleEndian.AppendUint32(record, crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, record))
}

// unseal returns the record without its checksum, or false.
func unseal(key, sealed []byte) ([]byte, bool) {
	if len(sealed) < 4 {
		return nil, false
	}
	record := sealed[:len(sealed)-4]
	return record, binary.LittleEndian.Uint32(sealed[len(sealed)-4:]) == crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, record)
}

func damaged(what string) error {
	return fmt.Errorf("%s: %w", what, &block.CorruptError{Where: "metadata record"})
}

func checkVersion(what string, version uint32) error {
	if version != FormatVersion {
		return fmt.Errorf("%s has %w %d; this software knows version %d: use the software that wrote it", what, ErrVersion, version, FormatVersion)
	}
	return nil
}

// poolHeader is the record 'P', and with other framing the first sector of the medium.
//
//	 0  4  version
//	 4  4  chunk size in bytes
//	 8 16  UUID of the pool, drawn when it is created
//	24  8  capacity in bytes, without slot 0 (record only; zero on the medium)
//	32  4  number of the next volume (record only; zero on the medium)
//	36  4  CRC32C of the key and bytes 0..35 (record)
type poolHeader struct {
	uuid          [16]byte
	capacityBytes int64
	nextVolume    uint32
}

const poolHeaderBytes = 36

func (h poolHeader) encode() []byte {
	b := make([]byte, 0, poolHeaderBytes+4)
	b = binary.LittleEndian.AppendUint32(b, FormatVersion)
	b = binary.LittleEndian.AppendUint32(b, block.ChunkSize)
	b = append(b, h.uuid[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.capacityBytes))
	b = binary.LittleEndian.AppendUint32(b, h.nextVolume)
	return seal(poolKey, b)
}

func decodePoolHeader(sealed []byte) (poolHeader, error) {
	b, ok := unseal(poolKey, sealed)
	if !ok || len(b) < 4 {
		return poolHeader{}, damaged("pool header")
	}
	// Every version begins with its number and ends with the checksum; what lies between may differ.
	if err := checkVersion("the pool", binary.LittleEndian.Uint32(b)); err != nil {
		return poolHeader{}, err
	}
	if len(b) != poolHeaderBytes {
		return poolHeader{}, damaged("pool header")
	}
	if size := binary.LittleEndian.Uint32(b[4:]); size != block.ChunkSize {
		return poolHeader{}, fmt.Errorf("the pool has chunks of %d bytes; this software uses %d", size, block.ChunkSize)
	}
	h := poolHeader{
		capacityBytes: int64(binary.LittleEndian.Uint64(b[24:])),
		nextVolume:    binary.LittleEndian.Uint32(b[32:]),
	}
	copy(h.uuid[:], b[8:])
	if _, err := slotsFor(h.capacityBytes); err != nil {
		return poolHeader{}, err
	}
	return h, nil
}

// The medium's own header lies at byte 0 of slot 0. It says whose chunks these are, so that metadata and medium of
// different pools are never used together, and so that a raw device is recognisable.
//
//	 0  8  "SANCPOOL"
//	 8 36  poolHeader bytes 0..35
//	44  4  CRC32C of bytes 0..43
//	48     zeros to the end of the sector (512)
const mediumMagic = "SANCPOOL"

func encodeMediumHeader(uuid [16]byte) []byte {
	b := append([]byte(mediumMagic), poolHeader{uuid: uuid}.encode()[:poolHeaderBytes]...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return append(b, make([]byte, block.SectorSize-len(b))...)
}

// encodeVolume makes the record 'V'.
//
//	 0  4  version
//	 4  8  capacity in sectors of 512 bytes
//	12  4  logical block length in bytes
//	16  4  origin volume (0: none; for clones)
//	20  4  CRC32C of the key and bytes 0..19
func encodeVolume(key []byte, g block.Geometry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, FormatVersion)
	b = binary.LittleEndian.AppendUint64(b, uint64(g.Capacity))
	b = binary.LittleEndian.AppendUint32(b, uint32(g.LogicalBlockBytes))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return seal(key, b)
}

func decodeVolume(key, sealed []byte) (block.Geometry, error) {
	b, ok := unseal(key, sealed)
	if !ok || len(b) < 4 {
		return block.Geometry{}, damaged("volume header")
	}
	if err := checkVersion("the volume", binary.LittleEndian.Uint32(b)); err != nil {
		return block.Geometry{}, err
	}
	if len(b) != 20 || binary.LittleEndian.Uint32(b[16:]) != 0 {
		return block.Geometry{}, damaged("volume header")
	}
	g := block.Geometry{Capacity: block.Count(binary.LittleEndian.Uint64(b[4:])), LogicalBlockBytes: int(binary.LittleEndian.Uint32(b[12:]))}
	return g, g.Validate()
}

// appliedRecord is the record 'A'.
//
//	 0  8  index of the newest entry in this checkpoint
//	 8  8  floor: below it the last-modified indexes of the map are not to be believed (Volume.Changed)
//	16  4  flags: bit 0 = an import has begun and not ended
//	20  8  version of the state
//	28  4  length of the state
//	32  n  the state
//	 …  4  CRC32C of the key and everything before
type appliedRecord struct {
	applied, floor uint64
	inconsistent   bool
	state          block.State
}

const flagInconsistent = 1

func (r appliedRecord) encode(key []byte) []byte {
	b := make([]byte, 0, 36+len(r.state.Blob))
	b = binary.LittleEndian.AppendUint64(b, r.applied)
	b = binary.LittleEndian.AppendUint64(b, r.floor)
	var flags uint32
	if r.inconsistent {
		flags = flagInconsistent
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, r.state.Version)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.state.Blob)))
	b = append(b, r.state.Blob...)
	return seal(key, b)
}

func decodeApplied(key, sealed []byte) (appliedRecord, error) {
	b, ok := unseal(key, sealed)
	if !ok || len(b) < 32 {
		return appliedRecord{}, damaged("applied index")
	}
	r := appliedRecord{
		applied:      binary.LittleEndian.Uint64(b),
		floor:        binary.LittleEndian.Uint64(b[8:]),
		inconsistent: binary.LittleEndian.Uint32(b[16:])&flagInconsistent != 0,
		state:        block.State{Version: binary.LittleEndian.Uint64(b[20:])},
	}
	if flags := binary.LittleEndian.Uint32(b[16:]); flags&^flagInconsistent != 0 {
		return appliedRecord{}, fmt.Errorf("the volume uses a feature this software does not know (flags %#x)", flags)
	}
	if n := binary.LittleEndian.Uint32(b[28:]); uint64(n) != uint64(len(b)-32) || n > block.MaxStateBytes {
		return appliedRecord{}, damaged("applied index")
	} else if n > 0 {
		r.state.Blob = append([]byte(nil), b[32:]...)
	}
	return r, nil
}

// mapEntry is the record 'M'. A chunk that was freed keeps its entry, with slot and bitmap 0, because a rebuild must know
// that it has changed.
//
//	 0  8  slot (0: none). The upper 32 bits are zero: room for another medium.
//	 8  8  bitmap of valid blocks, bit 0 = the first
//	16  8  index of the entry that changed it last
//	24  4  CRC32C of the key and bytes 0..23
type mapEntry struct{ slot, valid, index uint64 }

// The record 'S' is 64 CRC32C, one per block of the chunk (those of invalid blocks mean nothing), and the CRC32C of the
// key and those 256 bytes.
type chunkSums = [block.BlocksPerChunk]uint32

func (e mapEntry) encode(key, buf []byte) []byte {
	buf = binary.LittleEndian.AppendUint64(buf, e.slot)
	buf = binary.LittleEndian.AppendUint64(buf, e.valid)
	buf = binary.LittleEndian.AppendUint64(buf, e.index)
	return seal(key, buf)
}

// decodeChunkKey returns the chunk of a key that was found by scanning for a volume's records of one kind.
func decodeChunkKey(key []byte, chunks uint32) (uint32, error) {
	if len(key) != 9 {
		return 0, damaged("map key")
	}
	chunk := binary.BigEndian.Uint32(key[5:])
	if chunk >= chunks {
		return 0, damaged(fmt.Sprintf("map entry of chunk %d of %d", chunk, chunks))
	}
	return chunk, nil
}

func decodeMapEntry(key, sealed []byte) (mapEntry, error) {
	b, ok := unseal(key, sealed)
	if !ok || len(b) != 24 {
		return mapEntry{}, damaged("map entry")
	}
	e := mapEntry{
		slot:  binary.LittleEndian.Uint64(b),
		valid: binary.LittleEndian.Uint64(b[8:]),
		index: binary.LittleEndian.Uint64(b[16:]),
	}
	if e.slot > maxSlots || (e.slot == 0) != (e.valid == 0) {
		return mapEntry{}, damaged("map entry")
	}
	return e, nil
}

func encodeSums(key []byte, sums *chunkSums, buf []byte) []byte {
	for _, sum := range sums {
		buf = binary.LittleEndian.AppendUint32(buf, sum)
	}
	return seal(key, buf)
}

func decodeSums(key, sealed []byte, sums *chunkSums) error {
	b, ok := unseal(key, sealed)
	if !ok || len(b) != 4*block.BlocksPerChunk {
		return damaged("checksums of a chunk")
	}
	for i := range sums {
		sums[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return nil
}
