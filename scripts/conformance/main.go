// Command conformance runs iscsi-test-cu against a LUN, one process for each suite, and beside it against tgt, and writes
// what passed, failed and was skipped into docs/CONFORMANCE.md. It fails when a test fails, when one skips that is not named
// in expected-skips.txt, and when one named there does not skip any more.
//
// Then it runs the suites that may be interrupted (moved-suites.txt) while the LUN is handed from node to node, where nothing
// may fail either. Run it from the root of the repository: make conformance.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"sanctuary/scripts/mdblock"
)

const (
	expectedSkips = "scripts/conformance/expected-skips.txt"
	movedSuites   = "scripts/conformance/moved-suites.txt"
)

type options struct {
	target    string        // "sanctuary", "tgt", or an iscsi:// URL of a LUN that may be overwritten
	reference bool          // run tgt too
	binary    string        // path of the sanctuary binary
	media     string        // "ram" or "file"
	nodes     int           // of the demo cluster
	match     string        // only tests whose name begins so; empty: all, and the report is written
	alone     bool          // one process for each test instead of each suite
	timeout   time.Duration // for one process
	moves     int           // how often the LUN is moved; 0: not at all
	every     time.Duration // time before each move
	report    string        // file to update after a run of everything against sanctuary; empty: none
}

func main() {
	var o options
	flag.StringVar(&o.target, "target", "sanctuary", "what to test: sanctuary, tgt, or the iscsi:// URL of a LUN that may be overwritten")
	flag.BoolVar(&o.reference, "reference", true, "run tgt too, when sanctuary is tested; its failures are shown and judge nothing")
	flag.StringVar(&o.binary, "binary", "bin/sanctuary", "the binary to start")
	flag.StringVar(&o.media, "media", "ram", "medium of the LUN: ram or file")
	flag.IntVar(&o.nodes, "nodes", 3, "nodes of the cluster: 1 or 3")
	flag.StringVar(&o.match, "match", "", "only tests whose name begins so, such as Read10; nothing is moved and the report is left alone")
	flag.BoolVar(&o.alone, "alone", false, "run each test in a process of its own: slower, and no test can disturb the next")
	flag.DurationVar(&o.timeout, "timeout", time.Minute, "longest a process, one suite, may take")
	flag.IntVar(&o.moves, "moves", 6, "how often the LUN is moved under the suites that may be interrupted; 0 for not at all")
	flag.DurationVar(&o.every, "every", 10*time.Second, "time between two moves")
	flag.StringVar(&o.report, "report", "docs/CONFORMANCE.md", "file to update when every test was run against sanctuary, or empty for none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	suites, err := listSuites(ctx, o.match)
	if err != nil {
		return err
	}
	expected, err := readNotes(expectedSkips)
	if err != nil {
		return err
	}
	whole := o.match == ""
	ours := o.target == "sanctuary"
	var interruptible []suite
	if whole {
		if interruptible, err = readSuites(movedSuites, suites); err != nil {
			return err
		}
	}
	r, err := examine(ctx, o, suites, expected, interruptible)
	if err != nil {
		return err
	}
	if ours && whole && o.reference {
		ref := o
		ref.target = "tgt"
		fmt.Println("tgt, the reference:")
		of, err := examine(ctx, ref, suites, nil, nil)
		if err != nil {
			return fmt.Errorf("tgt: %w", err)
		}
		r.reference, r.referenceProtected = of.results, of.protected
	}
	fmt.Printf("%s: %s\n", r.subject, count(r.results))
	if len(r.reference) > 0 {
		fmt.Printf("tgt: %s\n", count(r.reference))
	}
	if o.report != "" && whole && ours {
		if err := mdblock.Replace(o.report, "iscsi-test-cu", "# Conformance\n\n", r.table()); err != nil {
			return err
		}
	}
	if o.target == "tgt" {
		return nil
	}
	errs := []error{gate(r.results, expected, whole), gate(r.forwarded, expected, whole), gate(r.protected, nil, false), gate(r.aligned, nil, false)}
	if r.moved != nil {
		fmt.Println("moved:", r.moved)
		errs = append(errs, r.moved.err())
	}
	return errors.Join(errs...)
}

// examine starts one target and runs everything on it that it can be put to.
func examine(ctx context.Context, o options, suites []suite, expected map[string]string, interruptible []suite) (r report, err error) {
	s, err := start(ctx, o.target, o)
	if err != nil {
		return report{}, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	r.subject = s.name
	t := tool{timeout: o.timeout}
	if err := s.check(ctx); err != nil {
		return r, err
	}
	for _, one := range suites {
		results, err := runSuite(ctx, t, s, one, o.alone)
		if err != nil {
			return r, err
		}
		show(results, "")
		r.results = append(r.results, results...)
	}
	if r.forwarded, err = runForwarded(ctx, t, s, suites); err != nil {
		return r, err
	}
	if r.protected, err = runProtected(ctx, t, s, suites); err != nil {
		return r, err
	}
	if r.aligned, err = runAligned(ctx, t, s, suites); err != nil {
		return r, err
	}
	if s.admin != nil && o.moves > 0 && o.nodes > 1 && len(interruptible) > 0 {
		if err := s.singlePath(ctx); err != nil {
			return r, err
		}
		c, err := runMoved(ctx, t, s, interruptible, expected, o.moves, o.every)
		if err != nil {
			return r, err
		}
		r.moved = &c
	}
	return r, nil
}

// runSuite runs a suite, and again if it failed because the LUN is served elsewhere now.
func runSuite(ctx context.Context, t tool, s *subject, one suite, alone bool) ([]result, error) {
	results, err := attempt(ctx, t, s, one, alone)
	if err == nil && count(results).fail > 0 && ctx.Err() == nil {
		// A test that ended in the middle may have left a reservation: a LUN reset takes it away.
		_ = t.reset(ctx, s.url)
		if s.follow(ctx) {
			fmt.Printf("     %-45s another node owns the LUN now, once more\n", one.name)
			results, err = attempt(ctx, t, s, one, alone)
		}
	}
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if !s.alive() {
		return nil, fmt.Errorf("the target ended during %s", one.name)
	}
	return results, nil
}

// attempt runs a suite, with what its process cannot show put in its place.
func attempt(ctx context.Context, t tool, s *subject, one suite, alone bool) ([]result, error) {
	var results []result
	if one.name == multipathSuite {
		if err := clearBlocks(ctx, s.url); err != nil {
			return nil, err
		}
	}
	if alone {
		results = t.apart(ctx, s.paths(one.name), one)
	} else {
		results = t.suite(ctx, s.paths(one.name), one)
	}
	if slices.Contains(one.tests, resetTest) {
		overlay(results, []result{t.reset(ctx, s.url)})
	}
	return results, nil
}
