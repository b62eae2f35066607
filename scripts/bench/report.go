package main

import (
	"fmt"
	"slices"
	"strings"
)

// median of at least one value.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

func pick(samples []sample, f func(sample) float64) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = f(s)
	}
	return values
}

// ratios compares throughput run by run, which takes the machine's drift out.
func ratios(of, to []sample) []float64 {
	values := make([]float64, min(len(of), len(to)))
	for i := range values {
		values[i] = of[i].iops / to[i].iops
	}
	return values
}

// describeRatios says the median of the runs' ratios, and in brackets the lowest and the highest.
func describeRatios(of, to []sample) string {
	r := ratios(of, to)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(r), slices.Min(r), slices.Max(r))
}

func table(o options, chosen []job, field []*contender, machine string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Machine: %s.\n\nCommand: `make bench BENCH_RUNS=%d BENCH_SECONDS=%d` (LUNs of %d MiB; medians of %d runs; in brackets the lowest and highest ratio).\n\n",
		machine, o.runs, o.seconds, o.bytes>>20, o.runs)
	fmt.Fprintf(&b, "| job | target | IOPS | MB/s | p50 µs | p99 µs | CPU s / 100k I/O | IOPS to %s | to 1 copy |\n|---|---|--:|--:|--:|--:|--:|--:|--:|\n", field[0].name)
	for _, j := range chosen {
		base := field[0].samples[j.name]
		for _, c := range field {
			s := c.samples[j.name]
			figure := func(f func(sample) float64) float64 { return median(pick(s, f)) }
			ratio, toSingle := "1", ""
			if c != field[0] {
				ratio = describeRatios(s, base)
			}
			if i := slices.IndexFunc(field, func(other *contender) bool { return other.name == c.single }); i >= 0 {
				toSingle = describeRatios(s, field[i].samples[j.name])
			}
			fmt.Fprintf(&b, "| %s | %s | %.0f | %.1f | %.0f | %.0f | %.2f | %s | %s |\n", j.name, c.title,
				figure(func(s sample) float64 { return s.iops }), figure(func(s sample) float64 { return s.megabytes }),
				figure(func(s sample) float64 { return s.p50 }), figure(func(s sample) float64 { return s.p99 }),
				figure(func(s sample) float64 { return s.cpu100k }), ratio, toSingle)
		}
	}
	return b.String()
}
