//go:build unix && !linux

package vfs

import (
	"errors"
	"os"
)

// Without a portable way to reserve or free blocks, or to drop what is cached, all of these do nothing: running out of space shows when writing, freed
// chunks keep their blocks until they are used again, and after a sync that failed the machine has to be started anew, not the process.
func fallocate(*os.File, int64, int64) error { return nil }

func reserve(*os.File, int64, int64) error { return errors.ErrUnsupported }

func fits(*os.File, os.FileInfo, int64) error { return nil }

func punchHole(*os.File, int64, int64) error { return nil }

func dropCache(*os.File, int64, int64) error { return nil }

func fdatasync(f *os.File) error { return f.Sync() }
