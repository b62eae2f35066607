package cutdisk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// mounted is a disk with the directory it is mounted at.
type mounted struct {
	t       *testing.T
	d       *Disk
	dir     string
	unmount func() error
}

func mount(t *testing.T) *mounted {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("mounting needs root")
	}
	m := &mounted{t: t, d: New(), dir: t.TempDir()}
	m.again()
	t.Cleanup(func() {
		if err := m.unmount(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *mounted) again() {
	m.t.Helper()
	var err error
	if m.unmount, err = m.d.Mount(m.dir); err != nil {
		m.t.Fatal(err)
	}
}

// cut loses the power and has it back.
func (m *mounted) cut(seed uint64) Loss {
	m.t.Helper()
	if err := m.unmount(); err != nil {
		m.t.Fatal(err)
	}
	m.d.PowerOff()
	l := m.d.PowerOn(rand.New(rand.NewPCG(seed, 0)))
	m.again()
	return l
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mounted) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mounted) sync(name string) {
	m.t.Helper()
	f, err := os.Open(m.path(name))
	m.check(err)
	m.check(errors.Join(f.Sync(), f.Close()))
}

// What was synced is there after every cut; what was not is sometimes there, sometimes not, and sometimes in part.
func TestWhatIsNotSyncedMayBeLost(t *testing.T) {
	m := mount(t)
	synced, later := bytes.Repeat([]byte{1}, 64<<10), bytes.Repeat([]byte{2}, 64<<10)
	outcomes := map[string]int{}
	for seed := range uint64(60) {
		m.check(os.RemoveAll(m.path("d")))
		m.check(os.Mkdir(m.path("d"), 0o700))
		m.check(os.WriteFile(m.path("d/kept"), synced, 0o600))
		m.sync("d/kept")
		m.sync("d")
		m.sync(".")
		f, err := os.OpenFile(m.path("d/kept"), os.O_RDWR, 0)
		m.check(err)
		_, err = f.WriteAt(later, 0)
		m.check(errors.Join(err, f.Close()))
		m.check(os.WriteFile(m.path("d/new"), later, 0o600))
		m.check(os.Rename(m.path("d/new"), m.path("d/renamed")))
		m.cut(seed)
		got, err := os.ReadFile(m.path("d/kept"))
		m.check(err)
		if len(got) != len(synced) {
			t.Fatalf("%d bytes", len(got))
		}
		for at := 0; at < len(got); at += sectorBytes {
			if s := got[at : at+sectorBytes]; !bytes.Equal(s, synced[:sectorBytes]) && !bytes.Equal(s, later[:sectorBytes]) {
				t.Fatalf("sector at %d is neither", at)
			}
		}
		switch {
		case bytes.Equal(got, synced):
			outcomes["lost"]++
		case bytes.Equal(got, later):
			outcomes["kept"]++
		default:
			outcomes["torn"]++
		}
		_, errNew := os.Stat(m.path("d/new"))
		_, errRenamed := os.Stat(m.path("d/renamed"))
		outcomes[fmt.Sprintf("new %v renamed %v", errNew == nil, errRenamed == nil)]++
		if errNew == nil && errRenamed == nil {
			t.Error("a file under both of its names")
		}
	}
	for _, want := range []string{"lost", "kept", "torn", "new false renamed false", "new true renamed false", "new false renamed true"} {
		if outcomes[want] == 0 {
			t.Errorf("never: %s; %v", want, outcomes)
		}
	}
}

// fsync of a file does not keep its name, that of a directory does not keep its files' data.
func TestNamesAndDataAreSyncedApart(t *testing.T) {
	m := mount(t)
	gone, empty := 0, 0
	for seed := range uint64(40) {
		m.check(os.WriteFile(m.path("unnamed"), []byte("data"), 0o600))
		m.sync("unnamed")
		m.cut(seed)
		if _, err := os.Stat(m.path("unnamed")); errors.Is(err, fs.ErrNotExist) {
			gone++
		} else {
			m.check(os.Remove(m.path("unnamed")))
		}
		m.check(os.WriteFile(m.path("unsynced"), []byte("data"), 0o600))
		m.sync(".")
		m.cut(seed + 1000)
		if got, err := os.ReadFile(m.path("unsynced")); err != nil {
			t.Fatal(err)
		} else if !bytes.Equal(got, []byte("data")) {
			empty++
		}
		m.check(os.Remove(m.path("unsynced")))
		m.sync(".")
	}
	if gone == 0 || empty == 0 {
		t.Errorf("lost %d names and %d contents of 40", gone, empty)
	}
}

// What databases do with files works: holes, sizes, mappings, locks.
func TestItIsAFileSystem(t *testing.T) {
	m := mount(t)
	f, err := os.Create(m.path("f"))
	m.check(err)
	defer f.Close()
	m.check(syscall.Fallocate(int(f.Fd()), 0, 0, 1<<20))
	_, err = f.WriteAt(bytes.Repeat([]byte{7}, 10000), 5000)
	m.check(err)
	m.check(syscall.Fallocate(int(f.Fd()), 3, 8192, 4096)) // punch a hole, keep the size
	want := make([]byte, 1<<20)
	copy(want[5000:], bytes.Repeat([]byte{7}, 10000))
	clear(want[8192 : 8192+4096])
	mapping, err := syscall.Mmap(int(f.Fd()), 0, 1<<20, syscall.PROT_READ, syscall.MAP_SHARED)
	m.check(err)
	if got, err := os.ReadFile(m.path("f")); err != nil || !bytes.Equal(got, want) || !bytes.Equal(mapping, want) {
		t.Errorf("%d bytes differ, %v", len(got), err)
	}
	m.check(syscall.Munmap(mapping))
	m.check(f.Truncate(6000))
	m.check(f.Truncate(1 << 20))
	clear(want[6000:])
	if got, err := os.ReadFile(m.path("f")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after truncation: %v", err)
	}
	m.check(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	m.check(os.MkdirAll(m.path("a/b"), 0o700))
	m.check(os.Rename(m.path("a"), m.path("c")))
	if err := os.Remove(m.path("c")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("removal of a directory with something in it: %v", err)
	}
	if list, err := os.ReadDir(m.dir); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
}

// A disk without power answers nothing: neither does a sync that was under way.
func TestWithoutPowerNothingIsAnswered(t *testing.T) {
	m := mount(t)
	m.check(os.WriteFile(m.path("f"), []byte("x"), 0o600))
	m.sync("f")
	m.sync(".")
	m.d.PowerOff()
	cmd := exec.Command("dd", "if=/dev/zero", "of="+m.path("f"), "conv=fsync", "bs=1", "count=1", "status=none")
	m.check(cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		t.Fatalf("it was answered: %v", err)
	case <-time.After(300 * time.Millisecond): // long enough for what takes microseconds
	}
	m.check(cmd.Process.Kill())
	<-done
	m.check(m.unmount())
	m.d.PowerOn(rand.New(rand.NewPCG(1, 1)))
	m.again()
	if got, err := os.ReadFile(m.path("f")); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
}

// A part that is broken fails in everything, also for who has had a file open before; the rest does not, and what replaces it is empty.
func TestBrokenPartFails(t *testing.T) {
	m := mount(t)
	for _, name := range []string{"good", "bad"} {
		if err := os.Mkdir(m.path(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(m.path(name+"/f"), []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(m.path("bad/f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.d.Break("bad")
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(m.path("bad/new"), nil, 0o600); !errors.Is(err, syscall.EIO) {
		t.Errorf("new file: %v", err)
	}
	if b, err := os.ReadFile(m.path("good/f")); err != nil || string(b) != "data" {
		t.Errorf("beside it: %q, %v", b, err)
	}
	if err := m.unmount(); err != nil {
		t.Fatal(err)
	}
	m.d.Replace()
	m.again()
	if list, err := os.ReadDir(m.path("bad")); err != nil || len(list) != 0 {
		t.Errorf("a new disk holds %v, %v", list, err)
	}
	if _, err := os.Stat(m.path("good/f")); err != nil {
		t.Error(err)
	}
}
