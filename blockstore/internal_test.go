package blockstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
)

func TestSlotsAreTakenFromTheFrontAndOnlyOnce(t *testing.T) {
	for _, count := range []uint32{1, 62, 63, 64, 65, 130} {
		s := newSlots(count)
		all, err := s.take(int(count), nil)
		if err != nil || all[0] != 1 || all[len(all)-1] != count {
			t.Fatalf("%d slots: took %v, %v", count, all, err)
		}
		if _, err := s.take(1, nil); !errors.Is(err, block.ErrNoSpace) {
			t.Fatalf("took more than there are: %v", err)
		}
		for _, slot := range []uint32{0, 1, count, count + 1, lostSlot} {
			if s.mark(slot) {
				t.Errorf("%d slots: slot %d could be marked", count, slot)
			}
		}
		s.release(all[len(all)-1])
		s.release(all[0])
		if again, err := s.take(1, nil); err != nil || again[0] != 1 {
			t.Errorf("took %v, %v, want the lowest", again, err)
		}
	}
}

// TestLayoutsDoNotOverlap looks at where everything of a pool lies that has grown twice.
func TestLayoutsDoNotOverlap(t *testing.T) {
	for _, slots := range []uint32{1, 63, 64, 1024, 1025, 5000} {
		first := planRegion(superblockBytes, slots)
		second := planRegion(first.end(), slots/2+1)
		l := newLayout([]region{first, second, planRegion(second.end(), 3)})
		if MediumBytes(int64(slots)*block.ChunkSize) != first.end() {
			t.Errorf("%d slots: MediumBytes says %d, the region ends at %d", slots, MediumBytes(int64(slots)*block.ChunkSize), first.end())
		}
		if got, err := CapacityOf(first.end()); err != nil || got != int64(slots)*block.ChunkSize {
			t.Errorf("%d slots: capacity of its medium %d, %v", slots, got, err)
		}
		taken := map[int64]string{}
		claim := func(what string, from, n int64) {
			for at := from / 256; at < (from+n)/256; at++ {
				if was := taken[at]; was != "" {
					t.Fatalf("%d slots: %s lies where %s is", slots, what, was)
				}
				taken[at] = what
			}
		}
		claim("superblock", 0, superblockBytes)
		for slot := uint32(1); slot <= l.slots; slot += 1 + l.slots/300 {
			claim("data", l.slotOffset(slot), block.ChunkSize)
			claim("checksums", l.sumsOffset(slot), sumsPerSlotBytes)
		}
		for page := uint32(1); page <= l.pages; page++ {
			claim("page", l.pageOffset(page), pageBytes)
		}
	}
}

func TestPathsSeeTheirOwnEpochs(t *testing.T) {
	p := path{{1, 4}}
	p = p.with(5)
	back := path{{1, 2}}.with(6).with(7).with(9)
	for epoch, want := range map[uint32][2]bool{0: {true, true}, 1: {true, true}, 2: {true, true}, 3: {true, false}, 5: {true, false}, 6: {false, true}, 7: {false, true}, 8: {false, false}, 9: {false, true}, 10: {false, false}} {
		if p.sees(epoch) != want[0] || back.sees(epoch) != want[1] {
			t.Errorf("epoch %d: %v sees it: %t; %v sees it: %t", epoch, p, p.sees(epoch), back, back.sees(epoch))
		}
	}
	d := decoder{b: back.append(nil)}
	if got := decodePath(&d); !reflect.DeepEqual(got, back) || d.short {
		t.Errorf("decoded %v, want %v", got, back)
	}
}

// TestLeavesKeepTheirLayers compares a leaf with plain lists, through changes and the encoding.
func TestLeavesKeepTheirLayers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	l := new(leaf)
	var want [leafChunks][]layer
	for range 3000 {
		at := uint32(rnd.IntN(leafChunks))
		var list []layer
		for epoch := uint32(rnd.IntN(9)); epoch > 0; epoch-- {
			y := layer{bits: rnd.Uint64(), epoch: epoch, slot: uint32(rnd.IntN(4)) * 7, chunk: uint8(at)}
			if rnd.IntN(4) == 0 {
				y.bits = 0
			}
			list = append(list, y)
		}
		l.setLayers(at, append([]layer(nil), list...))
		l.index[at] = uint64(len(list))
		want[at] = nil
		for _, y := range list {
			if y.bits != 0 {
				want[at] = append(want[at], y)
			}
		}
		if got := l.layers(at, nil); !reflect.DeepEqual(got, want[at]) {
			t.Fatalf("chunk %d has %v, want %v", at, got, want[at])
		}
	}
	encoded := l.encode(nil)
	if len(encoded) != l.size() {
		t.Errorf("encoded %d bytes, size says %d", len(encoded), l.size())
	}
	again, ok := decodeLeaf(encoded)
	if !ok {
		t.Fatal("a leaf does not decode")
	}
	for at := range want {
		if got := again.layers(uint32(at), nil); !reflect.DeepEqual(got, want[at]) || again.index[at] != l.index[at] {
			t.Errorf("chunk %d decodes to %v, want %v", at, got, want[at])
		}
	}
	for n := range encoded {
		if _, ok := decodeLeaf(encoded[:n]); ok {
			t.Fatalf("%d bytes of %d decode", n, len(encoded))
		}
	}
}

// TestChecksumsOutliveTheirCache uses far more pages than the cache holds.
func TestChecksumsOutliveTheirCache(t *testing.T) {
	const slots = 40 * sumFramesPerShard * 16
	l := newLayout([]region{planRegion(superblockBytes, slots)})
	dev, err := vfs.NewArena(l.regions[0].pages)
	if err != nil {
		t.Fatal(err)
	}
	s := newCachedSums(dev, &l)
	step := uint32(16 * sumShards) // all in one shard
	for slot := uint32(1); slot <= slots-step; slot += step {
		if err := s.set(slot, 3, 5, []uint32{slot}); err != nil {
			t.Fatal(err)
		}
		if err := s.set(slot, 4, 2, []uint32{slot + 1, slot + 2}); err != nil {
			t.Fatal(err)
		}
	}
	frames := 0
	for i := range s.shards {
		frames += len(s.shards[i].ring)
		if len(s.shards[i].ring) > sumFramesPerShard {
			t.Errorf("a shard holds %d frames", len(s.shards[i].ring))
		}
	}
	if frames < 2 {
		t.Fatalf("%d frames", frames)
	}
	check := func(s *cachedSums) {
		t.Helper()
		var got [8]uint32
		for slot := uint32(1); slot <= slots-step; slot += step {
			if err := s.get(slot, 2, got[:]); err != nil {
				t.Fatal(err)
			}
			if got != [8]uint32{0, slot, slot + 1, slot + 2, slot, slot, 0, 0} {
				t.Fatalf("slot %d has %v", slot, got)
			}
		}
	}
	check(s)
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	check(newCachedSums(dev, &l))
}

func openTestPool(t *testing.T, dir string) *Pool {
	t.Helper()
	p, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: 4 * block.ChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rewrite changes the data file of a closed pool.
func rewrite(t *testing.T, dir string, change func(b []byte)) {
	t.Helper()
	path := filepath.Join(dir, dataFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMediaOfOthersAreRefusedAndRottenHeadersAreNot(t *testing.T) {
	superblocks := func(b []byte, fn func(s []byte)) {
		for _, copies := range superblockOffsets {
			for _, off := range copies {
				fn(b[off : off+pageBytes])
			}
		}
	}
	for name, c := range map[string]struct {
		damage func(b []byte)
		want   string // of the error; empty: none
	}{
		"one superblock rotten": {damage: func(b []byte) { b[superblockOffsets[1][0]+30] ^= 1 }},
		"header rotten":         {damage: func(b []byte) { b[20] ^= 1 }},
		"magic rotten":          {damage: func(b []byte) { b[0] ^= 1 }},
		"header zeroed":         {damage: func(b []byte) { clear(b[:512]) }},
		"all superblocks rotten": {
			damage: func(b []byte) { superblocks(b, func(s []byte) { s[40] ^= 1 }) }, want: "superblocks",
		},
		"another version": {
			damage: func(b []byte) {
				superblocks(b, func(s []byte) {
					if string(s[:8]) == superblockMagic {
						s[8] = 9
						sum := sumWithout(s, 12)
						s[12], s[13], s[14], s[15] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
					}
				})
			}, want: ErrVersion.Error(),
		},
		"overwritten by other software": {damage: func(b []byte) { copy(b, "LABELONE") }, want: "overwritten"},
		"other software":                {damage: func(b []byte) { clear(b); copy(b, "LABELONE") }, want: "no pool"},
	} {
		dir := t.TempDir()
		p := openTestPool(t, dir)
		if _, err := p.Create("v", block.Geometry{Capacity: 8, LogicalBlockBytes: 512}); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		rewrite(t, dir, c.damage)
		p, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir})
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got error %v, want one about %q", name, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ids, err := p.Volumes(); err != nil || len(ids) != 1 {
			t.Errorf("%s: volumes %v, %v", name, ids, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFilePoolIsGuarded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "pool")
	p := openTestPool(t, dir)
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir}); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("opening twice: %v", err)
	}
	v, err := p.Create("v", block.Geometry{Capacity: block.CountOf(20 * block.ChunkSize), LogicalBlockBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{7}, block.Size)
	write := func(index uint64, chunk int64) error {
		return v.Apply(index, []block.Op{{Kind: block.OpWrite, Range: block.BytesRange(chunk*block.ChunkSize, block.Size), Data: data, Sums: block.AppendSums(nil, data)}})
	}
	for i := range int64(4) {
		if err := write(uint64(i+1), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(9, 9); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("a fifth chunk of four: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: block.ChunkSize}); err == nil || !strings.Contains(err.Error(), "shrink") {
		t.Errorf("shrinking: %v", err)
	}
	p, err = OpenPool(PoolConfig{Media: MediaFile, Dir: dir, CapacityBytes: 9*block.ChunkSize + 5, Preallocate: true})
	if err != nil {
		t.Fatal(err)
	}
	if v, err = p.Open("v"); err != nil {
		t.Fatal(err)
	}
	for i := int64(4); i < 9; i++ {
		if err := write(uint64(i+10), i); err != nil {
			t.Errorf("chunk %d after growing: %v", i, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = OpenPool(PoolConfig{Media: MediaFile, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if got := p.Usage(); got.CapacityBytes != 9*block.ChunkSize || got.AllocatedBytes != 9*block.ChunkSize {
		t.Errorf("after growing and opening again: %+v", got)
	}
	if v, err = p.Open("v"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, block.Size)
	for i := range int64(9) {
		if err := v.ReadAt(block.BytesRange(i*block.ChunkSize, block.Size), got); err != nil || !bytes.Equal(got, data) {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// A data file that was cut off is someone's mistake, not a new pool.
	if err := os.Truncate(filepath.Join(dir, dataFile), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPool(PoolConfig{Media: MediaFile, Dir: dir}); err == nil || !strings.Contains(err.Error(), "CapacityBytes") {
		t.Errorf("data file emptied: %v", err)
	}
}

func TestConfigNamesTheField(t *testing.T) {
	for want, c := range map[string]PoolConfig{
		"Media":         {Media: "tape"},
		"Dir":           {Media: MediaFile},
		"Path":          {Media: MediaDevice},
		"CapacityBytes": {Media: MediaRAM},
		"capacity":      {Media: MediaRAM, CapacityBytes: 1},
	} {
		if _, err := OpenPool(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got error %v, want one about %s", c, err, want)
		}
	}
	p, err := OpenPool(PoolConfig{Media: MediaRAM, CapacityBytes: 1 << 20})
	if err != nil || p.Usage().CapacityBytes != 1<<20 {
		t.Fatalf("RAM pool: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
