package blockstore

import (
	"context"
	"sync"
	"testing"

	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// doubtful is a medium whose cache may hold what is not on it until it was synced and forgotten.
type doubtful struct {
	vfs.Dev
	t *testing.T

	mu     sync.Mutex
	synced bool
	known  [][2]int64 // from, to
}

func (d *doubtful) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.synced = true
	return d.Dev.Sync()
}

func (d *doubtful) Forget(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.synced {
		d.t.Error("forgotten before what is still to be written was synced")
	}
	d.known = append(d.known, [2]int64{off, off + n})
	return nil
}

func (d *doubtful) ReadAt(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.known {
		if k[0] <= off && off+int64(len(p)) <= k[1] {
			return d.Dev.ReadAt(p, off)
		}
	}
	d.t.Errorf("%d bytes at %d are believed", len(p), off)
	return d.Dev.ReadAt(p, off)
}

// A start reads nothing that the process before may have failed to make durable: neither superblocks nor pages nor checksums.
func TestStartBelievesTheMediumOnly(t *testing.T) {
	v, cfg := roomyVolume(t)
	for n := range 40 {
		if err := v.Apply(uint64(n+1), oneBlockAt(int64(n)*24<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := v.pool.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Device = &doubtful{Dev: cfg.Device.(*crashdev.Dev).Clone(crashdev.NewPower(-1)), t: t}
	p, err := OpenPool(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
