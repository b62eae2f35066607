//go:build unix && !linux

package vfs

import "os"

// Without a portable way to reserve or free blocks both do nothing: running out of space shows when writing, and freed
// chunks keep their blocks until they are used again.
func fallocate(*os.File, int64, int64) error { return nil }

func punchHole(*os.File, int64, int64) error { return nil }

func fdatasync(f *os.File) error { return f.Sync() }
