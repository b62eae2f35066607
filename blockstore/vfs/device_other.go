//go:build unix && !linux

package vfs

import (
	"errors"
	"fmt"
	"os"
)

// OpenDevice returns an error: raw block devices are used on Linux only.
func OpenDevice(cfg DeviceConfig) (*Device, error) {
	return nil, fmt.Errorf("open medium %s: %w: raw block devices can be used on Linux only", cfg.Path, errors.ErrUnsupported)
}

func discard(*os.File, int64, int64) error { return nil }

// deviceSize finds the end by seeking, which works for regular files and, on most systems, for devices.
func deviceSize(f *os.File) (int64, error) { return f.Seek(0, 2) }
