package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/node/config"
)

// The ratio is taken within each run, to DRBD behind iSCSI with writes that are as durable.
func TestDRBDTableComparesDurableWithDurable(t *testing.T) {
	t.Parallel()
	samples := map[string]map[drbdJob][]sample{}
	for i, d := range replicatedDevices {
		samples[d.title] = map[drbdJob][]sample{}
		for _, j := range drbdJobs {
			iops := float64(100 * (i + 1))
			if j.durable {
				iops /= 2
			}
			samples[d.title][j] = []sample{{iops: iops, p50: 7}, {iops: 2 * iops, p50: 9}}
		}
	}
	text := drbdTable(options{runs: 2, seconds: 3}, samples, "a machine", "a kernel")
	for _, want := range []string{
		"`make bench BENCH_TABLES=drbd BENCH_RUNS=2 BENCH_SECONDS=3`",
		"| 4k randwrite qd1 | yes, O_DSYNC | " + titleLIO + " | 225 | 8 | 0 | 1 |",
		"| 4k randwrite qd32 | no | " + titleLIO + " | 450 | 8 | 0 | 2.00 (2.00–2.00) |",
		"| 4k randwrite qd1 | yes, always | " + titleOurs + " | 600 | 8 | 0 | 2.67 (2.67–2.67) |",
		"| 4k randwrite qd32 | yes, O_DSYNC | " + titleOurs + " | 300 | 8 | 0 | 1.33 (1.33–1.33) |",
		"| 4k randwrite qd32 | no | " + titleDisk + " | 150 | 8 | 0 | 0.67 (0.67–0.67) |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "\n| 4k "); n != 16 {
		t.Errorf("%d rows", n)
	}
}

// What was brought up goes down in the reverse, also when a later step fails.
func TestChainGoesDownInTheReverse(t *testing.T) {
	t.Parallel()
	var did []string
	step := func(name string, fails bool) func() (string, func(context.Context) error, error) {
		return func() (string, func(context.Context) error, error) {
			if fails {
				return "", nil, errors.New(name)
			}
			did = append(did, "+"+name)
			return name, func(context.Context) error { did = append(did, "-"+name); return nil }, nil
		}
	}
	device, down, err := chain(t.Context(), step("a", false), step("b", false))
	if err != nil || device != "b" {
		t.Fatal(device, err)
	}
	if err := down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := chain(t.Context(), step("c", false), step("d", true)); err == nil || err.Error() != "d" {
		t.Errorf("a step that fails: %v", err)
	}
	if want := []string{"+a", "+b", "-b", "-a", "+c", "-c"}; !slices.Equal(did, want) {
		t.Errorf("did %v, want %v", did, want)
	}
}

func TestDRBDTableIsMadeOnlyIfNamed(t *testing.T) {
	t.Parallel()
	none := func(string) string { return "" }
	o, err := parseOptions(nil, none)
	if err != nil || slices.Contains(o.tables, tableDRBD) {
		t.Errorf("by default: %v, %v", o.tables, err)
	}
	o, err = parseOptions([]string{"-tables=drbd"}, none)
	if err != nil || !slices.Equal(o.tables, []string{tableDRBD}) {
		t.Errorf("named: %v, %v", o.tables, err)
	}
	if _, err := parseOptions([]string{"-tables=ceph"}, none); err == nil {
		t.Error("an unknown table is accepted")
	}
}

// What the nodes in the guests are started with is what this product takes, and means what is meant.
func TestNodesInGuestsAreConfigured(t *testing.T) {
	t.Parallel()
	for i, name := range guestNames {
		c, err := config.Parse([]byte(nodeConfig(i)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := c.Complete().Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.Node != name || c.Listen.API != nodeAddress(i, 7442) || len(c.Members) != 3 || c.Members[i].Peer != c.Listen.Peer {
			t.Errorf("%s: %+v", name, c)
		}
		if data := name != "witness"; (c.Kind == config.KindData) != data || (len(c.Listen.ISCSI) == 1) != data {
			t.Errorf("%s is %q with portals %v", name, c.Kind, c.Listen.ISCSI)
		}
		if c.Timing.Heartbeat.Std() != 4*time.Second || c.Timing.Lease.Std() != 2*time.Second {
			t.Errorf("%s: timing %+v", name, c.Timing)
		}
	}
}
