package cutblock

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func filled(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// What was flushed, or written through, is there after every cut; of the rest each sector has any of what it had.
func TestWhatIsNotFlushedMayBeLost(t *testing.T) {
	t.Parallel()
	const size = 16 * SectorBytes
	outcomes := map[byte]int{}
	whole := map[string]int{}
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 0))
		d := New(1 << 20)
		d.write(filled(1, size), 0, false)
		d.flush()
		d.write(filled(2, size), 0, false)
		d.write(filled(3, size), 0, false)
		d.write(filled(4, size), size, false)
		d.write(filled(5, size), size, true)
		p := make([]byte, 2*size)
		d.read(p, 0)
		if !bytes.Equal(p, append(filled(3, size), filled(5, size)...)) {
			t.Fatal("reads do not see what was written last")
		}
		d.PowerOff()
		if d.write(filled(9, SectorBytes), 0, true) || d.flush() || d.read(make([]byte, SectorBytes), 0) {
			t.Fatal("a disk without power answers")
		}
		l := d.PowerOn(rng)
		d.read(p, 0)
		lost := 0
		for at := 0; at < size; at += SectorBytes {
			s := p[at : at+SectorBytes]
			if !bytes.Equal(s, filled(s[0], SectorBytes)) || s[0] < 1 || s[0] > 3 {
				t.Fatalf("sector at %d has %d…", at, s[0])
			}
			outcomes[s[0]]++
			if s[0] != 3 {
				lost++
			}
		}
		if l.Sectors != 16 || l.Lost != lost {
			t.Errorf("%v are said to be lost, %d are", l, lost)
		}
		if !bytes.Equal(p[size:], filled(5, size)) {
			t.Fatal("what was written through is not there")
		}
		switch lost {
		case 0:
			whole["kept"]++
		case 16:
			whole["lost"]++
		default:
			whole["torn"]++
		}
		d.PowerOff()
		if l := d.PowerOn(rng); l.Sectors != 0 {
			t.Errorf("a second cut found %v", l)
		}
	}
	if outcomes[1] == 0 || outcomes[2] == 0 || outcomes[3] == 0 || whole["torn"] == 0 {
		t.Errorf("sectors ended as %v, writes as %v", outcomes, whole)
	}
}

// A cut can be had at a moment at which there is something to lose.
func TestThePowerGoesWithTheNextWrite(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	d := New(1 << 20)
	gone := d.PowerOffAtWrite()
	if !d.write(filled(1, SectorBytes), 0, true) || !d.flush() {
		t.Fatal("it went before there was anything to lose")
	}
	if d.write(filled(2, SectorBytes), 0, false) || d.flush() {
		t.Error("the write was answered, or what came after it")
	}
	<-gone
	if l := d.PowerOn(rng); l.Sectors != 1 {
		t.Errorf("%v were there to lose", l)
	}
	d.PowerOffAtWrite()
	d.PowerOff()
	d.PowerOn(rng)
	if !d.write(filled(3, SectorBytes), 0, false) {
		t.Error("it waits for a write beyond the cut")
	}
}

// The cache is bounded: what waits too long goes to the medium by itself.
func TestTheCacheIsBounded(t *testing.T) {
	t.Parallel()
	d := New(2 * cacheBytes)
	for off := int64(0); off < 2*cacheBytes; off += 1 << 20 {
		d.write(filled(1, 1<<20), off, false)
		if d.cached > cacheBytes {
			t.Fatalf("%d bytes wait", d.cached)
		}
	}
	d.PowerOff()
	if l := d.PowerOn(rand.New(rand.NewPCG(1, 1))); l.Sectors == 0 || l.Sectors > cacheBytes/SectorBytes {
		t.Errorf("%v waited", l)
	}
}

// QEMU understands what is served, and its flush is one here.
func TestQEMUReadsWritesAndFlushes(t *testing.T) {
	t.Parallel()
	d := New(8 << 20)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(l) }()
	qemu := func(commands ...string) {
		t.Helper()
		args := []string{"--image-opts", "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=" + socket}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		if out, err := exec.CommandContext(t.Context(), "qemu-io", args...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("failed")) {
			t.Fatalf("qemu-io: %v: %s", err, out)
		}
	}
	qemu("write -P 1 0 64k", "write -P 2 1M 4k", "flush")
	if d.Flushes() == 0 {
		t.Error("no flush arrived")
	}
	d.PowerOff()
	d.PowerOn(rand.New(rand.NewPCG(1, 1)))
	qemu("read -P 1 0 64k", "read -P 2 1M 4k", "read -P 0 2M 64k", "write -f -P 3 1M 4k")
	p := make([]byte, 4096)
	if d.read(p, 1<<20); !bytes.Equal(p, filled(3, 4096)) {
		t.Error("what was written last is not there")
	}

	d.PowerOff()
	cmd := exec.Command("qemu-io", "--image-opts", "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="+socket, "-c", "write -P 4 0 4k")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		t.Errorf("it was answered without power: %v", err)
	case <-time.After(300 * time.Millisecond): // long enough for what takes milliseconds
	}
	_ = cmd.Process.Kill()
	<-done
	if err := errors.Join(l.Close(), <-served); err != nil {
		t.Error(err)
	}
}
