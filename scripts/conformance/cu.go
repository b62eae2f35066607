package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The names the tool logs in with, first and second initiator: the LUN's access may depend on them.
const (
	firstInitiator  = "iqn.2026-11.local.check:conformance-1"
	secondInitiator = "iqn.2026-11.local.check:conformance-2"
)

type verdict string

const (
	passed  verdict = "pass"
	failed  verdict = "FAIL"
	skipped verdict = "skip"
	// faulty: what failed is an assertion that no target can satisfy; see toolFaults.
	faulty verdict = "tool"
)

// toolFaults are assertions of iscsi-test-cu 1.19.0 that no target can satisfy, by test. A test that fails elsewhere has
// failed. The same test must pass, whole, where the assertion is right: see runApart.
var toolFaults = map[string]struct{ assertion, why string }{
	"GetLBAStatus.UnmapSingle": {
		"test_get_lba_status_unmap_single.c:135",
		"asks about LBA i+1 and wants the first descriptor to begin at i+8, a physical block further; SBC-3 wants it to begin at the LBA asked about",
	},
}

// result is the outcome of one test, named SUITE.TEST as iscsi-test-cu names it.
type result struct {
	name    string
	verdict verdict
	reason  string // one line; empty for a pass
}

func (r result) suite() string {
	suite, _, _ := strings.Cut(r.name, ".")
	return suite
}

// suite is one suite of the tool with its tests, named SUITE.TEST, in the tool's order.
type suite struct {
	name  string
	tests []string
}

// listSuites asks iscsi-test-cu what it has, by prefix of SUITE.TEST. Family ALL holds every test once; the other families
// name them again.
func listSuites(ctx context.Context, match string) ([]suite, error) {
	out, err := exec.CommandContext(ctx, "iscsi-test-cu", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("iscsi-test-cu --list: %w (package libiscsi-bin: scripts/setup test)", err)
	}
	var suites []suite
	for line := range strings.Lines(string(out)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "ALL.")
		in, _, isTest := strings.Cut(name, ".")
		if !ok || !isTest || !strings.HasPrefix(name, match) {
			continue
		}
		if n := len(suites); n == 0 || suites[n-1].name != in {
			suites = append(suites, suite{name: in})
		}
		last := &suites[len(suites)-1]
		last.tests = append(last.tests, name)
	}
	if len(suites) == 0 {
		return nil, fmt.Errorf("iscsi-test-cu has no test that begins with %q", match)
	}
	return suites, nil
}

// tool runs iscsi-test-cu, with data loss allowed and all that it has to say.
type tool struct {
	timeout time.Duration // longest one process may take
}

var (
	// errUnfinished: the process was stopped, or ended without CUnit's summary.
	errUnfinished = errors.New("no summary")
	// errCrashed: the process was ended by a signal that was not ours. Wraps into errUnfinished.
	errCrashed = fmt.Errorf("the tool crashed: %w", errUnfinished)
)

// run runs what selector names, FAMILY.SUITE or FAMILY.SUITE.TEST, over as many paths as there are URLs, in one process.
func (t tool) run(ctx context.Context, urls []string, selector string) ([]outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	args := append([]string{
		"--dataloss", "--Verbose-scsi", "--initiator-name=" + firstInitiator, "--initiator-name-2=" + secondInitiator,
		"--test=" + selector,
	}, urls...)
	out, err := exec.CommandContext(ctx, "iscsi-test-cu", args...).CombinedOutput()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("no end after %s: %w", t.timeout, errUnfinished)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && !exit.Exited():
		return nil, fmt.Errorf("%w, %w, after: %s", errCrashed, err, lastLines(string(out)))
	case err != nil && exit == nil:
		return nil, fmt.Errorf("%w (%w)", err, errUnfinished)
	}
	outcomes, err := parse(string(out)) // the exit status is the number of failures
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", err, errUnfinished)
	}
	return outcomes, nil
}

// suite runs a suite in one process. If that does not end, each test in a process of its own says which it was.
func (t tool) suite(ctx context.Context, urls []string, s suite) []result {
	outcomes, err := t.run(ctx, urls, "ALL."+s.name)
	if err == nil {
		return judgeAll(s, outcomes)
	}
	results := t.apart(ctx, urls, s)
	for _, r := range results {
		if r.verdict == failed {
			return results
		}
	}
	for i := range results {
		results[i].verdict, results[i].reason = failed, "passes alone; in one process: "+err.Error()
	}
	return results
}

// apart runs every test of a suite in a process of its own.
func (t tool) apart(ctx context.Context, urls []string, s suite) []result {
	var results []result
	for _, name := range s.tests {
		one := suite{name: s.name, tests: []string{name}}
		outcomes, err := t.run(ctx, urls, "ALL."+name)
		if err != nil {
			results = append(results, result{name: name, verdict: failed, reason: err.Error()})
			continue
		}
		results = append(results, judgeAll(one, outcomes)...)
	}
	return results
}

// outcome is what one test of a process said.
type outcome struct {
	name    string // SUITE.TEST
	passed  bool
	skips   []string // what it said it left out
	fails   []string // what it complained of; without meaning if it passed: tests complain of answers that they then accept
	asserts []assertion
}

// assertion is one that did not hold.
type assertion struct {
	place string // file:line
	text  string
}

var (
	suitePattern = regexp.MustCompile(`^Suite: (\S+)`)
	testPattern  = regexp.MustCompile(`^  Test: (\S+) \.\.\.(.*)`)
	// CUnit's summary: tests in total, run, passed, failed.
	summaryPattern = regexp.MustCompile(`^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)`)
	skipPattern    = regexp.MustCompile(`^\s*\[SKIPPED\]\s*(.*)`)
	failPattern    = regexp.MustCompile(`^\s*\[FAILED\]\s*(.*)`)
	assertPattern  = regexp.MustCompile(`^\s*\d+\. (\S+:\d+)\s+- (.*)`)
)

// parse reads the output of one process in CUnit's verbose mode. What the tool says outside of tests, while it looks at the
// LUN and clears reservations, is not a test's. Without a summary, or if the summary counts otherwise, there is an error.
func parse(out string) ([]outcome, error) {
	var all []outcome
	var in string
	open := false // a test has begun and not ended
	ran, good, summary := 0, 0, false
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if m := suitePattern.FindStringSubmatch(line); m != nil {
			in, open = m[1], false
			continue
		}
		if m := testPattern.FindStringSubmatch(line); m != nil {
			all, open = append(all, outcome{name: in + "." + m[1]}), true
			line = m[2]
		}
		if m := summaryPattern.FindStringSubmatch(line); m != nil {
			ran, _ = strconv.Atoi(m[2]) // digits
			good, _ = strconv.Atoi(m[3])
			summary = true
		}
		if len(all) == 0 {
			continue
		}
		last := &all[len(all)-1]
		switch {
		case !open:
			if m := assertPattern.FindStringSubmatch(line); m != nil {
				// behind the last one, on the same line, the tool goes on to clear reservations
				text, _, _ := strings.Cut(m[2], "    ")
				last.asserts = append(last.asserts, assertion{m[1], text})
			}
		case strings.HasPrefix(line, "passed"):
			last.passed, open = true, false
		case strings.HasPrefix(line, "FAILED"):
			open = false
		default:
			if m := skipPattern.FindStringSubmatch(line); m != nil {
				last.skips = append(last.skips, m[1])
			}
			if m := failPattern.FindStringSubmatch(line); m != nil {
				last.fails = append(last.fails, m[1])
			}
		}
	}
	if !summary {
		return nil, fmt.Errorf("ended without a summary: %s", lastLines(out))
	}
	for _, o := range all {
		if o.passed {
			good--
		}
	}
	if ran != len(all) || good != 0 {
		return nil, fmt.Errorf("CUnit counts %d tests, their lines were %d; passed by count less by line: %d", ran, len(all), good)
	}
	return all, nil
}

// judgeAll returns one result for every test of s, in order.
func judgeAll(s suite, outcomes []outcome) []result {
	byName := map[string]outcome{}
	for _, o := range outcomes {
		byName[o.name] = o
	}
	var results []result
	for _, name := range s.tests {
		o, ran := byName[name]
		if !ran {
			results = append(results, result{name: name, verdict: failed, reason: "did not run"})
			continue
		}
		results = append(results, judge(o))
	}
	return results
}

// judge turns what a test said into a verdict. One that skips any of its parts counts as skipped: it has not shown all that
// its name says.
func judge(o outcome) result {
	r := result{name: o.name, verdict: passed}
	switch {
	case !o.passed:
		r.verdict, r.reason = failed, "an assertion did not hold"
		if fault, known := toolFaults[o.name]; known && onlyAt(fault.assertion, o.asserts) {
			r.verdict, r.reason = faulty, fault.why
			break
		}
		if len(o.asserts) > 0 {
			r.reason = o.asserts[0].place + " " + o.asserts[0].text
		}
		if len(o.fails) > 0 {
			r.reason += "; " + o.fails[0]
		}
	case len(o.skips) > 0:
		r.verdict, r.reason = skipped, o.skips[0]
	}
	return r
}

// onlyAt says whether there are assertions that did not hold, all of them at place, file:line.
func onlyAt(place string, asserts []assertion) bool {
	for _, a := range asserts {
		if a.place != place {
			return false
		}
	}
	return len(asserts) > 0
}

// lastLines returns the last two lines that say anything: the tool explains itself in the one before the last.
func lastLines(out string) string {
	var kept []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); line != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-2):], "; ")
}
