package vfs

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplaceFileIsAllOrNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "the second, longer", "3"} {
		if err := ReplaceFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Fatalf("holds %q, %v", got, err)
		}
	}
	if err := os.Mkdir(path+".new", 0o700); err != nil { // the draft cannot be made
		t.Fatal(err)
	}
	if err := ReplaceFile(path, []byte("four")); err == nil {
		t.Fatal("no error")
	}
	if got, _ := os.ReadFile(path); string(got) != "3" {
		t.Fatalf("an attempt that failed left %q", got)
	}
}
