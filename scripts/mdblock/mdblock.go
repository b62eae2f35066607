// Package mdblock replaces one generated block in a Markdown file that people write around.
//
// Invariant: what stands outside of the block is never changed. It does not make the block's content.
package mdblock

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace writes content between the lines "<!-- begin NAME -->" and "<!-- end NAME -->" of file. A file that does not exist
// begins with preamble and gets the block at its end; a file without the block gets it at its end. One mark without the
// other, or marks in the wrong order, are an error and leave the file as it is.
func Replace(file, name, preamble, content string) error {
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		old = []byte(preamble)
	} else if err != nil {
		return fmt.Errorf("update %s: %w", file, err)
	}
	text, err := replace(old, name, content)
	if err != nil {
		return fmt.Errorf("update %s: %w", file, err)
	}
	// Renamed into place: an interrupted run leaves the old report, not half of a new one.
	temp, err := os.CreateTemp(filepath.Dir(file), ".mdblock-*")
	if err != nil {
		return fmt.Errorf("update %s: %w", file, err)
	}
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Chmod(0o644), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("update %s: %w", file, errors.Join(err, os.Remove(temp.Name())))
	}
	return nil
}

func replace(text []byte, name, content string) ([]byte, error) {
	begin, end := []byte("<!-- begin "+name+" -->"), []byte("<!-- end "+name+" -->")
	block := fmt.Appendf(nil, "%s\n%s\n%s", begin, bytes.TrimSpace([]byte(content)), end)
	from, to := bytes.Index(text, begin), bytes.Index(text, end)
	switch {
	case from < 0 && to < 0:
		if len(text) > 0 {
			text = append(bytes.TrimRight(text, "\n"), "\n\n"...)
		}
		return append(append(text, block...), '\n'), nil
	case from < 0 || to < from:
		return nil, fmt.Errorf("marks of %q are damaged: want one begin, then one end", name)
	case bytes.Count(text, begin) > 1 || bytes.Count(text, end) > 1:
		return nil, fmt.Errorf("marks of %q occur twice", name)
	}
	out := append([]byte{}, text[:from]...)
	out = append(out, block...)
	return append(out, text[to+len(end):]...), nil
}
