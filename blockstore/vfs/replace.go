package vfs

import (
	"errors"
	"os"
	"path/filepath"
)

// ReplaceFile makes path hold data, whole and durable, or leaves it as it was: the data goes to path+".new", which is synced,
// renamed over path, and made durable by its directory. The file is readable by its owner alone.
func ReplaceFile(path string, data []byte) error {
	tmp, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}
