package transport

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/mem"

	"sanctuary/proto/peerpb"
)

// This file packs bulk data, the entries of Append streams and the answers of CallBulk, for links that are thinner than a LAN. The sender decides, by node (Config.Compression), and
// packs only with what the receiver has said it can read; every node reads everything. Frames are packed one by one: what does not become an eighth smaller, as random or
// encrypted data, is sent as it is. A receiver has made room for what comes out before it begins, and takes nothing that is longer.

// Compression is what bulk data to a node is packed with.
type Compression peerpb.Encoding

// The choices, the cheaper one first.
const (
	CompressionOff  = Compression(peerpb.Encoding_ENCODING_NONE)
	CompressionS2   = Compression(peerpb.Encoding_ENCODING_S2)
	CompressionZstd = Compression(peerpb.Encoding_ENCODING_ZSTD)
)

// readable is what this code can unpack, as Hello.reads has it.
const readable = uint32(1<<CompressionS2 | 1<<CompressionZstd)

// agreed is what to pack with for a receiver that can read what reads says.
func (c Compression) agreed(reads uint32) Compression {
	if c < 0 || c > CompressionZstd || reads&readable&(1<<c) == 0 {
		return CompressionOff
	}
	return c
}

// packMin is the shortest data that is packed, in bytes.
const packMin = 512

// packMax is the longest data that is packed, in bytes: the largest Limits.FrameBytes.
const packMax = 4 << 20

// packBuffers has room for a frame of the default size, and for the largest.
var packBuffers = mem.NewTieredBufferPool(4<<10, 16<<10, 64<<10, s2.MaxEncodedLen(256<<10), s2.MaxEncodedLen(1<<20), s2.MaxEncodedLen(packMax))

var (
	zstdWriter = sync.OnceValue(func() *zstd.Encoder {
		// A frame is one segment, in memory as a whole at both ends.
		w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // constant options
		}
		return w
	})
	zstdReader = sync.OnceValue(func() *zstd.Decoder {
		r, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(packMax), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err) // constant options
		}
		return r
	})
)

// pack returns pieces, n bytes in all, packed as one; nil if that is not worth it. Freeing what it returns is the caller's.
func pack(c Compression, pieces [][]byte, n int) mem.Buffer {
	if c == CompressionOff || n < packMin || n > packMax {
		return nil
	}
	src := pieces[0]
	if len(pieces) > 1 {
		gathered := packBuffers.Get(n)
		defer packBuffers.Put(gathered)
		src = (*gathered)[:0]
		for _, p := range pieces {
			src = append(src, p...)
		}
	}
	dst := packBuffers.Get(s2.MaxEncodedLen(n))
	switch c {
	case CompressionS2:
		*dst = s2.Encode(*dst, src)
	case CompressionZstd:
		*dst = zstdWriter().EncodeAll(src, (*dst)[:0])
	}
	if len(*dst) > n-n/8 {
		packBuffers.Put(dst)
		return nil
	}
	return mem.NewBuffer(dst, packBuffers)
}

var errPacked = errors.New("packed data that does not unpack")

// unpack fills dst with what src holds packed: exactly that, or an error. It allocates nothing for what src claims to hold.
func unpack(c Compression, dst, src []byte) error {
	var got []byte
	var err error
	switch c {
	case CompressionS2:
		var n int
		if n, err = s2.DecodedLen(src); err == nil && n != len(dst) {
			return fmt.Errorf("%w: %d bytes, announced were %d", errPacked, n, len(dst))
		}
		if err == nil {
			got, err = s2.Decode(dst, src)
		}
	case CompressionZstd:
		got, err = zstdReader().DecodeAll(src, dst[:0:len(dst)])
	default:
		return fmt.Errorf("%w: encoding %d is not known here", errPacked, c)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errPacked, err)
	}
	if len(got) != len(dst) || len(got) > 0 && &got[0] != &dst[0] {
		return fmt.Errorf("%w: %d bytes, announced were %d", errPacked, len(got), len(dst))
	}
	return nil
}

// Traffic counts bulk data sent to a node, since the Mux was made: entries and answers of CallBulk.
type Traffic struct {
	Bytes int64 // as they were before packing
	Sent  int64 // as they went out
}

type traffic struct{ bytes, sent atomic.Int64 }

func (t *traffic) add(bytes, sent int) {
	t.bytes.Add(int64(bytes))
	t.sent.Add(int64(sent))
}

// Traffic returns what has been sent to a node.
func (m *Mux) Traffic(node string) Traffic {
	t := m.trafficTo(node)
	return Traffic{Bytes: t.bytes.Load(), Sent: t.sent.Load()}
}

func (m *Mux) trafficTo(node string) *traffic {
	m.trafficMu.Lock()
	defer m.trafficMu.Unlock()
	t := m.traffic[node]
	if t == nil {
		t = new(traffic)
		m.traffic[node] = t
	}
	return t
}

func (m *Mux) compression(node string) Compression {
	if m.cfg.Compression == nil {
		return CompressionOff
	}
	return m.cfg.Compression(node)
}

// packReply packs the body of an answer to a bulk call, if the caller can read that.
func (m *Mux) packReply(req *peerpb.CallRequest, reply *peerpb.CallReply) {
	c, n := m.compression(req.GetFromNode()).agreed(req.GetReads()), len(reply.GetBody())
	if packed := pack(c, [][]byte{reply.GetBody()}, n); packed != nil {
		reply.Body = append([]byte(nil), packed.ReadOnlyData()...)
		reply.Encoding, reply.Unpacked = peerpb.Encoding(c), uint32(n)
		packed.Free()
	}
	m.trafficTo(req.GetFromNode()).add(n, len(reply.GetBody()))
}

// unpackReply undoes packReply, for an answer of at most limit bytes.
func unpackReply(reply *peerpb.CallReply, limit int) error {
	c := Compression(reply.GetEncoding())
	if c == CompressionOff {
		return nil
	}
	if n := int64(reply.GetUnpacked()); n > int64(limit) {
		return fmt.Errorf("%w: answer of %d bytes, at most %d", ErrTooLarge, n, limit)
	}
	body := make([]byte, reply.GetUnpacked())
	if err := unpack(c, body, reply.GetBody()); err != nil {
		return err
	}
	reply.Body, reply.Encoding, reply.Unpacked = body, peerpb.Encoding_ENCODING_NONE, 0
	return nil
}
