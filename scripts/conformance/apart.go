package main

import (
	"context"
	"errors"
	"fmt"
)

const (
	// resetTest shows nothing in a process of its suite: the test before it leaves no session, so it returns at once and
	// counts as passed, without a word (test_async_lu_reset_simple.c:102). Alone it cannot pass either: line 157 asserts that
	// the answer to the reset has come, right after queueing the request, before anything was sent. It runs as it is meant to
	// from its second time in one process, for the variable is static and the first run's log-out takes the answer in.
	resetTest = "iSCSITMF.LUNResetSimpleAsync"
	resetBug  = "test_async_lu_reset_simple.c:157"

	readOnlySuite = "ReadOnly"
	lbaSuite      = "GetLBAStatus"

	multipathSuite = "MultipathIO"
)

// reset runs resetTest twice in one process, once in family ALL and once in family iSCSI. The second run's verdict counts,
// provided that the first failed nowhere but at the tool's own fault. As any LUN reset it also takes away a reservation
// that another test has left.
//
// The first run gives up its write and then logs out. The answer to the reset may come too late for it; and a write that is
// answered meanwhile, not aborted, makes the tool use what it has freed (line 202), so that it may crash. Neither is the
// target's doing, and another attempt may fare better.
func (t tool) reset(ctx context.Context, url string) result {
	const attempts = 5
	for i := 1; ; i++ {
		outcomes, err := t.run(ctx, []string{url}, "*."+resetTest)
		r := result{name: resetTest, verdict: faulty, reason: "the tool crashes: it uses the task of its write after it has freed it (test_async_lu_reset_simple.c:202)"}
		switch {
		case err == nil:
			r = judgeReset(outcomes)
		case !errors.Is(err, errCrashed):
			return result{name: resetTest, verdict: failed, reason: err.Error()}
		}
		if r.verdict != faulty || i == attempts {
			return r
		}
	}
}

func judgeReset(outcomes []outcome) result {
	if len(outcomes) != 2 || outcomes[0].name != resetTest || outcomes[1].name != resetTest {
		return result{name: resetTest, verdict: failed, reason: fmt.Sprintf("%d runs of it in one process, want 2", len(outcomes))}
	}
	if first := outcomes[0]; !first.passed && !onlyAt(resetBug, first.asserts) {
		return judge(first)
	}
	if second := outcomes[1]; !second.passed && onlyAt(resetBug, second.asserts) {
		return result{name: resetTest, verdict: faulty, reason: "ends before the reset is sent (" + resetBug + ")"}
	}
	return judge(outcomes[1])
}

// runProtected runs the read-only suite while the LUN is write-protected by software (SPC-4 §7.5.8, SWP), which any initiator
// can ask for, and takes the protection off again.
func runProtected(ctx context.Context, t tool, s *subject, suites []suite) ([]result, error) {
	one, there := suiteOf(suites, readOnlySuite)
	if !there {
		return nil, nil
	}
	if err := writeProtect(ctx, s.url, true); err != nil {
		return nil, err
	}
	results := t.suite(ctx, []string{s.url}, one)
	show(results, ", write-protected")
	return results, writeProtect(ctx, s.url, false)
}

// show prints what became of some tests, on a LUN that is not the usual one.
func show(results []result, where string) {
	for _, r := range results {
		fmt.Printf("%-4s %-45s %s\n", r.verdict, r.name+where, r.reason)
	}
}

// runForwarded runs all suites through the portal of a node that does not own the LUN and passes commands on to the one that
// does: nothing may be different there. What does not pass is printed.
func runForwarded(ctx context.Context, t tool, s *subject, suites []suite) ([]result, error) {
	other := s.other()
	if s.admin == nil || other.url == s.url {
		return nil, nil
	}
	var all []result
	for _, one := range suites {
		results, err := runSuite(ctx, t, other, one, false)
		if err != nil {
			return nil, err
		}
		for _, r := range results {
			if r.verdict == failed {
				show([]result{r}, ", forwarded")
			}
		}
		all = append(all, results...)
	}
	fmt.Printf("forwarded: %s\n", count(all))
	return all, nil
}

// overlay puts results in the place of those of the same tests.
func overlay(all, better []result) {
	for _, b := range better {
		for i := range all {
			if all[i].name == b.name {
				all[i] = b
			}
		}
	}
}

// suiteOf returns the suite of that name among those that are run.
func suiteOf(suites []suite, name string) (suite, bool) {
	for _, s := range suites {
		if s.name == name {
			return s, true
		}
	}
	return suite{}, false
}

// runAligned runs the suite that has a fault of the tool's on a LUN where that is none: with physical blocks as long as logical
// ones it asks for what SBC-3 says.
func runAligned(ctx context.Context, t tool, s *subject, suites []suite) ([]result, error) {
	one, there := suiteOf(suites, lbaSuite)
	if !there || s.admin == nil {
		return nil, nil
	}
	url, err := s.aligned(ctx)
	if err != nil {
		return nil, err
	}
	results := t.suite(ctx, []string{url}, one)
	show(results, ", 4Kn")
	return results, ctx.Err()
}
