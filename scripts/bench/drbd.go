package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"sanctuary/node/api"
	"sanctuary/scripts/guest/machine"
)

// The third table: replication beside DRBD protocol C, which answers a write when both machines' disks have taken it. Both run in the
// same guests, on disks of the same kind, over the same network, under the same fio. A disk takes a write into its cache;
// DRBD leaves flushing to whoever writes, so its durable writes are those that ask for it (O_DSYNC). This product's always are.

// insideVariable names the guest's image, in a process that is in a network namespace of its own.
const insideVariable = "BENCH_INSIDE"

// drbdBytes of every device are used.
const drbdBytes = 128 << 20

// replicated is a device in the first guest.
type replicated struct {
	title string
	up    func(ctx context.Context, g *guests) (device string, down func(context.Context) error, err error)
}

const (
	titleDisk = "its disk alone"
	titleDRBD = "DRBD protocol C"
	titleLIO  = "DRBD protocol C, through LIO and iSCSI"
	titleOurs = "sanctuary, 2 copies + witness, through iSCSI"
)

var replicatedDevices = []replicated{
	{titleDisk, func(context.Context, *guests) (string, func(context.Context) error, error) {
		return "/dev/disk/by-id/virtio-" + drbdDisk, func(context.Context) error { return nil }, nil
	}},
	{titleDRBD, func(ctx context.Context, g *guests) (string, func(context.Context) error, error) {
		down, err := g.drbd(ctx)
		return "/dev/drbd0", down, err
	}},
	{titleLIO, func(ctx context.Context, g *guests) (string, func(context.Context) error, error) {
		return chain(ctx,
			func() (string, func(context.Context) error, error) { down, err := g.drbd(ctx); return "", down, err },
			func() (string, func(context.Context) error, error) {
				down, err := g.export(ctx, "/dev/drbd0")
				return "", down, err
			},
			func() (string, func(context.Context) error, error) {
				return g.login(ctx, lioTarget, guestAddress(0)+":3270", 0)
			})
	}},
	{titleOurs, func(ctx context.Context, g *guests) (string, func(context.Context) error, error) {
		var l api.LUN
		return chain(ctx,
			func() (device string, stop func(context.Context) error, err error) {
				l, stop, err = g.sanctuary(ctx, drbdBytes)
				return "", stop, err
			},
			func() (string, func(context.Context) error, error) {
				return g.login(ctx, l.IQN, guestAddress(0)+":3260", l.Number)
			})
	}},
}

// chain brings things up one after the other, and down in the reverse; the device is the last one's.
func chain(ctx context.Context, steps ...func() (string, func(context.Context) error, error)) (device string, down func(context.Context) error, err error) {
	var downs []func(context.Context) error
	down = func(ctx context.Context) error {
		var errs []error
		for _, d := range slices.Backward(downs) {
			errs = append(errs, d(ctx))
		}
		return errors.Join(errs...)
	}
	for _, s := range steps {
		var d func(context.Context) error
		if device, d, err = s(); err != nil {
			return "", nil, errors.Join(err, down(ctx))
		}
		downs = append(downs, d)
	}
	return device, down, nil
}

// drbdJob is one load; durable: each write is on stable storage when it is answered.
type drbdJob struct {
	depth   int
	durable bool
}

func (j drbdJob) name() string { return fmt.Sprintf("4k randwrite qd%d", j.depth) }

var drbdJobs = []drbdJob{{1, false}, {1, true}, {32, false}, {32, true}}

// benchDRBD makes the third table, in guests. It runs itself again in a network namespace of its own, and says nothing here.
func benchDRBD(ctx context.Context, o options) (text string, err error) {
	image := os.Getenv(insideVariable)
	if image == "" {
		if why := machine.Impossible(); why != "" {
			return "", errors.New("no guest can run here: " + why)
		}
		if image, err = machine.Image(ctx, "scripts/guest"); err != nil {
			return "", err
		}
		report := o.report
		if report == "" {
			report = "-"
		}
		return "", alone(ctx, image, []string{
			"-tables=" + tableDRBD, "-report=" + report, "-binary=" + o.binary, "-cache=" + o.cache,
			"-runs=" + strconv.Itoa(o.runs), "-seconds=" + strconv.Itoa(o.seconds),
		})
	}
	g, err := startGuests(ctx, o, image)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	samples := map[string]map[drbdJob][]sample{}
	for r := range o.runs {
		for i := range replicatedDevices {
			d := replicatedDevices[(i+r)%len(replicatedDevices)]
			if samples[d.title] == nil {
				samples[d.title] = map[drbdJob][]sample{}
			}
			device, down, err := d.up(ctx, g)
			if err != nil {
				return "", fmt.Errorf("%s: %w", d.title, err)
			}
			if err := measureGuest(ctx, o, g.machines["a"], device, func(j drbdJob, s sample) {
				samples[d.title][j] = append(samples[d.title][j], s)
				fmt.Fprintf(os.Stderr, "run %d/%d  %-20s durable %-5v %-48s %7.0f IOPS  p50 %7.0f µs  p99 %7.0f µs\n", r+1, o.runs, j.name(), j.durable, d.title, s.iops, s.p50, s.p99)
			}); err != nil {
				return "", fmt.Errorf("%s: %w\n%s", d.title, err, g.words(ctx))
			}
			if err := down(ctx); err != nil {
				return "", fmt.Errorf("%s: %w", d.title, err)
			}
		}
	}
	version, err := g.machines["a"].Sh(ctx, "printf 'Linux %s, DRBD %s, %s' $(uname -r) $(modinfo -F version drbd) $(fio --version)")
	if err != nil {
		return "", err
	}
	return drbdTable(o, samples, describeMachine(ctx, o), version), nil
}

// measureGuest runs all jobs on a device of a machine, after it has been written full.
func measureGuest(ctx context.Context, o options, m *machine.Machine, device string, took func(drbdJob, sample)) error {
	fio := func(args ...string) (output, error) {
		out, err := m.Sh(ctx, strings.Join(append([]string{
			"fio --name=job --output-format=json --randrepeat=0 --norandommap --percentile_list=50:99 --refill_buffers=0 --ioengine=libaio --direct=1",
			"--filename=" + device, "--size=" + strconv.Itoa(drbdBytes),
		}, args...), " "))
		if err != nil {
			return output{}, err
		}
		return parse([]byte(out))
	}
	if _, err := fio("--rw=write", "--bs=1M", "--iodepth=4"); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	for _, j := range drbdJobs {
		args := []string{"--rw=randwrite", "--bs=4k", "--iodepth=" + strconv.Itoa(j.depth), "--time_based", "--ramp_time=1", "--runtime=" + strconv.Itoa(o.seconds)}
		if j.durable {
			args = append(args, "--sync=dsync")
		}
		out, err := fio(args...)
		if err != nil {
			return err
		}
		s, err := out.sample(time.Duration(0))
		if err != nil {
			return err
		}
		took(j, s)
	}
	return nil
}

// drbdTable compares with DRBD behind iSCSI, as this product is, and with writes that are as durable.
func drbdTable(o options, samples map[string]map[drbdJob][]sample, machine, version string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Machine: %s. Guests, emulated: %s.\n\nCommand: `make bench BENCH_TABLES=drbd BENCH_RUNS=%d BENCH_SECONDS=%d` (%d MiB of each device; medians of %d runs; in brackets the lowest and highest ratio).\n\n",
		machine, version, o.runs, o.seconds, drbdBytes>>20, o.runs)
	fmt.Fprintf(&b, "| job | write is durable when answered | device | IOPS | p50 µs | p99 µs | IOPS to durable writes of DRBD through iSCSI |\n|---|---|---|--:|--:|--:|--:|\n")
	for _, depth := range []int{1, 32} {
		base := samples[titleLIO][drbdJob{depth, true}]
		for _, d := range replicatedDevices {
			for _, durable := range []bool{false, true} {
				j := drbdJob{depth, durable}
				s := samples[d.title][j]
				says := "no"
				switch {
				case d.title == titleOurs && !durable:
					says = "yes, always"
				case durable:
					says = "yes, O_DSYNC"
				}
				ratio := "1"
				if d.title != titleLIO || !durable {
					ratio = describeRatios(s, base)
				}
				figure := func(f func(sample) float64) float64 { return median(pick(s, f)) }
				fmt.Fprintf(&b, "| %s | %s | %s | %.0f | %.0f | %.0f | %s |\n", j.name(), says, d.title, figure(func(s sample) float64 { return s.iops }),
					figure(func(s sample) float64 { return s.p50 }), figure(func(s sample) float64 { return s.p99 }), ratio)
			}
		}
	}
	return b.String()
}
