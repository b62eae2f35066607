package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The second table: the blockstore against what it lies on. Its medium is what fio makes of the same file or block device, with
// the same way of doing I/O: both go through the page cache. Beside them stands what fio does without it (O_DIRECT).

// storeDepth is how many reads are outstanding: goroutines of the blockstore, threads of fio.
const storeDepth = 32

// contest is one load that several do, one right after the other within each run.
type contest struct {
	name    string
	wanted  string                      // what is to hold, for people
	prepare func(context.Context) error // once, before the first run
	before  func(context.Context) error // before every entrant
	// The first is what the others are compared with.
	entrants []entrant
}

type entrant struct {
	title string
	run   func(context.Context) (output, error)
}

// contestsOf returns the loads for one medium, in the order in which they can be run: snapshots scatter what lies in order.
func contestsOf(o options, m *medium, e *engine) []contest {
	d := time.Duration(o.seconds) * time.Second
	live := func(ctx context.Context) (output, error) { return e.read(ctx, e.volume, d) }
	raw := func(more ...string) func(context.Context) (output, error) {
		return func(ctx context.Context) (output, error) {
			from, err := e.begins()
			if err != nil {
				return output{}, err
			}
			return rawFio(ctx, o, m.pool, append([]string{
				"--readonly", "--rw=randread", "--bs=4k", "--fadvise_hint=0", "--offset=" + strconv.FormatInt(from, 10),
				"--time_based", "--runtime=" + strconv.Itoa(o.seconds),
			}, more...)...)
		}
	}
	rawWrite := func(more ...string) func(context.Context) (output, error) {
		return func(ctx context.Context) (output, error) {
			return rawFio(ctx, o, m.rival, append([]string{"--rw=write", "--bs=1M", "--end_fsync=1"}, more...)...)
		}
	}
	threads := []string{"--ioengine=psync", "--thread", "--numjobs=" + strconv.Itoa(storeDepth)}
	direct := []string{"--direct=1", "--ioengine=libaio", "--iodepth=" + strconv.Itoa(storeDepth)}
	cold := func(context.Context) error { return e.reopen(m.forget) }
	warm := func(ctx context.Context) error { _, err := e.readAll(ctx); return err }
	return []contest{
		{name: "4k randread qd32, in the page cache", wanted: "≥ 0.85", before: warm, entrants: []entrant{
			{"fio, 32 threads", raw(threads...)}, {"blockstore", live},
		}},
		{name: "4k randread qd32, from the medium", wanted: "≥ 0.85", before: cold, entrants: []entrant{
			{"fio, 32 threads", raw(threads...)}, {"blockstore", live}, {"fio, O_DIRECT, libaio", raw(direct...)},
		}},
		{name: "1M write, durable at the end", wanted: "≥ 0.60", entrants: []entrant{
			{"fio, end_fsync", rawWrite("--ioengine=psync")}, {"blockstore", e.writeAll}, {"fio, O_DIRECT, libaio qd8", rawWrite("--direct=1", "--ioengine=libaio", "--iodepth=8")},
		}},
		{name: "4k randwrite qd1, durable at the end", wanted: "≥ 0.77", before: warm, entrants: []entrant{
			{"blockstore, overwriting", e.overwrite}, {"blockstore, first time after a snapshot", e.overwriteAfterSnapshot},
		}},
		{name: "4k randread qd32, in the page cache, with " + strconv.Itoa(snapshots) + " snapshots", wanted: "0.90 to 1.10", prepare: e.pile, before: warm, entrants: []entrant{
			{"blockstore, live", live},
			{"blockstore, last snapshot", func(ctx context.Context) (output, error) {
				view, err := e.volume.View(e.view)
				if err != nil {
					return output{}, err
				}
				return e.read(ctx, view, d)
			}},
		}},
	}
}

// benchStore runs the second table.
func benchStore(ctx context.Context, o options) (text string, err error) {
	var rows strings.Builder
	for _, name := range mediumNames() {
		m, err := newMedium(o, name)
		if err != nil {
			return "", fmt.Errorf("medium %s: %w", name, err)
		}
		err = errors.Join(benchMedium(ctx, o, m, &rows), m.close())
		if err != nil {
			return "", fmt.Errorf("on %s: %w", name, err)
		}
	}
	return storeTable(o, rows.String(), describeMachine(ctx, o)), nil
}

func benchMedium(ctx context.Context, o options, m *medium, rows *strings.Builder) (err error) {
	fmt.Fprintf(os.Stderr, "fill %s\n", m.name)
	if _, err := rawFio(ctx, o, m.rival, "--rw=write", "--bs=1M", "--end_fsync=1", "--ioengine=psync"); err != nil {
		return err
	}
	e, err := newEngine(ctx, m.config, o.storeBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	for _, c := range contestsOf(o, m, e) {
		if !strings.Contains(c.name, o.match) {
			continue
		}
		if err := c.hold(ctx, o, m.name, rows); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// hold runs a contest and appends its rows of the table.
func (c contest) hold(ctx context.Context, o options, medium string, rows *strings.Builder) error {
	if c.prepare != nil {
		if err := c.prepare(ctx); err != nil {
			return err
		}
	}
	samples := make([][]sample, len(c.entrants))
	for r := range o.runs {
		for i := range c.entrants {
			n := (i + r) % len(c.entrants)
			if c.before != nil {
				if err := c.before(ctx); err != nil {
					return err
				}
			}
			cpu := cpuUsed()
			out, err := c.entrants[n].run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", c.entrants[n].title, err)
			}
			if out.cpu == 0 {
				out.cpu = cpuUsed() - cpu
			}
			s, err := out.sample(out.cpu)
			if err != nil {
				return err
			}
			samples[n] = append(samples[n], s)
			fmt.Fprintf(os.Stderr, "run %d/%d  %-12s %-42s %-40s %9.0f IOPS %8.1f MB/s  p50 %7.1f µs  p99 %7.1f µs\n",
				r+1, o.runs, medium, c.name, c.entrants[n].title, s.iops, s.megabytes, s.p50, s.p99)
		}
	}
	for i, e := range c.entrants {
		figure := func(f func(sample) float64) float64 { return median(pick(samples[i], f)) }
		ratio, wanted := "1", ""
		if i > 0 {
			ratio = describeRatios(samples[i], samples[0])
		}
		if i == 1 {
			wanted = c.wanted
		}
		fmt.Fprintf(rows, "| %s | %s | %s | %.0f | %.1f | %.1f | %.1f | %.1f | %s | %s |\n", c.name, medium, e.title,
			figure(func(s sample) float64 { return s.iops }), figure(func(s sample) float64 { return s.megabytes }),
			figure(func(s sample) float64 { return s.p50 }), figure(func(s sample) float64 { return s.p99 }),
			figure(func(s sample) float64 { return s.cpu100k * 10 }), ratio, wanted)
	}
	return nil
}

func storeTable(o options, rows, machine string) string {
	return fmt.Sprintf("Machine: %s.\n\nCommand: `make bench BENCH_TABLES=store BENCH_RUNS=%d BENCH_SECONDS=%d BENCH_STORE_MIB=%d` (medians of %d runs; in brackets the lowest and highest ratio).\n\n",
		machine, o.runs, o.seconds, o.storeBytes>>20, o.runs) +
		"| load | medium | who | IOPS | MB/s | p50 µs | p99 µs | CPU µs / I/O | to the first | wanted |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|\n" + rows
}

// cpuUsed returns the processor time of this program and of what it has run.
func cpuUsed() time.Duration {
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil { // it fails only where the arguments are wrong
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// rawFio runs one job on a file or device, and leaves the page cache as it is.
func rawFio(ctx context.Context, o options, path string, more ...string) (output, error) {
	return runFio(ctx, o, time.Duration(o.seconds)*time.Second+10*time.Minute, append([]string{
		"--filename=" + escapeFilename(path), "--size=" + strconv.FormatInt(o.storeBytes, 10), "--invalidate=0", "--allow_file_create=0", "--group_reporting",
	}, more...)...)
}
