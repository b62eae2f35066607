package blockstore

import (
	"errors"
	"strings"
	"testing"

	"sanctuary/blockstore/vfs/crashdev"
)

// A volume that a newer program has written is as much in use as any other: its slots and pages are nobody else's. So a pool that has one is
// refused, and nothing in it is touched, in whichever way it is opened.
func TestPoolWithAVolumeOfANewerVersionIsRefusedAndNotTouched(t *testing.T) {
	v, cfg := roomyVolume(t)
	if err := v.Apply(1, oneBlockAt(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := v.pool.publishAlone(func(c *catalogueState, w *pageWriter) (err error) {
		v.applyMu.Lock()
		defer v.applyMu.Unlock()
		record := v.capture().record
		record.directories = v.onMedium.directories
		payload := record.encode()
		payload[0] = FormatVersion + 1
		e := c.entries[v.number]
		e.root, _, err = w.putTwins(object{kind: kindVolume, volume: v.number}, payload)
		c.entries[v.number] = e
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	written := cfg.Device.(*crashdev.Dev)
	for what, capacity := range map[string]int64{"as it is": 0, "its own capacity": cfg.CapacityBytes} {
		dev := written.Clone(crashdev.NewPower(-1))
		dev.SetHook(func(k crashdev.Kind, off, n int64) error {
			if k == crashdev.Write || k == crashdev.Discard || k == crashdev.Allocate {
				t.Errorf("%s: %v of %d bytes at %d", what, k, n, off)
			}
			return nil
		})
		p, err := OpenPool(PoolConfig{Media: cfg.Media, CapacityBytes: capacity, Device: dev})
		if err == nil {
			_ = p.Close() // it is what should not be there
			t.Fatalf("%s: the pool was opened", what)
		}
		if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "volume v has unknown format version 3") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = Inspect(t.Context(), InspectConfig{Device: written.Clone(crashdev.NewPower(-1))})
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "volume v has unknown format version 3") {
		t.Errorf("inspected: %v", err)
	}
}
