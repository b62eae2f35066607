package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

type counts struct{ pass, fail, tool, skip int }

func (c *counts) add(v verdict) {
	switch v {
	case passed:
		c.pass++
	case failed:
		c.fail++
	case faulty:
		c.tool++
	case skipped:
		c.skip++
	}
}

func total(results []result) string {
	var c counts
	for _, r := range results {
		c.add(r.verdict)
	}
	return fmt.Sprintf("%d tests: %d pass, %d fail, %d fail by the tool's own fault, %d skip\n", len(results), c.pass, c.fail, c.tool, c.skip)
}

// table is the report: counts by suite, then every failure with its reason.
func table(results []result, o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d-node cluster, %s LUN. %s\n| suite | pass | fail | tool | skip |\n|---|--:|--:|--:|--:|\n", o.nodes, o.media, total(results))
	var order []string
	suites := map[string]*counts{}
	for _, r := range results {
		if suites[r.suite()] == nil {
			suites[r.suite()] = &counts{}
			order = append(order, r.suite())
		}
		suites[r.suite()].add(r.verdict)
	}
	for _, s := range order {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", s, suites[s].pass, suites[s].fail, suites[s].tool, suites[s].skip)
	}
	for _, list := range []struct {
		title string
		v     verdict
	}{{"Failed", failed}, {"Failed by the tool's own fault", faulty}, {"Skipped", skipped}} {
		fmt.Fprintf(&b, "\n%s:\n\n", list.title)
		none := true
		for _, r := range results {
			if r.verdict == list.v {
				fmt.Fprintf(&b, "- %s: %s\n", r.name, escape(r.reason))
				none = false
			}
		}
		if none {
			b.WriteString("- none\n")
		}
	}
	return b.String()
}

// escape keeps a tool's text from being read as markup.
func escape(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "_", `\_`, "*", `\*`).Replace(s)
}

// regressions is an error that names every required test that was run and did not pass.
func regressions(required []string, results []result) error {
	var errs []error
	for _, r := range results {
		if r.verdict != passed && r.verdict != faulty && slices.Contains(required, r.name) {
			errs = append(errs, fmt.Errorf("%s passed before and now: %s, %s", r.name, r.verdict, r.reason))
		}
	}
	return errors.Join(errs...)
}

// readList reads test names, one a line; # begins a comment. A missing file is an empty list.
func readList(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, "#")
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// writeList adds what passed, or failed by the tool's own fault alone, to the list. It takes nothing away: a test leaves the list by hand, with a reason in the commit.
func writeList(file string, required []string, results []result) error {
	names := slices.Clone(required)
	for _, r := range results {
		if r.verdict == passed || r.verdict == faulty {
			names = append(names, r.name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	text := "# Tests of iscsi-test-cu that must pass (make conformance). One that no longer can leaves by hand, with the reason.\n" +
		strings.Join(names, "\n") + "\n"
	return os.WriteFile(file, []byte(text), 0o644)
}
