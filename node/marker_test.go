package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A replica.json is read again when it has been written anew, however much it looks like the one before it, and when it is gone it is.
func TestMarkerIsReadAgainWhenItHasChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "replica.json")
	var m markers
	want := func(replica string) {
		t.Helper()
		for range 2 {
			f, err := m.read(path)
			if err != nil || f.Replica != replica {
				t.Fatalf("%q is read, %v, where %q was written", f.Replica, err, replica)
			}
		}
	}
	write := func(replica string) {
		t.Helper()
		if err := writeJSON(path, replicaFile{Version: replicaFileVersion, LUN: "l", Replica: replica}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 { // within one tick of the file system's clock, too
		write(string(rune('a' + i)))
		want(string(rune('a' + i)))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := m.read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a file that is gone: %v", err)
	}
	if len(m.known) != 0 {
		t.Fatal("it is still known")
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.read(path); err == nil {
		t.Fatal("half a file is taken")
	}
	write("z")
	want("z")
}
