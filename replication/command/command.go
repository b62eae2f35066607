// Package command is what a LUN's log entry holds: a few absolute block operations, who may apply them, and the
// checksums that let every replica verify them.
//
// Invariant: an entry that decodes and verifies is exactly the one the owner encoded. Empty, shortened, stripped or
// damaged data is an error, never an empty change: a replica that meets one halts instead of guessing (a witness's log
// holds entries without data; should such a log ever reach a data replica, this is what stops it).
//
// The format is in docs/FORMATS.md. It does not decide whether an entry takes effect: the fence is compared by the
// replica's state machine, in package replication.
package command

import (
	"encoding/binary"
	"errors"
	"fmt"

	"sanctuary/blockstore/block"
)

// Layout of version 1, little endian:
//
//	offset size
//	     0    4  magic "SLE1"
//	     4    1  version = 1
//	     5    1  reserved, 0
//	     6    2  number of operations
//	     8    8  fence: the Raft term in which the owner accepted the commands
//	    16    8  proposal: unique among one owner's proposals of a term; 0 = nobody waits
//	    24    4  header length H, in bytes: this header, the operation table and the checksums
//	    28    4  data length, in bytes
//	    32    4  CRC32C of bytes 0..H with this field zero
//	    36    4  reserved, 0
//	    40       operation table, 32 bytes each:
//	               0  1  kind (block.OpKind)
//	               1  3  reserved, 0
//	               4  4  data length of the operation
//	               8  8  start, in sectors
//	              16  8  count, in sectors
//	              24  8  state version (kind 4), else 0
//	             checksums, 4 bytes each, in the order of the operations: one per block of data (kinds 1 and 3), one
//	             over all of it (kinds 4, 6, 7, 8), none (kinds 2, 5)
//	     H       data of the operations, in order, without padding
const (
	version    = 1
	fixedBytes = 40
	opBytes    = 32
)

var magic = [4]byte{'S', 'L', 'E', '1'}

// MaxEntryBytes bounds an encoded entry: 1 MiB of data and its header. Raft, the journal and the transport size their
// buffers by it.
const MaxEntryBytes = 1<<20 + 64<<10

// MaxOps bounds the operations of one entry.
const MaxOps = 1024

// Entry is a decoded log entry. Its operations refer to the bytes it was decoded from.
type Entry struct {
	Fence    uint64
	Proposal uint64
	Ops      []block.Op
}

// ErrFormat says that data is not an entry this version can read.
var ErrFormat = errors.New("not a valid log entry")

// Size returns the encoded length of an entry with these operations, in bytes.
func Size(ops []block.Op) int {
	n := fixedBytes
	for i := range ops {
		n += OpSize(&ops[i])
	}
	return n
}

// OpSize returns what one operation adds to an entry, in bytes.
func OpSize(op *block.Op) int { return opBytes + 4*sumCount(op.Kind, len(op.Data)) + len(op.Data) }

func sumCount(k block.OpKind, dataBytes int) int {
	switch {
	case k == block.OpWrite || k == block.OpFill:
		return dataBytes / block.Size
	case k.Blob():
		return 1
	}
	return 0
}

// Encode returns the entry in a new buffer; nothing of the operations is referred to afterwards.
func Encode(fence, proposal uint64, ops []block.Op) ([]byte, error) {
	if len(ops) > MaxOps {
		return nil, fmt.Errorf("%d operations in one entry, at most %d", len(ops), MaxOps)
	}
	size := Size(ops)
	if size > MaxEntryBytes {
		return nil, fmt.Errorf("entry of %d bytes, at most %d", size, MaxEntryBytes)
	}
	header := size
	if len(ops) == 1 {
		header -= len(ops[0].Data) // appending the data below then allocates the entry, without clearing it first
	}
	buf := make([]byte, 0, header)
	buf = append(buf, magic[:]...)
	buf = append(buf, version, 0)
	buf = binary.LittleEndian.AppendUint16(buf, uint16(len(ops)))
	buf = binary.LittleEndian.AppendUint64(buf, fence)
	buf = binary.LittleEndian.AppendUint64(buf, proposal)
	buf = append(buf, make([]byte, 16)...) // lengths and checksum, below
	dataLen := 0
	for i := range ops {
		op := &ops[i]
		buf = append(buf, byte(op.Kind), 0, 0, 0)
		buf = binary.LittleEndian.AppendUint32(buf, uint32(len(op.Data)))
		buf = binary.LittleEndian.AppendUint64(buf, uint64(op.Range.Start))
		buf = binary.LittleEndian.AppendUint64(buf, uint64(op.Range.Count))
		buf = binary.LittleEndian.AppendUint64(buf, op.StateVersion)
		dataLen += len(op.Data)
	}
	for i := range ops {
		op := &ops[i]
		if op.Kind.Blob() {
			buf = binary.LittleEndian.AppendUint32(buf, block.Sum(op.Data))
			continue
		}
		if len(op.Sums) != sumCount(op.Kind, len(op.Data)) {
			return nil, fmt.Errorf("operation on %v carries %d checksums for %d bytes", op.Range, len(op.Sums), len(op.Data))
		}
		for _, s := range op.Sums {
			buf = binary.LittleEndian.AppendUint32(buf, s)
		}
	}
	binary.LittleEndian.PutUint32(buf[24:], uint32(len(buf)))
	binary.LittleEndian.PutUint32(buf[28:], uint32(dataLen))
	binary.LittleEndian.PutUint32(buf[32:], block.Sum(buf))
	for i := range ops {
		buf = append(buf, ops[i].Data...)
	}
	return buf, nil
}

// Proposal returns the proposal in the header of an entry, without a look at the rest; 0 if it is none.
func Proposal(buf []byte) uint64 {
	if len(buf) < fixedBytes || [4]byte(buf[:4]) != magic {
		return 0
	}
	return binary.LittleEndian.Uint64(buf[16:])
}

// Decode parses an entry and verifies its header; the operations refer to buf. Verify checks their data.
func Decode(buf []byte) (Entry, error) {
	if len(buf) < fixedBytes {
		return Entry{}, fmt.Errorf("%w: %d bytes", ErrFormat, len(buf))
	}
	if [4]byte(buf[:4]) != magic {
		return Entry{}, fmt.Errorf("%w: magic %q", ErrFormat, buf[:4])
	}
	if buf[4] != version {
		return Entry{}, fmt.Errorf("%w: version %d, this program reads version %d", ErrFormat, buf[4], version)
	}
	n := int(binary.LittleEndian.Uint16(buf[6:]))
	header, data := int(binary.LittleEndian.Uint32(buf[24:])), int(binary.LittleEndian.Uint32(buf[28:]))
	if header < fixedBytes+n*opBytes || header > len(buf) || len(buf)-header != data {
		return Entry{}, fmt.Errorf("%w: header of %d bytes and %d of data in %d", ErrFormat, header, data, len(buf))
	}
	if want, got := binary.LittleEndian.Uint32(buf[32:]), headerSum(buf[:header]); want != got {
		return Entry{}, fmt.Errorf("%w: header checksum %08x, computed %08x", ErrFormat, want, got)
	}
	e := Entry{
		Fence:    binary.LittleEndian.Uint64(buf[8:]),
		Proposal: binary.LittleEndian.Uint64(buf[16:]),
		Ops:      make([]block.Op, n),
	}
	sums, payload := buf[fixedBytes+n*opBytes:header], buf[header:]
	for i := range e.Ops {
		row := buf[fixedBytes+i*opBytes:]
		op := &e.Ops[i]
		op.Kind = block.OpKind(row[0])
		op.Range = block.Range{
			Start: block.Sector(binary.LittleEndian.Uint64(row[8:])),
			Count: block.Count(binary.LittleEndian.Uint64(row[16:])),
		}
		op.StateVersion = binary.LittleEndian.Uint64(row[24:])
		length := int(binary.LittleEndian.Uint32(row[4:]))
		count := sumCount(op.Kind, length)
		if length > len(payload) || 4*count > len(sums) {
			return Entry{}, fmt.Errorf("%w: operation %d exceeds the entry", ErrFormat, i)
		}
		op.Data, payload = payload[:length:length], payload[length:]
		op.Sums = make([]uint32, count)
		for j := range op.Sums {
			op.Sums[j] = binary.LittleEndian.Uint32(sums[4*j:])
		}
		sums = sums[4*count:]
	}
	if len(payload) != 0 || len(sums) != 0 {
		return Entry{}, fmt.Errorf("%w: %d bytes of data and %d of checksums too many", ErrFormat, len(payload), len(sums))
	}
	return e, nil
}

// Verify checks every operation's shape against the volume's capacity and its data against its checksums. The data of an
// entry that this process has encoded itself, own, is taken as it is: its checksums are stored with it and verified whenever
// it is read.
func (e Entry) Verify(capacity block.Count, own bool) error {
	for i := range e.Ops {
		op := &e.Ops[i]
		if op.Kind.Blob() {
			if block.Sum(op.Data) != op.Sums[0] { // nothing else will
				return &block.CorruptError{Where: "log entry"}
			}
			op.Sums = nil
		}
		if err := op.Check(capacity); err != nil {
			return err
		}
		if own {
			continue
		}
		if err := op.Verify(); err != nil {
			return err
		}
	}
	return nil
}

// headerSum is the CRC32C of the header with its checksum field taken as zero.
func headerSum(h []byte) uint32 {
	sum := block.ExtendSum(block.Sum(h[:32]), make([]byte, 4))
	return block.ExtendSum(sum, h[36:])
}
