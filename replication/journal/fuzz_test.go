package journal

import (
	"testing"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs/crashdev"
)

// FuzzOpen opens journals in which bytes were changed anywhere: it must neither panic nor make entries up.
func FuzzOpen(f *testing.F) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(f, folder, small)
	l := mustLog(f, j, "a")
	mustStore(f, l, sized(1, 4, 1, 3000))
	if err := l.SetUint64([]byte("CurrentTerm"), 3); err != nil {
		f.Fatal(err)
	}
	mustStore(f, l, entries(5, 9, 2))
	if err := l.DeleteRange(1, 2); err != nil {
		f.Fatal(err)
	}
	want := append(sized(3, 4, 1, 3000), entries(5, 9, 2)...)
	if err := j.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte("SJs1"), uint32(4100), []byte{1, 2, 3})
	f.Add(uint32(4096+48), []byte{255, 255, 255, 255}, uint32(8192), []byte("SJf1"))
	f.Fuzz(func(t *testing.T, at uint32, with []byte, at2 uint32, with2 []byte) {
		folder := folder.Clone(crashdev.NewPower(-1))
		d := folder.Dev(segmentName(1))
		for _, w := range []struct {
			at   uint32
			with []byte
		}{{at, with}, {at2, with2}} {
			off := int64(w.at) % (64 << 10)
			if err := d.WriteAt(w.with[:min(len(w.with), 4096)], off); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
		// Without the goroutines of a journal that is written to: the fuzzer wants the same coverage for the same input.
		j := &Journal{folder: folder, opts: small, index: newIndex(), logs: map[string]*groupLog{}}
		j.cache.limit = small.CacheBytes
		r := &recovery{folder: folder, index: j.index, log: func(block.Finding) {}}
		defer func() { _ = r.close() }()
		if r.run() != nil {
			return
		}
		j.index.done()
		if r.suspects()["a"] != nil {
			return
		}
		l, err := j.Log("a")
		if err != nil {
			return
		}
		for _, w := range want {
			var got raft.Log
			if l.GetLog(w.Index, &got) == nil && (got.Term != w.Term || string(got.Data) != string(w.Data)) {
				t.Fatalf("entry %d of term %d is %q", w.Index, got.Term, got.Data)
			}
		}
	})
}
