package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/mem"
	"pgregory.net/rapid"

	"sanctuary/proto/peerpb"
)

var packings = map[string]Compression{"s2": CompressionS2, "zstd": CompressionZstd}

// pages is what a database may write: n bytes of records that resemble each other, in pages that are not full.
func pages(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, 0, n+4096)
	for id := uint64(0); len(out) < n; {
		page := make([]byte, 0, 4096)
		for len(page) < 3000 {
			id++
			page = binary.BigEndian.AppendUint64(page, id)
			page = fmt.Appendf(page, "customer-%06d,%s,%d.%02d EUR,2026-%02d-%02d;", r.IntN(1e6), []string{"open", "paid", "overdue"}[r.IntN(3)], r.IntN(1000), r.IntN(100), 1+r.IntN(12), 1+r.IntN(28))
			page = binary.BigEndian.AppendUint64(page, r.Uint64())
		}
		out = append(out, page[:4096]...)
	}
	return out[:n]
}

func random(n int) []byte {
	out := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(out)
	return out
}

// What was packed comes out as it was, however it was cut into pieces; what is packed is smaller by an eighth.
func TestPackedDataComesOutAsItWas(t *testing.T) {
	for name, c := range packings {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				var pieces [][]byte
				for range rapid.IntRange(1, 8).Draw(t, "pieces") {
					piece := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "piece")
					pieces = append(pieces, bytes.Repeat(piece, rapid.IntRange(1, 3000).Draw(t, "times")))
				}
				whole := bytes.Join(pieces, nil)
				packed := pack(c, pieces, len(whole))
				if packed == nil {
					return
				}
				defer packed.Free()
				if n := packed.Len(); n > len(whole)-len(whole)/8 {
					t.Fatalf("%d bytes became %d", len(whole), n)
				}
				got := make([]byte, len(whole))
				if err := unpack(c, got, packed.ReadOnlyData()); err != nil || !bytes.Equal(got, whole) {
					t.Fatalf("%d bytes do not come out as they were: %v", len(whole), err)
				}
			})
			if packed := pack(c, [][]byte{pages(1 << 20)}, 1<<20); packed == nil {
				t.Error("a database's pages were not packed")
			}
			for what, data := range map[string][]byte{"random data": random(1 << 20), "a short message": make([]byte, packMin-1)} {
				if packed := pack(c, [][]byte{data}, len(data)); packed != nil {
					t.Errorf("%s: %d bytes were packed to %d", what, len(data), packed.Len())
				}
			}
		})
	}
}

// Data that unpacks to more than was announced, or less, or claims to, is refused, and costs no memory.
func TestWhatUnpacksToAnotherLengthIsRefusedWithoutMemory(t *testing.T) {
	const announced = 4096
	zeros := make([]byte, 64<<20)
	z := zstdWriter().EncodeAll(zeros, nil)
	huge := binary.AppendUvarint(nil, 1<<31)
	claim, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	small := claim.EncodeAll(zeros[:announced/2], nil)
	for name, bad := range map[string]struct {
		c   Compression
		src []byte
	}{
		"s2 of 64 MiB":             {CompressionS2, s2.Encode(nil, zeros)},
		"s2 that claims 2 GiB":     {CompressionS2, append(huge, 0)},
		"s2 of less":               {CompressionS2, s2.Encode(nil, zeros[:announced/2])},
		"zstd of 64 MiB":           {CompressionZstd, z},
		"zstd of 2 MiB":            {CompressionZstd, zstdWriter().EncodeAll(zeros[:2<<20], nil)},
		"zstd of less":             {CompressionZstd, small},
		"zstd, three times":        {CompressionZstd, bytes.Repeat(small, 3)},
		"zstd that claims 2 GiB":   {CompressionZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x80, 1, 0, 0}},
		"zstd, a window of 2 GiB":  {CompressionZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0}},
		"nothing":                  {CompressionZstd, nil},
		"an encoding of the times": {7, small},
		"none":                     {CompressionOff, zeros[:announced]},
	} {
		dst := make([]byte, announced)
		_ = unpack(bad.c, dst, bad.src) // the decoders make what they keep
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := unpack(bad.c, dst, bad.src)
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: taken", name)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
			t.Errorf("%s: refusing it took %d bytes", name, n)
		}
	}
}

// In steady state neither end allocates for a frame.
func TestPackingAllocatesNothingPerFrame(t *testing.T) {
	data := pages(256 << 10)
	pieces := [][]byte{data[:100], data[100:5000], data[5000:]}
	dst := make([]byte, len(data))
	most := 0.0
	if underRace { // pools lose a part of what they are given then, on purpose
		most = 12
	}
	for name, c := range packings {
		n := testing.AllocsPerRun(20, func() {
			packed := pack(c, pieces, len(data))
			if err := unpack(c, dst, packed.ReadOnlyData()); err != nil {
				t.Fatal(err)
			}
			packed.Free()
		})
		if n > most {
			t.Errorf("%s: %.0f allocations for a frame", name, n)
		}
	}
}

func FuzzUnpackKeepsToItsLength(f *testing.F) {
	data := pages(3000)
	f.Add(int8(CompressionS2), uint16(3000), s2.Encode(nil, data))
	f.Add(int8(CompressionZstd), uint16(3000), zstdWriter().EncodeAll(data, nil))
	f.Add(int8(CompressionZstd), uint16(10), []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x80, 1, 0, 0})
	f.Fuzz(func(t *testing.T, c int8, n uint16, src []byte) {
		room := make([]byte, int(n)+64)
		for i := range room {
			room[i] = 0xa5
		}
		dst := room[:n:n]
		err := unpack(Compression(c), dst, src)
		for _, b := range room[n:] {
			if b != 0xa5 {
				t.Fatal("bytes behind the room were written to")
			}
		}
		if err != nil {
			return
		}
		// As the library's plain way has it.
		var want []byte
		if Compression(c) == CompressionS2 {
			want, err = s2.Decode(nil, src)
		} else {
			want, err = zstdReader().DecodeAll(src, make([]byte, 0, n))
		}
		if err != nil || !bytes.Equal(dst, want) {
			t.Fatalf("%d bytes, the library has %d, %v", n, len(want), err)
		}
		var in inFrame
		defer in.release()
		frame := outFrame{id: 1, total: uint64(n), encoding: Compression(c), unpacked: int(n), packed: mem.SliceBuffer(src)}
		raw, err := newCodec().Marshal(&frame)
		if err != nil {
			t.Fatal(err)
		}
		if err := newCodec().Unmarshal(raw, &in); n > 0 && (err != nil || in.chunkBytes != int(n) || in.copyChunk(make([]byte, n)) != nil) {
			t.Fatalf("a frame that holds it: %v, %+v", err, in)
		}
	})
}

// Each node packs what it sends as it is set to, for nodes that can read it; a node of an older program, which does not say what it can read, gets everything as it is.
func TestNodesOfDifferentSettingsUnderstandEachOther(t *testing.T) {
	all := map[string]Compression{"off": CompressionOff, "s2": CompressionS2, "zstd": CompressionZstd}
	data, noise := pages(3<<20), random(1<<20)
	for aName, ac := range all {
		for bName, bc := range all {
			for _, old := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s and %s, older: %v", aName, bName, old), func(t *testing.T) {
					p := newPair(t, nil, func(c *Config) {
						mine := map[string]Compression{"a": ac, "b": bc}[c.Node]
						c.Compression = func(string) Compression { return mine }
					})
					if old {
						p.b.reads = 0
					}
					var got [][]byte
					serveWith(t, p.to, func(rpc raft.RPC) {
						for _, e := range rpc.Command.(*raft.AppendEntriesRequest).Entries {
							got = append(got, e.Data)
						}
						accept(rpc)
					})
					for i, d := range [][]byte{data, noise, nil, data[:4096]} {
						resp := new(raft.AppendEntriesResponse)
						if err := p.from.AppendEntries("server-b", "b", request(uint64(i+1), d), resp); err != nil || !resp.Success {
							t.Fatal(err)
						}
						if !bytes.Equal(got[i], d) {
							t.Fatalf("request %d arrived as something else", i)
						}
					}
					checkTraffic(t, p.a.Traffic("b"), ac, old, 4<<20, 1<<20)

					if err := p.a.Handle("echo", func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil }); err != nil {
						t.Fatal(err)
					}
					for _, d := range [][]byte{data, noise, nil} {
						back, err := p.b.CallBulk(t.Context(), "a", "echo", d)
						if err != nil || !bytes.Equal(back, d) {
							t.Fatalf("a call's answer of %d bytes: %d bytes, %v", len(d), len(back), err)
						}
					}
					checkTraffic(t, p.a.Traffic("b"), ac, old, 8<<20, 2<<20)
				})
			}
		}
	}
}

// checkTraffic compares what was counted with bytes that were to be sent, of which noise cannot be packed.
func checkTraffic(t *testing.T, got Traffic, c Compression, old bool, bytes, noise int64) {
	t.Helper()
	if got.Bytes < bytes || got.Bytes > bytes+bytes/100 {
		t.Errorf("%d bytes are counted, want %d and a little", got.Bytes, bytes)
	}
	if c == CompressionOff || old {
		if got.Sent != got.Bytes {
			t.Errorf("%d bytes went out as %d: packed, and should not be", got.Bytes, got.Sent)
		}
	} else if most := noise + (bytes-noise)*3/4; got.Sent > most || got.Sent < noise {
		t.Errorf("%d bytes went out as %d, want %d to %d", got.Bytes, got.Sent, noise, most)
	}
}

// An answer that claims to unpack to more than may be asked for is refused.
func TestAnswerThatUnpacksToTooMuchIsRefused(t *testing.T) {
	body := s2.Encode(nil, make([]byte, 8<<20))
	for _, n := range []uint32{8 << 20, 1 << 20, 1 << 31} {
		reply := &peerpb.CallReply{Body: body, Encoding: peerpb.Encoding_ENCODING_S2, Unpacked: n}
		if err := unpackReply(reply, 4<<20); err == nil {
			t.Errorf("%d bytes were taken", len(reply.GetBody()))
		}
	}
}

func BenchmarkPack(b *testing.B) {
	for what, data := range map[string][]byte{"pages": pages(256 << 10), "random": random(256 << 10)} {
		for name, c := range packings {
			b.Run(what+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				sent := len(data)
				for b.Loop() {
					if packed := pack(c, [][]byte{data}, len(data)); packed != nil {
						sent = packed.Len()
						packed.Free()
					}
				}
				b.ReportMetric(float64(sent)/float64(len(data)), "sent/byte")
			})
		}
		for name, c := range packings {
			packed := pack(c, [][]byte{data}, len(data))
			if packed == nil {
				continue
			}
			b.Run(what+"/un"+name, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				dst := make([]byte, len(data))
				for b.Loop() {
					if err := unpack(c, dst, packed.ReadOnlyData()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
