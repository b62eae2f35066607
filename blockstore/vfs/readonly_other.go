//go:build unix && !linux

package vfs

import (
	"errors"
	"os"
)

// memoryFile makes a file that has no name any more.
func memoryFile(b []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "copy")
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(b, 0)
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Holder cannot be asked here.
func Holder(string) (pid int, ok bool) { return 0, false }
