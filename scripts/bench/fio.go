package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"sanctuary/scripts/rig"
)

// job is one load.
type job struct {
	name      string
	pattern   string // fio's rw
	blockSize string // fio's bs
	depth     int
	digests   bool // CRC32C of headers and data; then load makes it, not fio
}

var jobs = []job{
	{name: "4k randread qd1", pattern: "randread", blockSize: "4k", depth: 1},
	{name: "4k randread qd32", pattern: "randread", blockSize: "4k", depth: 32},
	{name: "4k randwrite qd1", pattern: "randwrite", blockSize: "4k", depth: 1},
	{name: "4k randwrite qd32", pattern: "randwrite", blockSize: "4k", depth: 32},
	{name: "1M read qd8", pattern: "read", blockSize: "1M", depth: 8},
	{name: "1M write qd8", pattern: "write", blockSize: "1M", depth: 8},
	{name: "4k randread qd1 digests", pattern: "randread", blockSize: "4k", depth: 1, digests: true},
	{name: "4k randread qd32 digests", pattern: "randread", blockSize: "4k", depth: 32, digests: true},
	{name: "4k randwrite qd1 digests", pattern: "randwrite", blockSize: "4k", depth: 1, digests: true},
	{name: "4k randwrite qd32 digests", pattern: "randwrite", blockSize: "4k", depth: 32, digests: true},
	{name: "1M read qd8 digests", pattern: "read", blockSize: "1M", depth: 8, digests: true},
	{name: "1M write qd8 digests", pattern: "write", blockSize: "1M", depth: 8, digests: true},
}

func chooseJobs(match string) []job {
	var chosen []job
	for _, j := range jobs {
		if strings.Contains(j.name, match) {
			chosen = append(chosen, j)
		}
	}
	return chosen
}

// sample is what one job showed of one target in one run.
type sample struct {
	iops, megabytes float64 // per second; a megabyte is 10⁶ bytes
	p50, p99        float64 // completion latency in µs
	cpu100k         float64 // processor seconds of the target's processes for 100,000 I/Os
}

// fill writes the whole LUN once, so that every block has a place and a checksum.
func fill(ctx context.Context, o options, target *rig.Target) error {
	_, err := fio(ctx, o, target, job{name: "fill", pattern: "write", blockSize: "1M", depth: 8}, 30*time.Minute)
	return err
}

func measure(ctx context.Context, o options, target *rig.Target, j job) (sample, error) {
	before, err := target.CPU()
	if err != nil {
		return sample{}, err
	}
	limit := time.Duration(o.seconds) * time.Second
	var out output
	if j.digests {
		out, err = load(ctx, o, target, j, limit)
	} else {
		out, err = fio(ctx, o, target, j, limit+time.Minute, "--time_based", "--runtime="+strconv.Itoa(o.seconds))
	}
	if err != nil {
		return sample{}, err
	}
	after, err := target.CPU()
	if err != nil {
		return sample{}, err
	}
	return out.sample(after - before)
}

// fio runs one job through the portal that serves now. limit is when it counts as hung.
func fio(ctx context.Context, o options, target *rig.Target, j job, limit time.Duration, more ...string) (output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	url, err := target.Serving(ctx)
	if err != nil {
		return output{}, err
	}
	return runFio(ctx, o, limit, append([]string{
		"--ioengine=libiscsi", "--filename=" + escapeFilename(url),
		"--rw=" + j.pattern, "--bs=" + j.blockSize, "--iodepth=" + strconv.Itoa(j.depth), "--size=" + strconv.FormatInt(o.bytes, 10), "--direct=1",
	}, more...)...)
}

// runFio runs one job of fio. limit is when it counts as hung.
func runFio(ctx context.Context, o options, limit time.Duration, job ...string) (output, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args := append([]string{"--name=job", "--output-format=json", "--randrepeat=0", "--norandommap", "--percentile_list=50:99", "--refill_buffers=0"}, job...)
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, o.fio, args...)
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return output{}, fmt.Errorf("fio: %w: %s", errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}
	return parse(text)
}

// escapeFilename: a colon separates files in fio's filename.
func escapeFilename(url string) string { return strings.ReplaceAll(url, ":", `\:`) }

// output is the part of fio's JSON that is used.
type output struct {
	Jobs []outputJob   `json:"jobs"`
	cpu  time.Duration // processor time; 0: all that was used meanwhile
}

type outputJob struct {
	Error int `json:"error"`
	Read  rw  `json:"read"`
	Write rw  `json:"write"`
}

type rw struct {
	TotalIOs int64   `json:"total_ios"`
	IOPS     float64 `json:"iops"`
	BytesSec int64   `json:"bw_bytes"`
	Latency  struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

// parse reads fio's JSON. fio may print warnings before it.
func parse(text []byte) (output, error) {
	var out output
	_, body, ok := strings.Cut("\n"+string(text), "\n{")
	if !ok {
		return out, fmt.Errorf("fio printed no JSON: %.200q", text)
	}
	if err := json.Unmarshal([]byte("{"+body), &out); err != nil {
		return out, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(out.Jobs) != 1 {
		return out, fmt.Errorf("fio reports %d jobs, want 1", len(out.Jobs))
	}
	if e := out.Jobs[0].Error; e != 0 {
		return out, fmt.Errorf("fio reports error %d", e)
	}
	return out, nil
}

// sample turns the output of a job that only reads or only writes into figures. cpu is what the target used meanwhile.
func (o output) sample(cpu time.Duration) (sample, error) {
	side := o.Jobs[0].Read
	if o.Jobs[0].Write.TotalIOs > 0 {
		side = o.Jobs[0].Write
	}
	p50, ok50 := side.Latency.Percentile["50.000000"]
	p99, ok99 := side.Latency.Percentile["99.000000"]
	if side.TotalIOs == 0 || !ok50 || !ok99 {
		return sample{}, errors.New("fio did no I/O")
	}
	return sample{
		iops: side.IOPS, megabytes: float64(side.BytesSec) / 1e6,
		p50: p50 / 1e3, p99: p99 / 1e3,
		cpu100k: cpu.Seconds() * 1e5 / float64(side.TotalIOs),
	}, nil
}
