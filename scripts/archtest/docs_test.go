package archtest

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameTestsThatExist: a guarantee whose test has been renamed away is one that nobody can check.
func TestDocsNameTestsThatExist(t *testing.T) {
	t.Parallel()
	tree := os.DirFS("../..")
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	code, named := regexp.MustCompile("`[^`\n]+`"), regexp.MustCompile(`\bTest[A-Z]\w+`)
	tests := map[string]bool{}
	docs := map[string][]byte{}
	err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case strings.HasSuffix(path, "_test.go"), strings.HasSuffix(path, ".md") && strings.HasPrefix(path, "docs/"):
			text, err := fs.ReadFile(tree, path)
			if err != nil {
				return err
			}
			if strings.HasSuffix(path, ".md") {
				docs[path] = text
			}
			for _, m := range declared.FindAllSubmatch(text, -1) {
				tests[string(m[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for path, text := range docs {
		for _, span := range code.FindAll(text, -1) {
			for _, name := range named.FindAllString(string(span), -1) {
				if found++; !tests[name] && name != "TestProve" { // what the campaigns' names begin with
					t.Errorf("%s names %s, and there is no such test", path, name)
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d tests are named in docs/", found)
	}
}
