package pdu

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
)

var (
	// ErrHeaderDigest: the header digest does not match. Nothing in the header can be believed, not even its lengths.
	ErrHeaderDigest = errors.New("header digest does not match")
	// ErrDataDigest: the data digest does not match. The stream itself is still in step.
	ErrDataDigest = errors.New("data digest does not match")
	// ErrFormat: the PDU breaks the format (additional header segments, text keys, sense data).
	ErrFormat = errors.New("malformed PDU")
	// ErrTooLong: the PDU is longer than this side has said it takes.
	ErrTooLong = errors.New("PDU is longer than allowed")
)

// MaxAHS is the longest sequence of additional header segments the header can announce, in bytes.
const MaxAHS = 255 * 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digest returns the CRC32C of b as it goes on the wire, least significant byte first (RFC 7143 §13.1 and RFC 3720 B.4).
func Digest(b []byte) [4]byte {
	var d [4]byte
	binary.LittleEndian.PutUint32(d[:], crc32.Checksum(b, castagnoli))
	return d
}

// Padding returns how many bytes follow a data segment of n bytes to reach a multiple of 4: 0..3.
func Padding(n int) int { return -n & 3 }

// Reader reads PDUs from a connection. It is used by one goroutine at a time. Every ReadHeader is followed by reading
// the whole data segment: one ReadData or Discard.
type Reader struct {
	// HeaderDigest and DataDigest say which digests to expect from the next PDU on.
	HeaderDigest, DataDigest bool
	// MaxData is the longest data segment accepted, in bytes (the MaxRecvDataSegmentLength this side declared).
	MaxData int

	r      *bufio.Reader
	ahs    [MaxAHS]byte
	ahsLen int
	small  [8]byte
}

// NewReader returns a Reader that buffers bufferBytes; longer data segments go straight to their destination.
func NewReader(r io.Reader, bufferBytes, maxData int) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, bufferBytes), MaxData: maxData}
}

// ReadHeader reads basic and additional header segments and verifies the header digest. A clean end of the stream
// between PDUs is io.EOF, one within a PDU io.ErrUnexpectedEOF. ErrTooLong is returned after the header has been filled
// in, so that it can be rejected; the stream cannot be used afterwards.
func (r *Reader) ReadHeader(h *Header) error {
	r.ahsLen = 0
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return err
	}
	n := h.AHSLength()
	if n > 0 {
		if _, err := io.ReadFull(r.r, r.ahs[:n]); err != nil {
			return noEOF(err)
		}
	}
	if r.HeaderDigest {
		if _, err := io.ReadFull(r.r, r.small[:4]); err != nil {
			return noEOF(err)
		}
		sum := crc32.Update(crc32.Checksum(h[:], castagnoli), castagnoli, r.ahs[:n])
		if binary.LittleEndian.Uint32(r.small[:4]) != sum {
			return ErrHeaderDigest
		}
	}
	if h.DataLength() > r.MaxData {
		return fmt.Errorf("%w: %s with a data segment of %d bytes, at most %d", ErrTooLong, h.Opcode(), h.DataLength(), r.MaxData)
	}
	if err := CheckAHS(r.ahs[:n]); err != nil {
		return err
	}
	r.ahsLen = n
	return nil
}

// AHS returns the additional header segments of the PDU whose header was read last, valid until the next ReadHeader.
func (r *Reader) AHS() []byte { return r.ahs[:r.ahsLen] }

// ReadData reads a whole data segment of len(dst) bytes (which must be the header's DataLength), its padding and digest.
// On ErrDataDigest dst holds the damaged data and the stream is in step.
func (r *Reader) ReadData(dst []byte) error {
	if len(dst) == 0 {
		return nil
	}
	if _, err := io.ReadFull(r.r, dst); err != nil {
		return noEOF(err)
	}
	pad := Padding(len(dst))
	tail := pad
	if r.DataDigest {
		tail += 4
	}
	if tail == 0 {
		return nil
	}
	if _, err := io.ReadFull(r.r, r.small[:tail]); err != nil {
		return noEOF(err)
	}
	if r.DataDigest {
		sum := crc32.Update(crc32.Checksum(dst, castagnoli), castagnoli, r.small[:pad])
		if binary.LittleEndian.Uint32(r.small[pad:]) != sum {
			return ErrDataDigest
		}
	}
	return nil
}

// Discard reads a data segment of n bytes and throws it away. Its digest is not verified.
func (r *Reader) Discard(n int) error {
	if n == 0 {
		return nil
	}
	n += Padding(n)
	if r.DataDigest {
		n += 4
	}
	_, err := r.r.Discard(n)
	return noEOF(err)
}

// Buffered returns how many bytes of further PDUs have already been read from the connection.
func (r *Reader) Buffered() int { return r.r.Buffered() }

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Additional header segment types (RFC 7143 §11.2.2.1).
const (
	AHSExtendedCDB  = 1
	AHSBidiReadEDTL = 2
)

// CheckAHS returns ErrFormat unless b is a whole sequence of additional header segments.
func CheckAHS(b []byte) error {
	for len(b) > 0 {
		if len(b) < 4 {
			return fmt.Errorf("%w: %d bytes after the last additional header segment", ErrFormat, len(b))
		}
		n := 3 + int(binary.BigEndian.Uint16(b))
		n += Padding(n)
		if n < 4 || n > len(b) {
			return fmt.Errorf("%w: additional header segment of %d bytes in %d", ErrFormat, n, len(b))
		}
		b = b[n:]
	}
	return nil
}

// FindAHS returns the content of the first segment of the given type after its reserved byte, and whether there is one.
// ahs must have passed CheckAHS.
func FindAHS(ahs []byte, kind uint8) ([]byte, bool) {
	for len(ahs) >= 4 {
		length := int(binary.BigEndian.Uint16(ahs))
		n := 3 + length
		n += Padding(n)
		if n > len(ahs) {
			return nil, false
		}
		if ahs[2] == kind {
			if length == 0 {
				return nil, true
			}
			return ahs[4 : 3+length], true
		}
		ahs = ahs[n:]
	}
	return nil, false
}

const (
	arenaBytes  = 64 << 10 // headers, padding, digests and short data of one flush
	inlineBytes = 1 << 10  // data up to this is copied: cheaper than an I/O vector of its own
	perPDU      = HeaderSize + 4 + inlineBytes + 3 + 4
)

// Writer gathers PDUs and writes many with one system call. It is used by one goroutine at a time.
type Writer struct {
	// HeaderDigest and DataDigest say which digests to add from the next PDU on.
	HeaderDigest, DataDigest bool

	write func(*net.Buffers) (int64, error)
	arena []byte
	open  int         // start of the arena's part not yet in vec
	vec   net.Buffers // what Flush will write
	out   net.Buffers // vec as consumed by one writev; a field so that it does not escape anew each time
	bytes int
	keep  [64][]byte
}

// zeros is padding, never written to.
var zeros [3]byte

// NewWriter returns a Writer to w; a *net.TCPConn, and what can WriteBuffers, is written with writev.
func NewWriter(w io.Writer) *Writer {
	x := &Writer{arena: make([]byte, 0, arenaBytes)}
	x.vec = x.keep[:0]
	if v, ok := w.(interface {
		WriteBuffers(*net.Buffers) (int64, error)
	}); ok {
		x.write = v.WriteBuffers
	} else {
		x.write = func(b *net.Buffers) (int64, error) { return b.WriteTo(w) }
	}
	return x
}

// Append adds one PDU without additional header segments. It sets the header's data length and copies the header; data
// stays the caller's but must not change until Flush has returned. If the Writer has no room it flushes first.
// len(data) must be at most MaxDataLength.
func (w *Writer) Append(h *Header, data []byte) error { return w.AppendAHS(h, nil, data) }

// AppendAHS is Append with additional header segments, whose length must be a multiple of 4 up to MaxAHS.
func (w *Writer) AppendAHS(h *Header, ahs, data []byte) error {
	if len(data) > MaxDataLength || len(ahs) > MaxAHS || len(ahs)%4 != 0 {
		return fmt.Errorf("%w: data segment of %d bytes, additional headers of %d", ErrTooLong, len(data), len(ahs))
	}
	if len(w.arena)+perPDU+len(ahs) > cap(w.arena) {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	h.SetAHSLength(len(ahs))
	h.SetDataLength(len(data))
	from := len(w.arena)
	w.arena = append(append(w.arena, h[:]...), ahs...)
	if w.HeaderDigest {
		d := Digest(w.arena[from:])
		w.arena = append(w.arena, d[:]...)
	}
	w.bytes += len(w.arena) - from
	if len(data) == 0 {
		return nil
	}
	if len(data) <= inlineBytes {
		w.arena = append(w.arena, data...)
	} else {
		w.seal()
		w.vec = append(w.vec, data)
	}
	pad := zeros[:Padding(len(data))]
	w.arena = append(w.arena, pad...)
	w.bytes += len(data) + len(pad)
	if w.DataDigest {
		sum := crc32.Update(crc32.Checksum(data, castagnoli), castagnoli, pad)
		w.arena = binary.LittleEndian.AppendUint32(w.arena, sum)
		w.bytes += 4
	}
	return nil
}

// seal moves what the arena has gathered since the last time into the vector.
func (w *Writer) seal() {
	if w.open < len(w.arena) {
		w.vec = append(w.vec, w.arena[w.open:len(w.arena):len(w.arena)])
		w.open = len(w.arena)
	}
}

// Full says that the next Append may flush by itself, for whoever wants to choose the moment.
func (w *Writer) Full() bool { return len(w.arena)+perPDU > cap(w.arena) }

// Buffered returns how many bytes the next Flush will write.
func (w *Writer) Buffered() int { return w.bytes }

// Flush writes everything gathered. After an error the stream cannot be used any more.
func (w *Writer) Flush() error {
	if w.bytes == 0 {
		return nil
	}
	w.seal()
	w.out = w.vec
	_, err := w.write(&w.out)
	clear(w.vec)
	w.out, w.vec, w.arena, w.open, w.bytes = nil, w.vec[:0], w.arena[:0], 0, 0
	return err
}
