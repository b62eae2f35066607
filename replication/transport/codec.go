package transport

import (
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"sanctuary/proto/peerpb"
)

// codec is gRPC's own protobuf codec, except for AppendFrames, which carry payloads: outFrame refers to them without
// copying, inFrame leaves them in gRPC's buffers until the receiver has a place for them. What is on the wire is the plain
// protobuf message of peer.proto either way.
type codec struct{ std encoding.CodecV2 }

func newCodec() codec { return codec{std: encoding.GetCodecV2(grpcproto.Name)} }

func (c codec) Name() string { return grpcproto.Name }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*outFrame); ok {
		return f.marshal()
	}
	return c.std.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*inFrame); ok {
		f.release()
		f.data = data.Reader() // takes its own reference
		return f.parse()
	}
	return c.std.Unmarshal(data, v)
}

// Field numbers of AppendFrame.
const (
	frameEnvelope = 1
	frameID       = 2
	frameTotal    = 3
	frameTimeout  = 4
	frameChunk    = 5
	frameEncoding = 6
	frameUnpacked = 7
	framePacked   = 8
)

// outFrame is an AppendFrame to be sent.
type outFrame struct {
	envelope      *peerpb.Envelope // first frame of a stream, else nil
	id            uint64
	total         uint64
	timeoutMillis uint32
	chunk         [][]byte // one after the other; referred to until gRPC has written them

	encoding Compression // of packed
	unpacked int         // bytes of chunk
	packed   mem.Buffer  // goes in the place of chunk, if not nil; marshal passes it on to gRPC
}

func (f *outFrame) marshal() (mem.BufferSlice, error) {
	var head []byte
	if f.envelope != nil {
		envelope, err := marshalProto(f.envelope)
		if err != nil {
			return nil, err
		}
		head = protowire.AppendTag(head, frameEnvelope, protowire.BytesType)
		head = protowire.AppendBytes(head, envelope)
	}
	head = appendUint(head, frameID, f.id)
	head = appendUint(head, frameTotal, f.total)
	head = appendUint(head, frameTimeout, uint64(f.timeoutMillis))
	if f.packed != nil {
		head = appendUint(head, frameEncoding, uint64(f.encoding))
		head = appendUint(head, frameUnpacked, uint64(f.unpacked))
		head = protowire.AppendTag(head, framePacked, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(f.packed.Len()))
		packed := f.packed
		f.packed = nil
		return mem.BufferSlice{mem.SliceBuffer(head), packed}, nil
	}
	chunkBytes := 0
	for _, b := range f.chunk {
		chunkBytes += len(b)
	}
	if chunkBytes > 0 {
		head = protowire.AppendTag(head, frameChunk, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(chunkBytes))
	}
	out := make(mem.BufferSlice, 0, len(f.chunk)+1)
	out = append(out, mem.SliceBuffer(head))
	for _, b := range f.chunk {
		if len(b) > 0 {
			out = append(out, mem.SliceBuffer(b))
		}
	}
	return out, nil
}

// inFrame is an AppendFrame received. Its chunk is still in gRPC's buffers; release gives them back.
type inFrame struct {
	envelope      *peerpb.Envelope
	id            uint64
	total         uint64
	timeoutMillis uint32
	chunkBytes    int // unpacked
	encoding      Compression
	packedBytes   int // what data has of it, if there is an encoding
	data          *mem.Reader
}

var errBadFrame = errors.New("malformed append frame")

// parse reads the fields before the chunk and leaves data at its first byte. AppendFrame promises the chunk, or what is packed, to be last.
func (f *inFrame) parse() error {
	f.envelope, f.id, f.total, f.timeoutMillis, f.chunkBytes, f.encoding, f.packedBytes = nil, 0, 0, 0, 0, CompressionOff, 0
	for f.data.Remaining() > 0 {
		tag, err := readVarint(f.data)
		if err != nil {
			return err
		}
		num, kind := protowire.DecodeTag(tag)
		switch {
		case (num == frameChunk || num == framePacked) && kind == protowire.BytesType:
			n, err := readVarint(f.data)
			if err != nil {
				return err
			}
			if n != uint64(f.data.Remaining()) {
				return fmt.Errorf("%w: chunk of %d bytes with %d left", errBadFrame, n, f.data.Remaining())
			}
			switch {
			case num == framePacked && (f.encoding == CompressionOff || f.chunkBytes == 0):
				return fmt.Errorf("%w: packed, and not said with what and how much", errBadFrame)
			case num == framePacked:
				f.packedBytes = int(n) // equal to an int
			default:
				f.chunkBytes, f.encoding = int(n), CompressionOff
			}
			return nil
		case num == frameEnvelope && kind == protowire.BytesType:
			if err := f.parseEnvelope(); err != nil {
				return err
			}
		case kind == protowire.VarintType:
			v, err := readVarint(f.data)
			if err != nil {
				return err
			}
			switch num {
			case frameID:
				f.id = v
			case frameTotal:
				f.total = v
			case frameTimeout:
				f.timeoutMillis = uint32(min(v, maxTimeoutMillis))
			case frameEncoding:
				f.encoding = Compression(min(v, math.MaxInt32))
			case frameUnpacked:
				f.chunkBytes = int(min(v, math.MaxInt32))
			}
		case kind == protowire.BytesType: // a newer sender's field
			n, err := readVarint(f.data)
			if err != nil {
				return err
			}
			if n > uint64(f.data.Remaining()) {
				return fmt.Errorf("%w: field %d is cut short", errBadFrame, num)
			}
			if _, err := f.data.Discard(int(n)); err != nil {
				return fmt.Errorf("%w: %w", errBadFrame, err)
			}
		default:
			return fmt.Errorf("%w: field %d has wire type %d", errBadFrame, num, kind)
		}
	}
	f.chunkBytes, f.encoding = 0, CompressionOff // neither chunk nor packed has come
	return nil
}

// maxEnvelope bounds an encoded Envelope, in bytes.
const maxEnvelope = 64 << 10

func (f *inFrame) parseEnvelope() error {
	n, err := readVarint(f.data)
	if err != nil {
		return err
	}
	if n > maxEnvelope || n > uint64(f.data.Remaining()) {
		return fmt.Errorf("%w: envelope of %d bytes", errBadFrame, n)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(f.data, raw); err != nil {
		return fmt.Errorf("%w: %w", errBadFrame, err)
	}
	f.envelope = new(peerpb.Envelope)
	if err := unmarshalProto(raw, f.envelope); err != nil {
		return fmt.Errorf("%w: envelope: %w", errBadFrame, err)
	}
	return nil
}

// copyChunk moves the chunk to dst, unpacked, and releases gRPC's buffers: the one copy on receive. The length of dst must be chunkBytes.
func (f *inFrame) copyChunk(dst []byte) error {
	if len(dst) != f.chunkBytes {
		return fmt.Errorf("%w: %d bytes for a chunk of %d", errBadFrame, len(dst), f.chunkBytes)
	}
	if f.encoding != CompressionOff {
		packed := packBuffers.Get(f.packedBytes) // no more than gRPC has received
		defer packBuffers.Put(packed)
		if _, err := io.ReadFull(f.data, *packed); err != nil {
			return fmt.Errorf("%w: %w", errBadFrame, err)
		}
		f.release()
		return unpack(f.encoding, dst, *packed)
	}
	if _, err := io.ReadFull(f.data, dst); err != nil {
		return fmt.Errorf("%w: %w", errBadFrame, err)
	}
	f.release()
	return nil
}

func (f *inFrame) release() {
	if f.data != nil {
		_ = f.data.Close() // always nil
		f.data = nil
	}
}

func readVarint(r io.ByteReader) (uint64, error) {
	var v uint64
	for shift := 0; shift < 70; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, fmt.Errorf("%w: number is cut short", errBadFrame)
		}
		if shift == 63 && b > 1 {
			break
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: number beyond 64 bits", errBadFrame)
}

// appendUint appends a varint field, or nothing for 0 as proto3 has it.
func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

// appendField appends a bytes field, or nothing if it is empty.
func appendField(b []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}
