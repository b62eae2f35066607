package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/command"
)

// blocksOf is data of one block for each letter: zeros for ".".
func blocksOf(pattern string) []byte {
	var b []byte
	for _, c := range []byte(pattern) {
		if c == '.' {
			c = 0
		}
		b = append(b, bytes.Repeat([]byte{c}, block.Size)...)
	}
	return b
}

// The operations of a write come to what was written, within their bounds, and zeros come last.
func TestZerosAreCutOutOfAWriteExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "blocks")
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		mean := rapid.SampledFrom([]int{1, 2, 5, 40}).Draw(t, "run")
		data := make([]byte, n*block.Size)
		runs, longest := 0, 0
		for i, zero := 0, rnd.IntN(2) == 0; i < n; zero = !zero {
			length := min(n-i, 1+rnd.IntN(2*mean))
			for k := range length {
				if !zero {
					data[(i+k)*block.Size+[]int{0, 8, block.Size - 1}[rnd.IntN(3)]] = 1
				}
			}
			if i += length; zero {
				runs, longest = runs+1, max(longest, length)
			}
		}
		at := block.BytesRange(7*block.Size, int64(len(data)))
		g := &Group{}
		if ops := g.writeOps(at, data); len(ops) != 1 || ops[0].Kind != block.OpWrite || ops[0].Range != at {
			t.Fatalf("off: %+v", ops)
		}
		g.DetectZeros(true)
		ops := g.writeOps(at, data)
		got, covered := bytes.Repeat([]byte{0xEE}, len(data)), int64(0)
		zeros, found := 0, 0
		for _, op := range ops {
			if err := errors.Join(op.Check(1<<20), op.Verify()); err != nil {
				t.Fatal(err)
			}
			part := got[op.Range.Offset()-at.Offset():][:op.Range.Bytes()]
			if covered += op.Range.Bytes(); op.Kind == block.OpZero {
				clear(part)
				zeros, found = zeros+1, max(found, len(part)/block.Size)
			} else if zeros > 0 {
				t.Fatal("data after zeros")
			} else {
				copy(part, op.Data)
			}
		}
		if !bytes.Equal(got, data) || covered != int64(len(data)) {
			t.Fatal("the operations come to something else")
		}
		if zeros != min(runs, maxZeroRuns) || found != longest {
			t.Fatalf("%d runs, the longest of %d blocks, of %d and %d", zeros, found, runs, longest)
		}
		if parts := split(&write{}, ops); len(data) <= entryTargetBytes && len(ops) > 1 && len(parts) != 1 {
			t.Fatalf("a write of %d bytes became %d entries of %d bytes", len(data), len(parts), command.Size(ops))
		}
	})
}

// Blocks written as zeros are unmapped on every copy, what surrounds them is exact, and a chunk of them is given back.
func TestWrittenZerosTakeNoSpace(t *testing.T) {
	c := newCluster(t, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	owner := c.owner()
	g, chunk := c.group(owner), make([]byte, block.ChunkSize)
	free := c.nodes[owner].vol.FreeBytes()
	expect := make([]byte, 4<<20)
	proposed := func() uint64 {
		g.writes.mu.Lock()
		defer g.writes.mu.Unlock()
		return g.writes.nextID
	}
	write := func(off int64, data []byte) {
		t.Helper()
		before := proposed()
		if err := g.Write(ctx, g.Fence(), block.BytesRange(off, int64(len(data))), data); err != nil {
			t.Fatal(err)
		}
		copy(expect[off:], data)
		if n := proposed() - before; n != 1 && len(data) <= block.ChunkSize {
			t.Fatalf("a write of %d bytes became %d entries", len(data), n)
		}
	}
	// allocated is a letter for each block: "." for those that are not stored.
	allocated := func(first, n int) string {
		t.Helper()
		var out []byte
		for i := range n {
			on, _, err := g.Allocated(ctx, blockRange(first+i))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, ".x"[map[bool]int{true: 1}[on]])
		}
		return string(out)
	}
	check := func(what string, first int, want string) {
		t.Helper()
		if got := allocated(first, len(want)); got != want {
			t.Fatalf("%s: allocated %s, want %s", what, got, want)
		}
		got := make([]byte, len(expect))
		if err := g.Read(ctx, block.BytesRange(0, int64(len(got))), got); err != nil || !bytes.Equal(got, expect) {
			t.Fatalf("%s: reads something else, %v", what, err)
		}
	}

	write(0, chunk)
	check("off: stored", 0, "xxxxxxxx")
	g.DetectZeros(true)
	write(0, blocksOf("ab..c.d."))
	check("mixed", 0, "xx..x.x.x")
	write(0, chunk)
	check("a chunk of zeros", 0, "........")
	eventually(t, "both copies have the chunk back", func() bool {
		c.group("a").dueCheckpoint()
		c.group("b").dueCheckpoint()
		return c.nodes["a"].vol.FreeBytes() == free && c.nodes["b"].vol.FreeBytes() == free
	})
	write(block.ChunkSize, chunk)
	if n := c.nodes[owner].vol.Usage().AllocatedBytes; n != 0 {
		t.Fatalf("zeros where nothing was allocate %d bytes", n)
	}

	// Parts of blocks: what is left of a block counts.
	write(10*block.Size+512, bytes.Repeat([]byte{7}, 1024))
	check("part of a block", 10, "x.")
	write(10*block.Size+512, make([]byte, 512))
	check("zeros over part of what it holds", 10, "x.")
	write(10*block.Size, make([]byte, block.Size-512))
	check("and over all of it", 10, "..")
	write(12*block.Size-512, append(bytes.Repeat([]byte{9}, 512), make([]byte, 2*block.Size+512)...))
	check("data before zeros, not aligned", 10, ".x...")

	// More than an entry, and more runs than are taken.
	write(1<<20, bytes.Repeat(append(chunk[:len(chunk)/2:len(chunk)/2], blocksOf("abcd")...), 8))
	check("1.1 MiB", 256+32, "xxxx....")
	write(1<<20, bytes.Repeat(blocksOf("a."), 32))
	check("many short runs", 256+30, "x.xxxx")

	// What reads before it writes says what it stores.
	if at, err := g.CompareAndWrite(ctx, g.Fence(), blockRange(600), make([]byte, block.Size), make([]byte, block.Size)); at >= 0 || err != nil {
		t.Fatal(at, err)
	}
	check("compare and write", 599, ".x.")
	g.DetectZeros(false)
	write(700*block.Size, make([]byte, block.Size))
	check("off again", 699, ".x.")

	compareCopies(t, c, "a", "b")
	if a, b := c.nodes["a"].vol.Usage(), c.nodes["b"].vol.Usage(); a.StoredBytes != b.StoredBytes || a.AllocatedBytes != b.AllocatedBytes {
		t.Fatalf("the copies hold %+v and %+v", a, b)
	}
	space, err := g.Space(ctx)
	if err != nil || space.Live.StoredBytes != c.nodes[owner].vol.Usage().StoredBytes || space.Live.StoredBytes == 0 {
		t.Fatalf("%+v, %v", space, err)
	}
}

// Zeros need no room: a full pool takes them where nothing is stored, over what is, and mixed with overwrites, also where they take
// the place of all that a chunk holds.
func TestFullPoolTakesWrittenZeros(t *testing.T) {
	c := newClusterWith(t, &cluster{pool: 8 << 20}, blockstore.MediaFile, "a", "b", "w")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	g := c.group(c.owner())
	g.DetectZeros(true)
	write := func(n int, data []byte) error {
		return g.Write(ctx, g.Fence(), block.BytesRange(int64(n)*block.Size, int64(len(data))), data)
	}
	const chunks = 8 << 20 / block.ChunkSize
	for n := range chunks {
		if err := write(n*chunkBlocks, tagged(n*chunkBlocks, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(chunks*chunkBlocks, blocksOf(".a")); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("a mixed write that needs a chunk: %v", err)
	}
	for name, at := range map[string]int{"nothing": (chunks + 3) * chunkBlocks, "a chunk": 3 * chunkBlocks} {
		if err := write(at, make([]byte, block.ChunkSize)); err != nil {
			t.Fatalf("zeros over %s: %v", name, err)
		}
	}
	eventually(t, "what was freed can be used", func() bool { return write(chunks*chunkBlocks, blocksOf("a")) == nil })
	for n := range 3 { // each holds its first block alone
		if err := write(n*chunkBlocks, blocksOf(".b")); err != nil {
			t.Fatalf("data in the room of what becomes zeros: %v", err)
		}
	}
	if v, err := c.read(0); v != 0 || err != nil {
		t.Fatalf("block 0: %d, %v", v, err)
	}
	compareCopies(t, c, "a", "b")
}

// What is off costs nothing, and what is on allocates nothing for data that has no zeros.
func TestZeroDetectionAllocatesNothingForData(t *testing.T) {
	data := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, 0x0100000000000000), 256<<10/8)
	r, g := block.BytesRange(0, int64(len(data))), &Group{}
	var sink []block.Op
	allocs := func() float64 { return testing.AllocsPerRun(50, func() { sink = g.writeOps(r, data) }) }
	plain := testing.AllocsPerRun(50, func() { sink = []block.Op{dataOp(r, data)} })
	off := allocs()
	g.DetectZeros(true)
	if on := allocs(); !underRace && (off != plain || on != plain) {
		t.Errorf("%v allocations without, %v off, %v on", plain, off, on)
	}
	_ = sink
}

// BenchmarkWriteOps is what becomes of a write of 256 KiB before it is proposed: above all, its checksums.
func BenchmarkWriteOps(b *testing.B) {
	data, zeros := bytes.Repeat([]byte{1}, 256<<10), make([]byte, 256<<10)
	late := make([]byte, 256<<10) // the last byte of each block gives it away
	for i := block.Size - 1; i < len(late); i += block.Size {
		late[i] = 1
	}
	for name, src := range map[string][]byte{"data": data, "zeros": zeros, "late": late} {
		for _, on := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/detection=%t", name, on), func(b *testing.B) {
				g := &Group{}
				g.DetectZeros(on)
				b.SetBytes(int64(len(src)))
				b.ReportAllocs()
				for b.Loop() {
					_ = g.writeOps(block.BytesRange(0, int64(len(src))), src)
				}
			})
		}
	}
}

// In an entry that several writes share the zeros of one must not come before the data of another either.
func TestZerosComeLastInAnEntry(t *testing.T) {
	data := func(at int64) block.Op {
		return block.Op{Kind: block.OpWrite, Range: block.BytesRange(at*block.Size, block.Size)}
	}
	zeros := func(at int64) block.Op {
		return block.Op{Kind: block.OpZero, Range: block.BytesRange(at*block.Size, block.Size)}
	}
	got := packed([]*part{{ops: []block.Op{zeros(4)}}, {ops: []block.Op{data(0), zeros(1)}}, {ops: []block.Op{data(2)}}})
	want := []block.Op{data(0), data(2), zeros(4), zeros(1)}
	if !slices.EqualFunc(got, want, func(a, b block.Op) bool { return a.Kind == b.Kind && a.Range == b.Range }) {
		t.Errorf("%+v", got)
	}
	one := []block.Op{data(0), zeros(1)}
	if got := packed([]*part{{ops: one}}); len(got) != 2 || &got[0] != &one[0] {
		t.Errorf("of one write: %+v", got)
	}
}
