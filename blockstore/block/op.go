package block

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
)

// OpKind says what an Op does. The values are part of the log format (docs/FORMATS.md) and never change meaning.
type OpKind uint8

const (
	// OpWrite stores Data. Sums holds one checksum per block.
	OpWrite OpKind = 1
	// OpZero makes the range read as zeros and frees what it can (UNMAP, WRITE SAME of zeros).
	OpZero OpKind = 2
	// OpFill stores the one block in Data over the whole range (WRITE SAME). Sums holds that block's checksum.
	OpFill OpKind = 3
	// OpState replaces the LUN's State if its version is StateVersion, else changes nothing. Range is empty.
	OpState OpKind = 4
	// OpGrow makes the volume Range.Count sectors large unless it is that large already; Range.Start is 0. What is added
	// reads as zeros. A volume never shrinks.
	OpGrow OpKind = 5
	// OpSnapshot keeps the present contents as a snapshot. Data is an encoded SnapshotSpec; Range is empty, as in what follows.
	OpSnapshot OpKind = 6
	// OpDeleteSnapshot deletes the snapshot whose ID is Data.
	OpDeleteSnapshot OpKind = 7
	// OpRollback makes the contents those of the snapshot whose ID is Data.
	OpRollback OpKind = 8
	// OpCompare changes nothing: every replica notes what it holds in the chunks of Range once it has applied this entry, for the
	// owner to compare. It never reaches a volume. At most MaxCompareChunks; whole chunks, except at the end of the volume.
	OpCompare OpKind = 9
)

// MaxCompareChunks bounds the range of an OpCompare, in chunks.
const MaxCompareChunks = 4096

// Blob says whether Data is a blob of its own rather than blocks: it is then covered by one checksum in a log entry, and is
// not stored as blocks.
func (k OpKind) Blob() bool {
	return k == OpState || k == OpSnapshot || k == OpDeleteSnapshot || k == OpRollback
}

// Op is one absolute change to a volume: applying it twice gives the same result, and nothing in it depends on what was
// stored before (COMPARE AND WRITE is resolved by the owner before it proposes). Ranges are aligned to blocks.
type Op struct {
	Kind         OpKind
	Range        Range
	Data         []byte   // OpWrite: Range.Bytes() bytes; OpFill: Size bytes; OpState and later: the blob. The callee must not keep it.
	Sums         []uint32 // CRC32C of each block of Data (OpWrite, OpFill), computed once, where the write was accepted.
	StateVersion uint64   // OpState only: the version this change is based on.
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum returns the CRC32C (Castagnoli, as in RFC 7143) of b.
func Sum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// ExtendSum returns the Sum of what sum was computed of, followed by b.
func ExtendSum(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// AppendSums appends the CRC32C of each block of data, whose length must be a multiple of Size, to dst.
func AppendSums(dst []uint32, data []byte) []uint32 {
	for ; len(data) >= Size; data = data[Size:] {
		dst = append(dst, Sum(data[:Size]))
	}
	return dst
}

var zeros [Size]byte

// AllZero says whether b, of any length, is nothing but zeros.
func AllZero(b []byte) bool {
	for ; len(b) > Size; b = b[Size:] {
		if !bytes.Equal(b[:Size], zeros[:]) {
			return false
		}
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// Check returns an error unless the op is well formed for a volume of the given capacity. It does not verify Sums.
func (o Op) Check(capacity Count) error {
	if o.Kind == OpState {
		if len(o.Data) > MaxStateBytes {
			return fmt.Errorf("state of %d bytes, at most %d", len(o.Data), MaxStateBytes)
		}
		return nil
	}
	if o.Kind.Blob() {
		return o.checkSnapshot()
	}
	if !o.Range.Aligned() {
		return fmt.Errorf("range %v is not aligned to blocks", o.Range)
	}
	if o.Kind == OpGrow {
		if o.Range.Start != 0 || o.Range.Count > MaxVolumeBytes/SectorSize || len(o.Data)+len(o.Sums) > 0 {
			return fmt.Errorf("growth to %v: at most 16 TiB, from sector 0, without data", o.Range)
		}
		return nil
	}
	if err := o.Range.Check(capacity); err != nil {
		return err
	}
	switch o.Kind {
	case OpWrite:
		if int64(len(o.Data)) != o.Range.Bytes() || len(o.Sums) != len(o.Data)/Size {
			return fmt.Errorf("write of %v carries %d bytes and %d checksums", o.Range, len(o.Data), len(o.Sums))
		}
	case OpFill:
		if len(o.Data) != Size || len(o.Sums) != 1 {
			return fmt.Errorf("fill of %v carries %d bytes and %d checksums", o.Range, len(o.Data), len(o.Sums))
		}
	case OpZero:
	case OpCompare:
		if o.Range.Start%(ChunkSize/SectorSize) != 0 || o.Range.Count == 0 || o.Range.Bytes() > MaxCompareChunks*ChunkSize || len(o.Data)+len(o.Sums) > 0 {
			return fmt.Errorf("comparison of %v: whole chunks, at most %d, without data", o.Range, MaxCompareChunks)
		}
	default:
		return fmt.Errorf("unknown operation %d", o.Kind)
	}
	return nil
}

// Verify returns a *CorruptError for the first block of Data that does not match its checksum.
func (o Op) Verify() error {
	for i, want := range o.Sums {
		if got := Sum(o.Data[i*Size : (i+1)*Size]); got != want {
			return &CorruptError{Range: Range{Start: o.Range.Start + Sector(i*SectorsPerBlock), Count: SectorsPerBlock}, Where: "log entry"}
		}
	}
	return nil
}

// Sentinels a caller chooses by. target maps each to one SCSI status (target/scsi).
var (
	// ErrOutOfRange: the range does not lie within the volume.
	ErrOutOfRange = errors.New("beyond the end of the volume")
	// ErrNotOwner: this node does not own the LUN and has done nothing. Another path may serve it.
	ErrNotOwner = errors.New("this node does not own the LUN")
	// ErrUnknown: ownership was lost while the command was in flight; it took effect entirely or never will.
	// If it does, then before any node serves the LUN's next command (rule F). The initiator should retry.
	ErrUnknown = errors.New("ownership was lost while the command was in flight")
	// ErrFenced: another node may have owned the LUN since the command was accepted, so it may be an old duplicate. Nothing
	// has been done. The initiator should retry.
	ErrFenced = errors.New("the LUN may have been owned elsewhere since the command was accepted")
	// ErrUnavailable: no quorum or no copy at present; waiting may help.
	ErrUnavailable = errors.New("the LUN is not available at present")
	// ErrLost: every replica's data is gone; only an operator can go on from here.
	ErrLost = errors.New("every replica of the LUN has lost its data")
	// ErrNoSpace: the pool cannot allocate what this write needs. Nothing has been changed.
	ErrNoSpace = errors.New("no space left in the pool")
	// ErrFailed: the medium has failed (an I/O or sync error, which is final). This replica is out.
	ErrFailed = errors.New("the medium has failed")
	// ErrStale: a compare-and-swap found another version than it was based on.
	ErrStale = errors.New("state was changed by another command")
	// ErrClosed: the volume or group has been closed.
	ErrClosed = errors.New("closed")
)

// CorruptError says that stored data does not match its checksum. The data has not been returned.
type CorruptError struct {
	Range Range
	Where string // "medium", "log entry", "map page"
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("sectors %v: %s does not match its checksum", e.Range, e.Where)
}
