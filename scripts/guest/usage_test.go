package guest

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
)

// diskUsage is what the files below dir occupy on the disk, in bytes. Files may come and go meanwhile.
func diskUsage(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var s syscall.Stat_t
			if err = syscall.Lstat(path, &s); err == nil {
				bytes += s.Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
