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
	// faulty: what failed is an assertion that no target can satisfy; see toolFaults.
	faulty verdict = "tool"
)

// toolFaults are assertions of Debian's iscsi-test-cu 1.19.0 that are wrong, by test. A test that fails elsewhere has failed.
var toolFaults = map[string]struct{ assertion, why string }{
	"GetLBAStatus.UnmapSingle": {
		"test_get_lba_status_unmap_single.c:135",
		"asks about LBA i+1 and wants a descriptor that begins at i+8; SBC-3 wants it to begin at the LBA asked about (right only where physical and logical blocks are of one size)",
	},
	"iSCSITMF.LUNResetSimpleAsync": {
		"test_async_lu_reset_simple.c:157",
		"asserts on a variable before anything has set it; only another test in the same process hides that (tgt fails it too)",
	},
}

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

// runTest runs one test with data loss allowed, over as many paths as there are URLs. A test that does not end in time, or ends without CUnit's summary, has failed.
func runTest(ctx context.Context, urls []string, name string, timeout time.Duration) result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	out, err := exec.CommandContext(ctx, "iscsi-test-cu", append([]string{"--dataloss", "--normal", "--test=ALL." + name}, urls...)...).CombinedOutput()
	r := judge(name, string(out), len(urls))
	if ctx.Err() != nil {
		r = result{name: name, verdict: failed, reason: fmt.Sprintf("no end after %s", timeout)}
	} else if err != nil && r.verdict != failed && r.verdict != faulty {
		r = result{name: name, verdict: failed, reason: err.Error()}
	}
	r.took = time.Since(start)
	return r
}

var (
	// CUnit's summary: tests in total, run, passed, failed.
	testsPattern = regexp.MustCompile(`(?m)^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)`)
	skipPattern  = regexp.MustCompile(`\[SKIPPED\]\s*(.*)`)
	failPattern  = regexp.MustCompile(`\[FAILED\]\s*(.*)`)
	// an assertion that did not hold: its number, file and line, what it was
	assertPattern = regexp.MustCompile(`(?m)^\s*\d+\. (\S+:\d+)\s+- (.*)`)
)

// headline ends what the tool does before the test: it logs in, looks at the LUN, and clears reservations that others left.
const headline = "cunit.sourceforge.net"

// own returns what the test itself said. The tool reads reservation keys before each test, and when it has ended once more
// on every path: on a target without reservations each prints a [SKIPPED] that says nothing of the test.
func own(out string, paths int) string {
	before, test, found := strings.Cut(out, headline)
	if !found {
		return out
	}
	housekeeping := skipPattern.FindString(before)
	for range paths {
		if at := strings.LastIndex(test, housekeeping); housekeeping != "" && at >= 0 {
			test = test[:at] + test[at+len(housekeeping):]
		}
	}
	return test
}

// judge reads one test's output. [FAILED] alone is no verdict: tests print it for answers that they then accept. CUnit's own count is.
// A test that skips any of its parts counts as skipped: it has not shown all that its name says.
func judge(name, out string, paths int) result {
	out = own(out, paths)
	r := result{name: name, verdict: failed}
	m := testsPattern.FindStringSubmatch(out)
	switch {
	case m == nil:
		r.reason = "ended without a summary: " + lastLine(out)
	case m[4] != "0":
		if fault, known := toolFaults[name]; known && onlyAt(fault.assertion, out) {
			r.verdict, r.reason = faulty, fault.why
			break
		}
		r.reason = firstMatch(failPattern, out, "")
		if r.reason == "" {
			r.reason = firstMatch(assertPattern, out, "an assertion did not hold")
		}
	case m[2] == "0":
		r.reason = "did not run"
	case skipPattern.MatchString(out):
		r.verdict, r.reason = skipped, firstMatch(skipPattern, out, "")
	default:
		r.verdict = passed
	}
	return r
}

// onlyAt says whether every assertion that did not hold is the one at place, file:line.
func onlyAt(place, out string) bool {
	all := assertPattern.FindAllStringSubmatch(out, -1)
	for _, m := range all {
		if m[1] != place {
			return false
		}
	}
	return len(all) > 0
}

func firstMatch(p *regexp.Regexp, out, otherwise string) string {
	if m := p.FindStringSubmatch(out); m != nil {
		return strings.TrimSpace(strings.Join(m[1:], " "))
	}
	return otherwise
}

func lastLine(out string) string {
	out = strings.TrimSpace(out)
	return strings.TrimSpace(out[strings.LastIndexByte(out, '\n')+1:])
}
