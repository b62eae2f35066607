package main

import (
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const fioOutput = `fio: a warning first
{
  "fio version" : "fio-3.33",
  "jobs" : [ { "jobname" : "job", "error" : 0,
    "read" : { "total_ios" : 0, "iops" : 0.0, "bw_bytes" : 0, "clat_ns" : { } },
    "write" : { "total_ios" : 20000, "iops" : 10000.5, "bw_bytes" : 40960000,
      "clat_ns" : { "percentile" : { "50.000000" : 49408, "99.000000" : 116224 } } } } ]
}`

func TestSampleOfAWritingJob(t *testing.T) {
	t.Parallel()
	out, err := parse([]byte(fioOutput))
	if err != nil {
		t.Fatal(err)
	}
	s, err := out.sample(600 * time.Millisecond)
	want := sample{iops: 10000.5, megabytes: 40.96, p50: 49.408, p99: 116.224, cpu100k: 3}
	if err != nil || math.Abs(s.cpu100k-want.cpu100k) > 1e-9 {
		t.Errorf("cpu %v, %v; want %v", s.cpu100k, err, want.cpu100k)
	}
	if s.cpu100k = want.cpu100k; s != want {
		t.Errorf("sample %+v, want %+v", s, want)
	}
}

func TestBadRunsAreErrors(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nothing":  "",
		"no JSON":  "fio: engine libiscsi not loadable",
		"half":     fioOutput[:len(fioOutput)-9],
		"error":    strings.Replace(fioOutput, `"error" : 0`, `"error" : 5`, 1),
		"no jobs":  "{}",
		"two jobs": `{"jobs":[{},{}]}`,
	} {
		if out, err := parse([]byte(text)); err == nil {
			t.Errorf("%s: %+v, want an error", name, out)
		}
	}
	idle, err := parse([]byte(strings.Replace(fioOutput, `"total_ios" : 20000`, `"total_ios" : 0`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := idle.sample(time.Second); err == nil {
		t.Errorf("no I/O: %+v, want an error", s)
	}
}

func TestRatiosArePairedByRun(t *testing.T) {
	t.Parallel()
	// The machine was twice as fast in the second run; the ratio was the same.
	base := []sample{{iops: 100}, {iops: 200}, {iops: 100}}
	r := ratios([]sample{{iops: 50}, {iops: 100}, {iops: 80}}, base)
	if median(r) != 0.5 {
		t.Errorf("ratios %v, median %v, want 0.5", r, median(r))
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median %v, want 2.5", m)
	}
}

func TestOwnGeneratorReportsAsFioDoes(t *testing.T) {
	t.Parallel()
	var took []time.Duration
	for i := range 200 { // the longest first
		took = append(took, time.Duration(200-i)*time.Microsecond)
	}
	g := &generator{job: job{pattern: "randwrite", blockSize: "4k"}, size: 4096}
	s, err := g.report(took, 2*time.Second).sample(100 * time.Millisecond)
	want := sample{iops: 100, megabytes: 0.4096, p50: 100, p99: 198, cpu100k: 50}
	if err != nil || s != want {
		t.Errorf("%+v, %v; want %+v", s, err, want)
	}
	if s, err := g.report(nil, time.Second).sample(time.Second); err == nil {
		t.Errorf("no I/O: %+v, want an error", s)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	o := options{runs: 1, seconds: 2, bytes: 1 << 30}
	field := []*contender{
		{variant: variants[0], samples: map[string][]sample{jobs[0].name: {{iops: 1000, megabytes: 4.1, p50: 50, p99: 100, cpu100k: 2}}}},
		{variant: variants[1], samples: map[string][]sample{jobs[0].name: {{iops: 1500, megabytes: 6.1, p50: 40, p99: 90, cpu100k: 1.5}}}},
		{variant: variants[2], samples: map[string][]sample{jobs[0].name: {{iops: 600, megabytes: 2.5, p50: 90, p99: 190, cpu100k: 5}}}},
	}
	got := table(o, jobs[:1], field, "a machine")
	for _, want := range []string{
		"Machine: a machine.", "make bench BENCH_RUNS=1 BENCH_SECONDS=2", "LUNs of 1024 MiB",
		"| 4k randread qd1 | tgt, RAM | 1000 | 4.1 | 50 | 100 | 2.00 | 1 |  |",
		"| 4k randread qd1 | sanctuary, RAM, 1 copy | 1500 | 6.1 | 40 | 90 | 1.50 | 1.50 (1.50–1.50) |  |",
		"| 4k randread qd1 | sanctuary, RAM, 2 copies + witness | 600 | 2.5 | 90 | 190 | 5.00 | 0.60 (0.60–0.60) | 0.40 (0.40–0.40) |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestFloorIsMeasured(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var f floor
	if err := f.add(dir); err != nil {
		t.Fatal(err)
	}
	if len(f.sync) != floorRounds || median(f.sync) <= 0 || len(f.trips) != floorRounds || median(f.trips) <= 0 {
		t.Errorf("%d syncs, %d trips: %v", len(f.sync), len(f.trips), &f)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	if err := f.add(filepath.Join(dir, "missing")); err == nil {
		t.Error("a folder that is not there was taken")
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	env := map[string]string{}
	getenv := func(name string) string { return env[name] }
	o, err := parseOptions(nil, getenv)
	if err != nil || o.runs != 3 || o.seconds != 5 || o.bytes != 1<<30 || len(o.targets) != len(variants) || len(o.tables) != 2 || o.storeBytes != 4<<30 || o.report != "docs/BENCHMARKS.md" {
		t.Errorf("defaults: %+v, %v", o, err)
	}
	env = map[string]string{"BENCH_RUNS": "1", "BENCH_SECONDS": "2", "BENCH_REPORT": "-"}
	if o, err = parseOptions([]string{"-targets", "tgt"}, getenv); err != nil || o.runs != 1 || o.seconds != 2 || o.report != "" {
		t.Errorf("from the environment: %+v, %v", o, err)
	}
	if o, err = parseOptions([]string{"-runs", "7"}, getenv); err != nil || o.runs != 7 {
		t.Errorf("a flag before the environment: %+v, %v", o, err)
	}
	for _, args := range [][]string{{"-runs", "100"}, {"-seconds", "-1"}, {"-mib", "1"}, {"-mib", "17592186045440"}, {"-targets", "lio"}, {"-tables", "none"}, {"-store-mib", "1"}} {
		if o, err := parseOptions(args, getenv); err == nil {
			t.Errorf("%q: %+v, want an error", args, o)
		}
	}
	for _, name := range []string{"BENCH_RUNS", "BENCH_STORE_MIB", "BENCH_TABLES"} {
		env = map[string]string{name: "many"}
		if o, err := parseOptions(nil, getenv); err == nil {
			t.Errorf("%s=many: %+v, want an error", name, o)
		}
	}
	env = map[string]string{"BENCH_TABLES": "store", "BENCH_STORE_MIB": "512"}
	if o, err = parseOptions(nil, getenv); err != nil || len(o.tables) != 1 || o.tables[0] != tableStore || o.storeBytes != 512<<20 {
		t.Errorf("one table: %+v, %v", o, err)
	}
}

func TestPinMovesAProcessAndWhatItStarts(t *testing.T) {
	generator, target, err := halves()
	if err != nil {
		t.Fatal(err)
	}
	if len(generator) == 0 {
		if len(target) != 0 {
			t.Fatalf("one half has nothing, the other %v", target)
		}
		return // one core
	}
	cmd := exec.Command("sh", "-c", "read x; exec sed -n s/^Cpus_allowed_list:.//p /proc/self/status")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := pin(cmd.Process.Pid, target[:1]); err != nil {
		t.Error(err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(out.String()), strconv.Itoa(target[0]); got != want {
		t.Errorf("allowed on %s, want %s", got, want)
	}
	if err := pin(cmd.Process.Pid, target); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}

func TestEveryTargetIsKnown(t *testing.T) {
	t.Parallel()
	for _, name := range append(allTargets(), controlVariant.name) {
		if v, err := findVariant(name); err != nil || v.name != name {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	if got := escapeFilename("iscsi://h:1/iqn.a:b/0"); got != `iscsi\://h\:1/iqn.a\:b/0` {
		t.Errorf("escaped %s", got)
	}
}
