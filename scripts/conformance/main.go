// Command conformance runs iscsi-test-cu against a LUN, one process for each test, and writes what passed, failed and was
// skipped into docs/CONFORMANCE.md. It fails when a test named in must-pass.txt does not pass any more.
//
// One process a test: a test that hangs or leaves its session in a mess is that test's failure and no other's. Run it from
// the root of the repository: make conformance.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sanctuary/scripts/mdblock"
	"sanctuary/scripts/rig"
)

const (
	mustPass = "scripts/conformance/must-pass.txt"
	preamble = `# Conformance

What [libiscsi](https://github.com/sahlberg/libiscsi)'s ` + "`iscsi-test-cu`" + ` says about a replicated LUN: two data nodes and a witness on loopback,
every test in a process of its own through the owner's portal. *Skip* is the test's own verdict: it found the feature absent
and reported as absent, or skipped a part of itself. *Tool* counts tests of which only an assertion failed that no target can satisfy; it is named below.
MultipathIO runs over two sessions through the owner's portal, for the other portals are standby and move no data. The table is made by ` + "`make conformance`" + `, which fails when a test of
` + "[must-pass.txt](../scripts/conformance/must-pass.txt)" + ` does not pass.
`
	startTimeout = 2 * time.Minute
	lunBytes     = 1 << 30
)

type options struct {
	target  string        // "sanctuary", "tgt", or an iscsi:// URL of a LUN that may be overwritten
	binary  string        // path of the sanctuary binary
	media   string        // "ram" or "file"
	nodes   int           // of the demo cluster
	match   string        // only suites whose name begins so; empty: all, and the report is written
	timeout time.Duration // for one test
	report  string        // file to update after a run of everything against sanctuary; empty: none
	update  bool          // add what passes to the must-pass list
}

func main() {
	var o options
	flag.StringVar(&o.target, "target", "sanctuary", "what to test: sanctuary, tgt, or the iscsi:// URL of a LUN that may be overwritten")
	flag.StringVar(&o.binary, "binary", "bin/sanctuary", "the binary to start")
	flag.StringVar(&o.media, "media", "ram", "medium of the LUN: ram or file")
	flag.IntVar(&o.nodes, "nodes", 3, "nodes of the cluster: 1 or 3")
	flag.StringVar(&o.match, "match", "", "only tests whose name begins so, such as Read10; the report is left alone")
	flag.DurationVar(&o.timeout, "timeout", time.Minute, "longest a single test may take")
	flag.StringVar(&o.report, "report", "docs/CONFORMANCE.md", "file to update when every test was run against sanctuary, or empty for none")
	flag.BoolVar(&o.update, "update", false, "add every test that passes to "+mustPass)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	required, err := readList(mustPass)
	if err != nil {
		return err
	}
	tests, err := listTests(ctx, o.match)
	if err != nil {
		return err
	}
	target, err := startTarget(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.stop()) }()

	var results []result
	for _, name := range tests {
		r := runTest(ctx, target.paths(name), name, o.timeout)
		if moved := r.verdict == failed && target.follow(ctx); moved && ctx.Err() == nil {
			fmt.Printf("%-4s %-45s %6.2fs the LUN has moved, once more: %s\n", "", r.name, r.took.Seconds(), r.reason)
			r = runTest(ctx, target.paths(name), name, o.timeout)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		results = append(results, r)
		fmt.Printf("%-4s %-45s %6.2fs %s\n", r.verdict, r.name, r.took.Seconds(), r.reason)
		if r.verdict == failed {
			if !target.alive() {
				return fmt.Errorf("the target ended during %s", name)
			}
			// A test that ended in the middle may have left a reservation: a LUN reset takes it away.
			_ = runTest(ctx, []string{target.url}, resetTest, o.timeout)
		}
	}
	fmt.Print(total(results))
	if o.report != "" && o.match == "" && o.target == "sanctuary" {
		if err := mdblock.Replace(o.report, "iscsi-test-cu", preamble, table(results, o)); err != nil {
			return err
		}
	}
	if o.update {
		if err := writeList(mustPass, required, results); err != nil {
			return err
		}
	}
	return regressions(required, results)
}

// subject is what is tested.
type subject struct {
	url   string // of the portal through which the LUN is served
	alive func() bool
	stop  func() error
	// serving says where the LUN is served now; nil if there is but one portal.
	serving func(ctx context.Context) (string, error)
}

// paths returns the URLs a test is run on. Two sessions are two paths: the portals of the other nodes are standby.
func (s *subject) paths(test string) []string {
	if strings.HasPrefix(test, "MultipathIO.") {
		return []string{s.url, s.url}
	}
	return []string{s.url}
}

// follow looks where the LUN is served after a test has failed, and says whether it has moved: on a machine so busy that
// nodes do not hear each other for a while, ownership moves, and the portal tested is a standby one.
func (s *subject) follow(ctx context.Context) bool {
	if s.serving == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	url, err := s.serving(ctx)
	if err != nil || url == s.url {
		return false
	}
	s.url = url
	return true
}

// startTarget starts what is to be tested, unless it runs already.
func startTarget(ctx context.Context, o options) (*subject, error) {
	if strings.HasPrefix(o.target, "iscsi://") {
		return &subject{url: o.target, alive: func() bool { return true }, stop: func() error { return nil }}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "cu")
	if err != nil {
		return nil, err
	}
	var target *rig.Target
	switch o.target {
	case "tgt":
		target, err = rig.StartTgt(ctx, dir, dir, lunBytes)
	case "sanctuary":
		target, err = rig.StartDemo(ctx, rig.Demo{Binary: o.binary, Dir: dir, Media: o.media, SizeBytes: lunBytes, Nodes: o.nodes})
	default:
		err = fmt.Errorf("unknown target %q: sanctuary, tgt, or iscsi://host:port/iqn/lun", o.target)
	}
	if err != nil {
		keepLog(dir)
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := &subject{alive: target.Alive, serving: target.Serving}
	s.stop = func() error { return errors.Join(target.Stop(), os.RemoveAll(dir)) }
	if s.url, err = target.Serving(ctx); err != nil {
		keepLog(dir)
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// keepLog shows what the target had to say before its folder goes.
func keepLog(dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log")) // the pattern is valid
	for _, name := range logs {
		if text, err := os.ReadFile(name); err == nil {
			fmt.Fprintf(os.Stderr, "%s:\n%s\n", filepath.Base(name), text)
		}
	}
}
