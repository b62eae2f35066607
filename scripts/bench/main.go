// Command bench measures this project's binary side by side with tgt, under fio with its libiscsi engine, and the blockstore side by
// side with what it lies on (store.go), and, if asked to, replication beside DRBD in guests (drbd.go), and writes the figures into docs/BENCHMARKS.md.
//
// What makes the figures comparable: all targets serve at the same time on one machine, every LUN is written full first (a
// thin block that was never written costs no medium), and within each run every job goes to all targets, one right after
// the other, in an order that shifts from run to run. A ratio is taken within a run; the median of the runs is reported.
// Figures from two machines, or two invocations, are not comparable.
//
// Run it from the root of the repository: make bench. BENCH_RUNS and BENCH_SECONDS shorten it; see -help.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sanctuary/scripts/mdblock"
	"sanctuary/scripts/rig"
)

const (
	preamble = `# Benchmarks

Made by ` + "`make bench`" + `: the same jobs, from the same load generator, one initiator session, in one run on one machine. The generator
is fio with its libiscsi engine; for jobs with digests (CRC32C of headers and data), which libiscsi lacks, it is this project's own
initiator, which takes more of the machine: compare those with each other only. The load generator has one half of the machine's cores, the target at work the
other, as if they were two machines. Compare within the table only: the ratio column is
taken within each run, against tgt, and its median is what counts. *CPU* is the processor time of all of a target's processes.
`
	startTimeout = 3 * time.Minute
	minMiB       = 64      // below it the LUN fits into caches that a real one does not
	maxMiB       = 1 << 20 // a TiB
)

type options struct {
	binary  string
	fio     string
	report  string // file to update; empty: print only
	cache   string // folder on a disk, for file LUNs
	targets []string
	cores   []int // for the targets; nil: any
	match   string
	runs    int
	seconds int
	bytes   int64
	tables  []string // of tableNames

	storeBytes int64 // of the volume of the second table
}

// The tables there are.
const (
	tableTargets = "targets" // this project's target beside tgt
	tableStore   = "store"   // the blockstore beside its medium
	tableDRBD    = "drbd"    // replication beside DRBD, in guests; only if it is named
)

func main() {
	o, err := parseOptions(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseOptions(args []string, getenv func(string) string) (options, error) {
	o := options{}
	var targets, tables string
	var mib, storeMiB int64
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.binary, "binary", "bin/sanctuary", "the binary to measure")
	f.StringVar(&o.fio, "fio", ".cache/fio/fio", "fio with its libiscsi engine: scripts/setup bench")
	f.StringVar(&o.report, "report", envOr(getenv, "BENCH_REPORT", "docs/BENCHMARKS.md"), "Markdown file to update, or - for none (BENCH_REPORT)")
	f.StringVar(&o.cache, "cache", ".cache", "folder, on a disk, for file LUNs")
	f.StringVar(&targets, "targets", strings.Join(allTargets(), ","), "what to measure; the first is what the others are compared with")
	f.StringVar(&tables, "tables", envOr(getenv, "BENCH_TABLES", tableTargets+","+tableStore), "which tables to make (BENCH_TABLES); drbd too, in guests")
	f.StringVar(&o.match, "jobs", "", "only jobs whose name contains this")
	f.IntVar(&o.runs, "runs", 0, "runs, 1 to 99; the median counts (BENCH_RUNS, 3)")
	f.IntVar(&o.seconds, "seconds", 0, "seconds for each job, 1 to 3600 (BENCH_SECONDS, 5)")
	f.Int64Var(&mib, "mib", 1024, "size of each LUN in MiB")
	f.Int64Var(&storeMiB, "store-mib", 0, "size of the volume beside its medium in MiB (BENCH_STORE_MIB, 4096)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for _, n := range []struct {
		value     *int
		env       string
		otherwise int
		most      int
	}{{&o.runs, "BENCH_RUNS", 3, 99}, {&o.seconds, "BENCH_SECONDS", 5, 3600}} {
		if *n.value == 0 {
			text := envOr(getenv, n.env, strconv.Itoa(n.otherwise))
			v, err := strconv.Atoi(text)
			if err != nil {
				return o, fmt.Errorf("%s is a whole number, not %q", n.env, text)
			}
			*n.value = v
		}
		if *n.value < 1 || *n.value > n.most {
			return o, fmt.Errorf("%s is from 1 to %d, not %d", n.env, n.most, *n.value)
		}
	}
	if storeMiB == 0 {
		var err error
		text := envOr(getenv, "BENCH_STORE_MIB", "4096")
		if storeMiB, err = strconv.ParseInt(text, 10, 64); err != nil {
			return o, fmt.Errorf("BENCH_STORE_MIB is a whole number, not %q", text)
		}
	}
	for name, n := range map[string]int64{"-mib": mib, "BENCH_STORE_MIB": storeMiB} {
		if n < minMiB || n > maxMiB {
			return o, fmt.Errorf("%s is from %d to %d, not %d", name, minMiB, maxMiB, n)
		}
	}
	o.bytes, o.storeBytes = mib<<20, storeMiB<<20
	if o.report == "-" {
		o.report = ""
	}
	for t := range strings.SplitSeq(tables, ",") {
		if blockNames[t] == "" {
			return o, fmt.Errorf("unknown table %q: %s, %s, %s", t, tableTargets, tableStore, tableDRBD)
		}
		o.tables = append(o.tables, t)
	}
	for t := range strings.SplitSeq(targets, ",") {
		if _, err := findVariant(t); err != nil {
			return o, err
		}
		o.targets = append(o.targets, t)
	}
	return o, nil
}

func envOr(getenv func(string) string, name, otherwise string) string {
	if v := getenv(name); v != "" {
		return v
	}
	return otherwise
}

// variant is one way to serve a LUN.
type variant struct {
	name, title string
	single      string // name of the variant that has one copy of the same, if this one has more
	start       func(ctx context.Context, o options, scratch, disk string) (*rig.Target, error)
}

func demo(nodes int, media string) func(context.Context, options, string, string) (*rig.Target, error) {
	return func(ctx context.Context, o options, _, disk string) (*rig.Target, error) {
		return rig.StartDemo(ctx, rig.Demo{Binary: o.binary, Dir: disk, Media: media, SizeBytes: o.bytes, Nodes: nodes})
	}
}

// ramDisk is where tgt, which has no RAM medium of its own, keeps its backing file: a tmpfs on every Linux.
const ramDisk = "/dev/shm"

var variants = []variant{
	{"tgt", "tgt, RAM", "", func(ctx context.Context, o options, scratch, _ string) (*rig.Target, error) {
		return rig.StartTgt(ctx, scratch, ramDisk, o.bytes)
	}},
	{"ram-1", "sanctuary, RAM, 1 copy", "", demo(1, "ram")},
	{"ram-2", "sanctuary, RAM, 2 copies + witness", "ram-1", demo(3, "ram")},
	{"file-1", "sanctuary, file, 1 copy", "", demo(1, "file")},
	{"file-2", "sanctuary, file, 2 copies + witness", "file-1", demo(3, "file")},
}

// controlVariant measures the harness itself: a second tgt, whose ratio to the first is noise. Not among the defaults.
var controlVariant = variant{"tgt-again", "tgt once more (noise)", "", variants[0].start}

func allTargets() []string {
	var names []string
	for _, v := range variants {
		names = append(names, v.name)
	}
	return names
}

func findVariant(name string) (variant, error) {
	for _, v := range append(variants, controlVariant) {
		if v.name == name {
			return v, nil
		}
	}
	return variant{}, fmt.Errorf("unknown target %q: %s, %s", name, strings.Join(allTargets(), ", "), controlVariant.name)
}

// contender is a running target with what has been measured of it: samples[job] in the order of the runs.
type contender struct {
	variant
	target  *rig.Target
	disk    string       // its folder
	cleanup func() error // removes its folders, once it has stopped
	samples map[string][]sample
}

func run(ctx context.Context, o options) error {
	for _, t := range o.tables {
		make := map[string]func(context.Context, options) (string, error){tableTargets: benchTargets, tableStore: benchStore, tableDRBD: benchDRBD}[t]
		text, err := make(ctx, o)
		if err != nil {
			return err
		}
		if text == "" { // it was made by another process
			continue
		}
		fmt.Println(text)
		if o.report == "" {
			continue
		}
		if err := mdblock.Replace(o.report, blockNames[t], preamble, text); err != nil {
			return err
		}
	}
	return nil
}

// blockNames are the names of the tables' places in the report.
var blockNames = map[string]string{tableTargets: "bench", tableStore: "store", tableDRBD: "drbd"}

// benchTargets makes the first table.
func benchTargets(ctx context.Context, o options) (text string, err error) {
	chosen := chooseJobs(o.match)
	if len(chosen) == 0 {
		return "", fmt.Errorf("no job has %q in its name", o.match)
	}
	generator, target, err := halves()
	if err != nil {
		return "", err
	}
	o.cores = target
	var field []*contender
	defer func() {
		for _, c := range field {
			err = errors.Join(err, c.target.Stop(), c.cleanup())
		}
	}()
	for _, name := range o.targets {
		c, err := startContender(ctx, o, name)
		if err != nil {
			return "", fmt.Errorf("start %s: %w", name, err)
		}
		field = append(field, c)
	}
	var beside floor
	if err := beside.add(o.cache); err != nil {
		return "", err
	}
	// Not before the targets have started: they look how many cores there are.
	if err := pin(os.Getpid(), generator); err != nil { // and with it the fio that it starts
		return "", err
	}
	unpin := func() error { return pin(os.Getpid(), slices.Concat(generator, target)) }
	defer func() { err = errors.Join(err, unpin()) }()
	for _, c := range field {
		fmt.Fprintf(os.Stderr, "fill %s\n", c.title)
		if err := fill(ctx, o, c.target); err != nil {
			c.showLogs()
			return "", fmt.Errorf("fill %s: %w", c.title, err)
		}
	}
	for r := range o.runs {
		for _, j := range chosen {
			for i := range field {
				c := field[(i+r)%len(field)]
				s, err := measure(ctx, o, c.target, j)
				if err != nil {
					c.showLogs()
					return "", fmt.Errorf("%s, %s: %w", j.name, c.title, err)
				}
				c.samples[j.name] = append(c.samples[j.name], s)
				fmt.Fprintf(os.Stderr, "run %d/%d  %-26s %-36s %9.0f IOPS %8.1f MB/s  p50 %7.0f µs  p99 %7.0f µs  cpu %6.2f s/100k\n",
					r+1, o.runs, j.name, c.title, s.iops, s.megabytes, s.p50, s.p99, s.cpu100k)
			}
		}
	}
	if err := errors.Join(unpin(), beside.add(o.cache)); err != nil {
		return "", err
	}
	return table(o, chosen, field, describeMachine(ctx, o)) + "\n" + beside.String() + "\n", nil
}

// startContender starts one variant with folders of its own, which are gone again after an error.
func startContender(ctx context.Context, o options, name string) (c *contender, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	v, err := findVariant(name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp("", "bench") // short: sockets live in it
	if err != nil {
		return nil, err
	}
	disk, err := os.MkdirTemp(o.cache, "bench-")
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(scratch))
	}
	cleanup := func() error { return errors.Join(os.RemoveAll(scratch), os.RemoveAll(disk)) }
	target, err := v.start(ctx, o, scratch, disk)
	if err != nil {
		(&contender{variant: v, disk: disk}).showLogs()
		return nil, errors.Join(err, cleanup())
	}
	if err := pinTarget(target, o.cores); err != nil {
		return nil, errors.Join(err, target.Stop(), cleanup())
	}
	return &contender{variant: v, target: target, disk: disk, cleanup: cleanup, samples: map[string][]sample{}}, nil
}

// showLogs prints how its processes' logs end: their folder is about to be removed.
func (c *contender) showLogs() {
	const lines = 25
	logs, _ := filepath.Glob(filepath.Join(c.disk, "state", "*.log"))
	for _, name := range append(logs, filepath.Join(c.disk, "demo.log")) {
		text, err := os.ReadFile(name)
		if err != nil || len(text) == 0 {
			continue
		}
		all := strings.Split(strings.TrimSpace(string(text)), "\n")
		fmt.Fprintf(os.Stderr, "%s, the end of %s:\n%s\n", c.title, filepath.Base(name), strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
}

// describeMachine says on what and with what the figures were taken. What cannot be found out is left out.
func describeMachine(ctx context.Context, o options) string {
	var parts []string
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if model, ok := strings.CutPrefix(line, "model name"); ok {
				parts = append(parts, strings.TrimSpace(strings.TrimLeft(model, "\t :")))
				break
			}
		}
	}
	parts = append(parts, fmt.Sprintf("%d cores", runtime.NumCPU()))
	for _, v := range []struct{ prefix, command string }{
		{"Linux ", "uname -r"}, {"tgt ", "tgtd --version"}, {"", o.fio + " --version"}, {"sanctuary ", "git describe --tags --always --dirty"},
	} {
		words := strings.Fields(v.command)
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).Output(); err == nil {
			parts = append(parts, v.prefix+strings.TrimSpace(string(out)))
		}
	}
	parts = append(parts, runtime.Version())
	return strings.Join(parts, ", ")
}
