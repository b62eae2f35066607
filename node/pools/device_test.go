//go:build linux && loopdev

package pools

import (
	"errors"
	"strings"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/loopdev"
)

// A device is refused with what was found on it, or who has it; nothing on it changes.
func TestAddRefusesADeviceThatIsNotFree(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	make := func(bytes int64, put string, off int64) string {
		t.Helper()
		path, _ := loopdev.New(t, loopdev.Config{SizeBytes: bytes})
		d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.WriteAt([]byte(put), off), d.Sync(), d.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	used := make(80*mib, "", 0)
	d, err := vfs.OpenDevice(vfs.DeviceConfig{Path: used})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }() // nothing was written
	xfs, ours := make(80*mib, "XFSB", 0), make(80*mib, "SANCPOOL\x01\x00\x00\x00\x00\x00\x04\x000123456789abcdef", 0)
	for _, test := range []struct {
		path  string
		want  string
		force bool
		size  int64
	}{
		{used, "in use by another process", false, 0},
		{used, "in use by another process", true, 0},
		{xfs, "an XFS file system (at byte 0)", false, 0},
		{ours, "UUID 30313233343536373839616263646566", false, 0},
		{make(64*mib, "", 0), "too small", false, 0},
		{make(80*mib, "", 0), "as a whole", false, 64 * mib},
	} {
		_, err := s.Add(Spec{Media: blockstore.MediaDevice, Path: test.path, Force: test.force, CapacityBytes: test.size})
		var refusal *Refusal
		if !errors.As(err, &refusal) || !strings.Contains(err.Error(), test.want) || refusal.Next == "" {
			t.Errorf("%s: %v, want %q", test.path, err, test.want)
		}
	}
	for path, want := range map[string]string{xfs: "an XFS file system (at byte 0)", ours: "a pool of Sanctuary (at byte 0)"} {
		if found, err := vfs.Probe(path); err != nil || found.String() != want {
			t.Errorf("%s now holds %v, %v", path, found, err)
		}
	}
}
