//go:build linux && loopdev

package pools

import (
	"bytes"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/loopdev"
	"sanctuary/node/catalog"
)

// A device that holds something is refused with what that is, and left as it was. With Force it becomes a pool like any other: what is written is there
// when it is opened again, and nothing is left of what was there, also when the pool has gone.
func TestForceMakesAWorkingPoolOfWhatIsNotFree(t *testing.T) {
	const size = 192 * mib
	put := func(parts map[int64]string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			t.Helper()
			d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			for off, text := range parts {
				err = errors.Join(err, d.WriteAt([]byte(text), off))
			}
			if err := errors.Join(err, d.Sync(), d.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	run := func(name string, args ...string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			t.Helper()
			if _, err := exec.LookPath(name); err != nil {
				t.Skip(err)
			}
			cmd := exec.Command(name, append(args, path)...)
			cmd.Stdin = strings.NewReader("size=16M\nsize=32M\n") // partitions; mkfs reads nothing
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
	}
	partition := "\x00\x01\x02\x03\x83\x01\x02\x03\x00\x08\x00\x00\x00\x00\x01\x00"
	for name, test := range map[string]struct {
		make func(t *testing.T, path string)
		want []string // what is there, as Probe calls it
	}{
		"ext4":      {run("mkfs.ext4", "-q", "-F"), []string{"an ext2, ext3 or ext4 file system"}},
		"xfs":       {put(map[int64]string{0: "XFSB"}), []string{"an XFS file system (at byte 0)"}},
		"gpt":       {run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", "--label", "gpt"), []string{"a partition table (GPT)", "a partition table (MBR)"}},
		"gpt's end": {put(map[int64]string{size - 512: "EFI PART"}), []string{"a partition table (GPT)"}},
		"mbr":       {put(map[int64]string{446: partition, 510: "\x55\xaa"}), []string{"a partition table (MBR)"}},
		"a pool":    {otherPool, []string{"a pool of Sanctuary already (UUID "}},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := loopdev.New(t, loopdev.Config{SizeBytes: size})
			test.make(t, path)
			before, err := vfs.Probe(path)
			if err != nil {
				t.Fatal(err)
			}
			data := t.TempDir()
			s := open(t, data, "a")
			spec := Spec{Media: blockstore.MediaDevice, Path: path, Class: catalog.ClassHDD}
			_, err = s.Add(spec)
			var refusal *Refusal
			if !errors.As(err, &refusal) || !refusal.Conflict || !strings.Contains(refusal.Next, "--force") {
				t.Fatalf("without force: %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("without force: %v, want %q", err, want)
				}
			}
			if after, err := vfs.Probe(path); err != nil || !slices.Equal(after, before) {
				t.Errorf("after the refusal it holds %v, %v; before %v", after, err, before)
			}

			spec.Force = true
			p := add(t, s, spec)
			found, err := vfs.Probe(path)
			if uuid, ours := found.Pool(); err != nil || !ours || slices.Equal(found, before) {
				t.Fatalf("with force it holds %v (%s), %v", found, uuid, err)
			}
			writeEnds(t, p)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, data, "a")
			readEnds(t, s, p.Name)

			if err := s.Remove(p.Name, Removal{Wipe: true, InUse: unused}); err != nil {
				t.Fatal(err)
			}
			left, err := vfs.Probe(path)
			if err != nil || len(left) > 0 && !strings.HasPrefix(left.String(), "data of an unknown kind") {
				t.Errorf("when the pool has gone it holds %v, %v", left, err)
			}
		})
	}
}

// otherPool makes a pool with a volume in it, as another node would have.
func otherPool(t *testing.T, path string) {
	t.Helper()
	s := open(t, t.TempDir(), "b")
	writeEnds(t, add(t, s, Spec{Media: blockstore.MediaDevice, Path: path, Class: catalog.ClassHDD, Name: "other"}))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// firstAndLast are the blocks of volume "v", of 64 MiB, that are written.
var firstAndLast = []int64{0, 64*mib - block.Size}

func endContents(pool string, off int64) []byte {
	return bytes.Repeat([]byte{pool[0], byte(off >> 12), 's', 'u'}, block.Size/4)
}

func writeEnds(t *testing.T, p *Pool) {
	t.Helper()
	store, err := p.Store()
	if err != nil {
		t.Fatal(err)
	}
	v, err := store.Create("v-"+p.Name, block.Geometry{Capacity: block.CountOf(64 * mib), LogicalBlockBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	for i, off := range firstAndLast {
		b := endContents(p.Name, off)
		op := block.Op{Kind: block.OpWrite, Range: block.BytesRange(off, block.Size), Data: b, Sums: block.AppendSums(nil, b)}
		if err := v.Apply(uint64(i+1), []block.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

func readEnds(t *testing.T, s *Set, name string) {
	t.Helper()
	p, ok := s.Get(name)
	if !ok {
		t.Fatalf("no pool %q", name)
	}
	store, err := p.Store()
	if err != nil {
		t.Fatal(err)
	}
	if names, err := store.Volumes(); err != nil || !slices.Equal(names, []string{"v-" + name}) {
		t.Fatalf("volumes %v, %v", names, err)
	}
	v, err := store.Open("v-" + name)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range firstAndLast {
		got := make([]byte, block.Size)
		if err := v.ReadAt(block.BytesRange(off, block.Size), got); err != nil || !bytes.Equal(got, endContents(name, off)) {
			t.Errorf("block at %d: %q, %v", off, got[:8], err)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}
