package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// readNotes reads "NAME: NOTE" lines; # begins a comment line. A name without a note, or twice, is an error: every entry
// says why it is there.
func readNotes(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	notes := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, note, _ := strings.Cut(line, ":")
		note = strings.TrimSpace(note)
		if _, twice := notes[name]; twice || note == "" {
			return nil, fmt.Errorf("%s: %q: want each name once, and behind a colon the reason", file, line)
		}
		notes[name] = note
	}
	return notes, nil
}

// gate holds results against the tests that are expected to skip. Nothing may fail, nothing else may skip, and a test on the
// list that does not skip any more must leave it. All says that every test of the tool was run.
func gate(results []result, expected map[string]string, all bool) error {
	var wrong []error
	seen := map[string]bool{}
	for _, r := range results {
		seen[r.name] = true
		_, listed := expected[r.name]
		switch {
		case r.verdict == failed:
			wrong = append(wrong, fmt.Errorf("%s failed: %s", r.name, r.reason))
		case r.verdict == skipped && !listed:
			wrong = append(wrong, fmt.Errorf("%s skipped and is not on the list of %s: %s", r.name, expectedSkips, r.reason))
		case listed && r.verdict != skipped:
			wrong = append(wrong, fmt.Errorf("%s is on the list of %s, but: %s", r.name, expectedSkips, r.verdict))
		}
	}
	for name := range expected {
		if all && !seen[name] {
			wrong = append(wrong, fmt.Errorf("%s is on the list of %s, but there is no such test", name, expectedSkips))
		}
	}
	return errors.Join(wrong...)
}
