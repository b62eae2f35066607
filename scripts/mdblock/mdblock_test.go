package mdblock

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReplaceTouchesOnlyItsBlock(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, want, wantErr string }{
		{"empty", "", "<!-- begin x -->\nnew\n<!-- end x -->\n", ""},
		{"no block", "# Title\n", "# Title\n\n<!-- begin x -->\nnew\n<!-- end x -->\n", ""},
		{"old block", "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n", "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n", ""},
		{"other block", "<!-- begin y -->\n<!-- end y -->\n", "<!-- begin y -->\n<!-- end y -->\n\n<!-- begin x -->\nnew\n<!-- end x -->\n", ""},
		{"no end", "<!-- begin x -->\n", "", "damaged"},
		{"no begin", "<!-- end x -->\n", "", "damaged"},
		{"wrong order", "<!-- end x -->\n<!-- begin x -->\n", "", "damaged"},
		{"twice", "<!-- begin x -->\n<!-- end x -->\n<!-- begin x -->\n<!-- end x -->\n", "", "twice"},
	} {
		got, err := replace([]byte(c.old), "x", "\nnew\n\n")
		switch {
		case c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)):
			t.Errorf("%s: error %v, want %q", c.name, err, c.wantErr)
		case c.wantErr == "" && (err != nil || string(got) != c.want):
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestReplaceCreatesAndKeepsTheFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "REPORT.md")
	for _, content := range []string{"one", "two"} {
		if err := Replace(file, "x", "# Report\n", content); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if want := "# Report\n\n<!-- begin x -->\n" + content + "\n<!-- end x -->\n"; err != nil || string(text) != want {
			t.Errorf("file is %q, %v; want %q", text, err, want)
		}
	}
	if err := os.WriteFile(file, []byte("<!-- begin x -->"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Replace(file, "x", "", "three"); err == nil {
		t.Error("a damaged file was rewritten")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".mdblock-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
