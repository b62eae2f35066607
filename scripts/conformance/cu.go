package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// resetTest is a test that resets the LUN: the one way to do so that libiscsi's tools offer.
const resetTest = "iSCSITMF.LUNResetSimpleAsync"

type verdict string

const (
	passed  verdict = "pass"
	failed  verdict = "FAIL"
	skipped verdict = "skip"
)

// result is the outcome of one test, named SUITE.TEST as iscsi-test-cu names it.
type result struct {
	name    string
	verdict verdict
	reason  string // one line; empty for a pass
	took    time.Duration
}

func (r result) suite() string {
	suite, _, _ := strings.Cut(r.name, ".")
	return suite
}

// listTests asks iscsi-test-cu what it has. Family ALL holds every test once; the other families name them again.
func listTests(ctx context.Context, match string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "iscsi-test-cu", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("iscsi-test-cu --list: %w (package libiscsi-bin: scripts/setup test)", err)
	}
	var tests []string
	for line := range strings.Lines(string(out)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "ALL.")
		if ok && strings.Contains(name, ".") && strings.HasPrefix(name, match) {
			tests = append(tests, name)
		}
	}
	if len(tests) == 0 {
		return nil, fmt.Errorf("iscsi-test-cu has no test that begins with %q", match)
	}
	return tests, nil
}

// runTest runs one test with data loss allowed. A test that does not end in time, or ends without CUnit's summary, has failed.
func runTest(ctx context.Context, url, name string, timeout time.Duration) result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	out, err := exec.CommandContext(ctx, "iscsi-test-cu", "--dataloss", "--normal", "--test=ALL."+name, url).CombinedOutput()
	r := judge(string(out))
	if ctx.Err() != nil {
		r = result{verdict: failed, reason: fmt.Sprintf("no end after %s", timeout)}
	} else if err != nil && r.verdict != failed {
		r = result{verdict: failed, reason: err.Error()}
	}
	r.name, r.took = name, time.Since(start)
	return r
}

var (
	// CUnit's summary: tests in total, run, passed, failed.
	testsPattern = regexp.MustCompile(`(?m)^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)`)
	skipPattern  = regexp.MustCompile(`\[SKIPPED\]\s*(.*)`)
	failPattern  = regexp.MustCompile(`\[FAILED\]\s*(.*)`)
)

// headline ends what the tool does before the test: it logs in, looks at the LUN, and clears reservations that others left.
const headline = "cunit.sourceforge.net"

// own returns what the test itself said. The tool reads reservation keys before each test, and once more when it has ended:
// on a target without reservations both print a [SKIPPED] that says nothing of the test.
func own(out string) string {
	before, test, found := strings.Cut(out, headline)
	if !found {
		return out
	}
	housekeeping := skipPattern.FindString(before)
	if at := strings.LastIndex(test, housekeeping); housekeeping != "" && at >= 0 {
		test = test[:at] + test[at+len(housekeeping):]
	}
	return test
}

// judge reads one test's output. [FAILED] alone is no verdict: tests print it for answers that they then accept. CUnit's own count is.
// A test that skips any of its parts counts as skipped: it has not shown all that its name says.
func judge(out string) result {
	out = own(out)
	m := testsPattern.FindStringSubmatch(out)
	switch {
	case m == nil:
		return result{verdict: failed, reason: "ended without a summary: " + lastLine(out)}
	case m[4] != "0":
		return result{verdict: failed, reason: firstMatch(failPattern, out, "an assertion did not hold")}
	case m[2] == "0":
		return result{verdict: failed, reason: "did not run"}
	case skipPattern.MatchString(out):
		return result{verdict: skipped, reason: firstMatch(skipPattern, out, "")}
	}
	return result{verdict: passed}
}

func firstMatch(p *regexp.Regexp, out, otherwise string) string {
	if m := p.FindStringSubmatch(out); m != nil {
		return strings.TrimSpace(m[1])
	}
	return otherwise
}

func lastLine(out string) string {
	out = strings.TrimSpace(out)
	return strings.TrimSpace(out[strings.LastIndexByte(out, '\n')+1:])
}
