package blockstore_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"sanctuary/blockstore"
)

func TestConfigurationOfADevicePool(t *testing.T) {
	for want, c := range map[string]blockstore.PoolConfig{
		"absolute path":              {Media: blockstore.MediaDevice, Path: "sdb"},
		"needs the absolute path of": {Media: blockstore.MediaDevice},
		"are for Media":              {Media: blockstore.MediaRAM, CapacityBytes: 1 << 20, Force: true},
		"Path and Force":             {Media: blockstore.MediaFile, Dir: "/x", CapacityBytes: 1 << 20, Path: "/dev/x"},
		`use "file", "device" or "r`: {Media: "tape"},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	c := blockstore.PoolConfig{Media: blockstore.MediaDevice, Path: "/dev/none", Force: true}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := blockstore.OpenPool(c); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/dev/none") {
		t.Errorf("a device that is not there: %v", err)
	}
}
