package pools

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
)

const mib = 1 << 20

func open(t *testing.T, dir, node string, configured ...Spec) *Set {
	t.Helper()
	s, err := Open(Config{Dir: dir, Cluster: "lab", Node: node, Configured: configured})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func files(path string) Spec {
	return Spec{Media: blockstore.MediaFile, Path: path, CapacityBytes: 64 * mib, Class: catalog.ClassHDD, Sparse: true}
}

func add(t *testing.T, s *Set, spec Spec) *Pool {
	t.Helper()
	p, err := s.Add(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func unused() ([]string, error) { return nil, nil }

func TestPoolsAreRememberedAndTakenBack(t *testing.T) {
	data, dir := t.TempDir(), filepath.Join(t.TempDir(), "p")
	s := open(t, data, "a")
	spec := files(dir)
	spec.ID = catalog.NewID()
	p := add(t, s, spec)
	if p.Name != "hdd1" || p.Usage().CapacityBytes != 64*mib {
		t.Errorf("%+v", p)
	}
	if again := add(t, s, spec); again != p || len(s.List()) != 1 {
		t.Error("asked twice, made twice")
	}
	ram := add(t, s, Spec{Media: blockstore.MediaRAM, CapacityBytes: 64 * mib, Name: "fast"})
	if ram.Class != catalog.ClassRAM {
		t.Error(ram.Class)
	}
	store, err := p.Store()
	if err != nil {
		t.Fatal(err)
	}
	v, err := store.Create("v", block.Geometry{Capacity: block.CountOf(mib), LogicalBlockBytes: 512})
	if err := errors.Join(err, v.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, data, "a")
	back, ok := s.Get("hdd1")
	if !ok || back.ID != p.ID || back.Class != catalog.ClassHDD || back.Err() != nil || len(s.List()) != 2 {
		t.Fatalf("%+v", back)
	}
	if store, _ = back.Store(); store != nil {
		if names, err := store.Volumes(); err != nil || len(names) != 1 {
			t.Errorf("%v, %v", names, err)
		}
	}
	if err := s.Remove("hdd1", Removal{InUse: unused}); err != nil {
		t.Fatal(err)
	}
	if has, err := blockstore.HasPool(dir); !has || err != nil {
		t.Errorf("removing it without wiping it took its files: %v", err)
	}
	s2 := add(t, s, files(dir)) // its way back
	if store, err = s2.Store(); err != nil {
		t.Fatal(err)
	}
	if names, err := store.Volumes(); err != nil || len(names) != 1 {
		t.Errorf("taken back without what was in it: %v, %v", names, err)
	}
}

func TestAddRefuses(t *testing.T) {
	data, other := t.TempDir(), t.TempDir()
	s := open(t, data, "a", Spec{Name: NameFile, Media: blockstore.MediaFile, Path: filepath.Join(data, "pool"), CapacityBytes: 64 * mib})
	taken := filepath.Join(t.TempDir(), "taken")
	spec := files(taken)
	spec.Name = "slow"
	add(t, s, spec)
	foreign := filepath.Join(t.TempDir(), "foreign")
	b := open(t, other, "b")
	add(t, b, files(foreign))
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "photo"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(taken, link); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "fresh")
	with := func(change func(*Spec)) Spec {
		spec := files(fresh)
		change(&spec)
		return spec
	}
	for want, spec := range map[string]Spec{
		"is not absolute":               with(func(s *Spec) { s.Path = "relative" }),
		"too small":                     with(func(s *Spec) { s.CapacityBytes = 64*mib - 1 }),
		"cannot be the name":            with(func(s *Spec) { s.Name = "Slow" }),
		`is kept for`:                   with(func(s *Spec) { s.Name = NameRAM }),
		`has a pool "slow" already`:     with(func(s *Spec) { s.Name = "slow" }),
		`class "ram" of a pool on file`: with(func(s *Spec) { s.Class = catalog.ClassRAM }),
		`is pool "slow" of this node`:   files(link),
		`is pool "file" of this node`:   files(filepath.Join(data, "pool")),
		`of node "b" of cluster "lab"`:  files(foreign),
		"there is photo in it":          files(full),
		"no such file or directory":     files(filepath.Join(fresh, "deeper", "still")),
		"not a block device":            {Media: blockstore.MediaDevice, Path: full},
		`media "tape"`:                  {Media: "tape", Path: "/x"},
		"has no path":                   {Media: blockstore.MediaRAM, Path: "/x", CapacityBytes: 64 * mib},
		"open in another process":       {Media: blockstore.MediaFile, Path: foreign, CapacityBytes: 64 * mib, Class: catalog.ClassSSD, Force: true},
	} {
		p, err := s.Add(spec)
		var refusal *Refusal
		if !errors.As(err, &refusal) || !strings.Contains(err.Error(), want) || refusal.Next == "" {
			t.Errorf("%+v: %+v, %v; want %q", spec, p, err, want)
		}
	}
	if _, err := os.Stat(fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refusal left %s: %v", fresh, err)
	}
	if _, err := os.Stat(filepath.Join(full, "photo")); err != nil || len(s.List()) != 2 {
		t.Errorf("%v, %d pools", err, len(s.List()))
	}
	// By force, once nobody has it.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	forced := files(foreign)
	forced.Force = true
	add(t, s, forced)
	if b = open(t, other, "b"); b.List()[0].Err() == nil {
		t.Error("node b still believes that the pool is its own")
	}
}

// What is not the pool that was made is not taken for it, nothing is made in its place, and it is not wiped either.
func TestWhatIsNotThePoolIsLeftAlone(t *testing.T) {
	data, dir := t.TempDir(), filepath.Join(t.TempDir(), "p")
	s := open(t, data, "a")
	add(t, s, files(dir))
	if err := errors.Join(s.Close(), os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	s = open(t, data, "a", Spec{Name: NameRAM, Media: blockstore.MediaRAM, CapacityBytes: 64 * mib})
	p, _ := s.Get("hdd1")
	if _, err := p.Store(); err == nil || !strings.Contains(err.Error(), "not mounted") || p.Err() == nil {
		t.Errorf("an empty directory was taken for the pool: %v", err)
	}
	if _, _, err := s.Place(catalog.ClassHDD); err == nil || !strings.Contains(err.Error(), "hdd1") {
		t.Errorf("placed in a pool that is out: %v", err)
	}
	if free := s.FreeBytes(); free[catalog.ClassHDD] != 0 || free[catalog.ClassRAM] != 64*mib {
		t.Errorf("free %v", free)
	}
	// Another node's pool is there now.
	b := open(t, t.TempDir(), "b")
	add(t, b, files(dir))
	if err := errors.Join(b.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, data, "a")
	if err := s.Remove("hdd1", Removal{Wipe: true, InUse: unused}); err == nil || !strings.Contains(err.Error(), `of node "b"`) {
		t.Errorf("wiped: %v", err)
	}
	if has, err := blockstore.HasPool(dir); !has || err != nil || len(s.List()) != 0 {
		t.Errorf("another node's pool was wiped: %v", err)
	}
	if err := os.WriteFile(filepath.Join(data, listFile), []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: data}); err == nil {
		t.Error("a newer list was read")
	}
}

func TestPlaceChoosesTheMostRoomOfTheClass(t *testing.T) {
	s := open(t, t.TempDir(), "a", Spec{Name: NameRAM, Media: blockstore.MediaRAM, CapacityBytes: 640 * mib})
	for name, class := range map[string]catalog.Class{"small": catalog.ClassSSD, "large": catalog.ClassSSD, "slow": catalog.ClassHDD} {
		spec := files(filepath.Join(t.TempDir(), name))
		spec.Name, spec.Class = name, class
		if name == "large" {
			spec.CapacityBytes = 128 * mib
		}
		add(t, s, spec)
	}
	for class, want := range map[catalog.Class]string{catalog.ClassAny: "large", catalog.ClassSSD: "large", catalog.ClassHDD: "slow", catalog.ClassRAM: "ram"} {
		p, release, err := s.Place(class)
		if err != nil || p.Name != want {
			t.Errorf("class %q: %v, %v; want %s", class, p, err, want)
			continue
		}
		if want == "slow" {
			if err := s.Remove(want, Removal{InUse: unused}); err == nil || !strings.Contains(err.Error(), "being made") {
				t.Errorf("removed while a replica is being made in it: %v", err)
			}
		}
		release()
	}
	if free := s.FreeBytes(); free[catalog.ClassAny] != 128*mib || free[catalog.ClassHDD] != 64*mib || free[catalog.ClassSSD] != 128*mib {
		t.Errorf("%v", free)
	}
	var refusal *Refusal
	if err := s.Remove("slow", Removal{InUse: func() ([]string, error) { return []string{"a/1 of LUN vm"}, nil }}); !errors.As(err, &refusal) || !strings.Contains(err.Error(), "a/1 of LUN vm") {
		t.Error(err)
	}
	if _, release, err := s.Place(catalog.ClassHDD); err != nil {
		t.Errorf("a refused removal keeps replicas out: %v", err)
	} else {
		release()
	}
	if err := s.Remove("slow", Removal{Wipe: true, InUse: unused}); err != nil {
		t.Error(err)
	}
	if err := s.Remove("slow", Removal{InUse: unused}); !errors.As(err, &refusal) || !refusal.Missing {
		t.Error(err)
	}
	if err := s.Remove(NameRAM, Removal{InUse: unused}); !errors.As(err, &refusal) || !strings.Contains(err.Error(), "configuration") {
		t.Error(err)
	}
}

// An attempt that does not succeed leaves nothing that hinders the next one.
func TestAFullFileSystemIsARefusalThatLeavesNothing(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	spec := files(filepath.Join("/dev/shm", filepath.Base(t.TempDir())+catalog.NewID()))
	spec.Sparse, spec.CapacityBytes = false, 1<<44 // more than any machine has memory
	var refusal *Refusal
	if _, err := s.Add(spec); !errors.As(err, &refusal) || !strings.Contains(refusal.Next, "--sparse") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(spec.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left %s: %v", spec.Path, err)
	}
}

// ext4 ends at 16 TiB, a little below what a pool for the largest LUN needs.
func TestPoolBeyondTheLargestFileIsRefused(t *testing.T) {
	err := explain(&Pool{Media: blockstore.MediaFile, Path: "/srv/p", capacity: 17 << 40}, fmt.Errorf("extend: %w", &os.PathError{Op: "truncate", Path: "/srv/p/data", Err: syscall.EFBIG}))
	var refusal *Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.What, "/srv/p cannot have a file for") || !strings.Contains(refusal.Next, "XFS") {
		t.Errorf("%v", err)
	}
}
