package main

import (
	"fmt"
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

func count(results []result) (c counts) {
	for _, r := range results {
		c.add(r.verdict)
	}
	return c
}

func (c counts) String() string {
	return fmt.Sprintf("%d tests: %d pass, %d fail, %d fail by the tool's own fault, %d skip", c.pass+c.fail+c.tool+c.skip, c.pass, c.fail, c.tool, c.skip)
}

// report is everything one run has found.
type report struct {
	subject   string // what was tested
	results   []result
	forwarded []result // of all suites through a node that does not own the LUN
	protected []result // of the suite that needs a write-protected LUN
	aligned   []result // of the suites run on the LUN with logical blocks as long as physical ones
	moved     *campaign
	// of tgt; empty: not run
	reference, referenceProtected []result
}

// table is the report: counts by suite, ours and the reference's, then every test that did not pass, with its reason.
func (r report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s.\n", r.subject, count(r.results))
	if len(r.reference) > 0 {
		fmt.Fprintf(&b, "tgt, the reference: %s.\n", count(r.reference))
	}
	if len(r.forwarded) > 0 {
		fmt.Fprintf(&b, "Through the node that does not own the LUN: %s.\n", count(r.forwarded))
	}
	if len(r.protected) > 0 {
		fmt.Fprintf(&b, "%s on the same LUN, write-protected (SWP): %s", r.protected[0].suite(), count(r.protected))
		if len(r.referenceProtected) > 0 {
			fmt.Fprintf(&b, "; tgt: %s", count(r.referenceProtected))
		}
		b.WriteString(".\n")
	}
	if len(r.aligned) > 0 {
		fmt.Fprintf(&b, "%s on a LUN with logical blocks as long as physical ones (4Kn): %s.\n", r.aligned[0].suite(), count(r.aligned))
	}
	if r.moved != nil {
		fmt.Fprintf(&b, "Moved: %s.\n", r.moved)
	}
	b.WriteString("\n| suite | pass | fail | tool | skip | tgt: pass | fail | skip |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
	ours, theirs := bySuite(r.results), bySuite(r.reference)
	seen := ""
	for _, one := range r.results {
		s := one.suite()
		if s == seen {
			continue
		}
		seen = s
		o := ours[s]
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |", s, cell(o.pass), cell(o.fail), cell(o.tool), cell(o.skip))
		if t, ok := theirs[s]; ok {
			fmt.Fprintf(&b, " %s | %s | %s |\n", cell(t.pass), cell(t.fail+t.tool), cell(t.skip))
		} else {
			b.WriteString(" | | |\n")
		}
	}
	list(&b, "Failed", r.results, failed)
	list(&b, "Failed by the tool's own fault", r.results, faulty)
	list(&b, "Skipped", r.results, skipped)
	list(&b, "Failed through the node that does not own the LUN", r.forwarded, failed)
	list(&b, "Failed on tgt", r.reference, failed)
	return b.String()
}

// cell leaves zeros out: what is not there should not be looked at.
func cell(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func bySuite(results []result) map[string]counts {
	all := map[string]counts{}
	for _, r := range results {
		c := all[r.suite()]
		c.add(r.verdict)
		all[r.suite()] = c
	}
	return all
}

// list writes the tests of one verdict, or nothing if there are none.
func list(b *strings.Builder, title string, results []result, v verdict) {
	first := true
	for _, r := range results {
		if r.verdict != v {
			continue
		}
		if first {
			fmt.Fprintf(b, "\n%s:\n\n", title)
			first = false
		}
		fmt.Fprintf(b, "- %s: %s\n", r.name, escape(r.reason))
	}
}

// escape keeps a tool's text from being read as markup.
func escape(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "_", `\_`, "*", `\*`).Replace(s)
}
