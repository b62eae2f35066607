package membership

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kind is a node's kind as gossip carries it.
type Kind uint8

// Kinds. The values are part of the gossip format.
const (
	KindData    Kind = 1
	KindWitness Kind = 2
)

func (k Kind) String() string {
	switch k {
	case KindData:
		return "data"
	case KindWitness:
		return "witness"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Meta is what a node tells the others about itself. All of it is a hint: who a node is, is decided by the catalog.
type Meta struct {
	ID        string   // UUID of the node's disk
	Kind      Kind     //
	PortGroup uint16   // target port group; 0 until the catalog has given one out
	Peer      string   // host:port for replication
	API       string   // host:port for management
	ISCSI     []string // host:port of each portal
	// Free bytes are what one LUN may still allocate on the node: in the pool of that class that has most. FreeFileBytes is that of
	// all pools that last, and all that programs before classes tell. Sent in MiB, rounded down.
	FreeFileBytes uint64
	FreeRAMBytes  uint64
	FreeSSDBytes  uint64
	FreeHDDBytes  uint64
}

// The encoding, at most maxMeta bytes because every gossip message about a node carries it:
//
//	offset  length
//	0       1       version, 1
//	1       1       kind
//	2       2       port group, little endian
//	4       4       free space in pools that last, in MiB, little endian, at most 2^32-1
//	8       4       the same of pools in RAM
//	12      1       number of portals, at most maxPortals
//	13      ...     ID, Peer, API and the portals: each a length (1 byte) and that many bytes
//	        4       free space in pools of class ssd, if it still fits
//	        4       the same of class hdd
//
// The last two are together or not at all. A decoder ignores what follows: a later program may append fields. It refuses another
// version.
const (
	metaVersion = 1
	maxMeta     = 512 // memberlist.MetaMaxSize
	maxPortals  = 16
	headBytes   = 13
	classBytes  = 8
)

var errMeta = errors.New("node metadata cannot be understood")

// encode returns an error if the addresses do not fit.
func (m Meta) encode() ([]byte, error) {
	if len(m.ISCSI) > maxPortals {
		return nil, fmt.Errorf("%d portals, at most %d fit into gossip", len(m.ISCSI), maxPortals)
	}
	b := make([]byte, headBytes, maxMeta)
	b[0], b[1] = metaVersion, byte(m.Kind)
	binary.LittleEndian.PutUint16(b[2:], m.PortGroup)
	binary.LittleEndian.PutUint32(b[4:], mebibytes(m.FreeFileBytes))
	binary.LittleEndian.PutUint32(b[8:], mebibytes(m.FreeRAMBytes))
	b[12] = byte(len(m.ISCSI))
	for _, s := range append([]string{m.ID, m.Peer, m.API}, m.ISCSI...) {
		if len(s) > 255 {
			return nil, fmt.Errorf("address %q is longer than 255 bytes", s)
		}
		b = append(append(b, byte(len(s))), s...)
	}
	if len(b)+classBytes <= maxMeta {
		b = binary.LittleEndian.AppendUint32(b, mebibytes(m.FreeSSDBytes))
		b = binary.LittleEndian.AppendUint32(b, mebibytes(m.FreeHDDBytes))
	}
	if len(b) > maxMeta {
		return nil, fmt.Errorf("the node's addresses take %d bytes in gossip, at most %d: use shorter ones, or fewer portals", len(b), maxMeta)
	}
	return b, nil
}

func mebibytes(n uint64) uint32 { return uint32(min(n>>20, 1<<32-1)) }

func decodeMeta(b []byte) (Meta, error) {
	if len(b) < headBytes || len(b) > maxMeta {
		return Meta{}, fmt.Errorf("%w: %d bytes", errMeta, len(b))
	}
	if b[0] != metaVersion {
		return Meta{}, fmt.Errorf("%w: version %d, this program knows version %d", errMeta, b[0], metaVersion)
	}
	m := Meta{
		Kind: Kind(b[1]), PortGroup: binary.LittleEndian.Uint16(b[2:]),
		FreeFileBytes: uint64(binary.LittleEndian.Uint32(b[4:])) << 20,
		FreeRAMBytes:  uint64(binary.LittleEndian.Uint32(b[8:])) << 20,
	}
	if b[12] > maxPortals || m.Kind != KindData && m.Kind != KindWitness {
		return Meta{}, fmt.Errorf("%w: %v, %d portals", errMeta, m.Kind, b[12])
	}
	fields := make([]string, 3+int(b[12]))
	rest := b[headBytes:]
	for i := range fields {
		if len(rest) == 0 {
			return Meta{}, fmt.Errorf("%w: cut off", errMeta)
		}
		end := 1 + int(rest[0]) // in an int: 1+255 does not fit the byte
		if len(rest) < end {
			return Meta{}, fmt.Errorf("%w: cut off", errMeta)
		}
		fields[i], rest = string(rest[1:end]), rest[end:]
	}
	m.ID, m.Peer, m.API = fields[0], fields[1], fields[2]
	if len(fields) > 3 {
		m.ISCSI = fields[3:]
	}
	if len(rest) >= classBytes {
		m.FreeSSDBytes = uint64(binary.LittleEndian.Uint32(rest)) << 20
		m.FreeHDDBytes = uint64(binary.LittleEndian.Uint32(rest[4:])) << 20
	}
	return m, nil
}
