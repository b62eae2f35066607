package guest

import (
	"context"
	"regexp"
	"strings"
	"testing"
)

// expected are complaints of the guest's kernel that belong to what the tests do to paths: a path that is standby or gone is
// reported for its own disk (sdX). The map above it (dm-N) and file systems must never hear of it.
var expected = []*regexp.Regexp{
	regexp.MustCompile(`connection\d+:\d+: (detected conn error|ping timeout|Could not send nopout)`),
	// The kernel hands the answer to a login to iscsid before it lets go of the request; iscsid, if it is quick, is refused its next one, and logs in again.
	regexp.MustCompile(`connection\d+:\d+: Login/Text in progress\. Cannot start new task`),
	regexp.MustCompile(`session\d+: session recovery timed out`),
	regexp.MustCompile(`sd \d+:\d+:\d+:\d+: rejecting I/O to (offline|dead) device`),
	regexp.MustCompile(`I/O error, dev sd[a-z]+, sector`),
	regexp.MustCompile(`Buffer I/O error on dev sd[a-z]+,`),
	regexp.MustCompile(`(ldm_validate_partition_table|unable to read partition table|unable to read RDB block)`),
	regexp.MustCompile(`sd \d+:\d+:\d+:\d+: \[sd[a-z]+\] (tag#\d+ |Synchronize Cache|Read Capacity|Sense Key|Result:|Add\. Sense|CDB:)`),
	regexp.MustCompile(`device-mapper: multipath: \d+:\d+: (Failing|Reinstating) path`),
	regexp.MustCompile(`(Power-on or device reset occurred|Asymmetric access state changed|alua:)`),
}

// alarming are messages that are errors at whatever level the kernel prints them.
var alarming = regexp.MustCompile(`dev dm-|EXT4-fs (error|warning)|XFS .*([Cc]orrupt|[Ss]hut ?down|[Ee]rror)|BUG: |blocked for more than|Oops: |[Dd]igest`)

// watchKernel fails the test if the guest's kernel complains until its end of what no test expects.
func (l *lab) watchKernel(t *testing.T) {
	t.Helper()
	before := strings.Count(l.vm.sh(t, "dmesg --raw"), "\n")
	t.Cleanup(func() {
		r, err := l.vm.Do(context.Background(), "dmesg --raw")
		if err != nil {
			t.Errorf("kernel log of the guest: %v", err)
			return
		}
		lines := strings.Split(r.Out, "\n")
		// A ring: when it has turned, everything in it is new.
		if len(lines) > before {
			lines = lines[before:]
		}
		for _, line := range lines {
			if complaint(line) {
				t.Errorf("the guest's kernel says: %s", line)
			}
		}
		if t.Failed() {
			t.Logf("kernel log of the guest during this test:\n%s", strings.Join(lines, "\n"))
		}
	})
}

// complaint judges one raw line of the kernel's log: "<level>[time] text", levels as in syslog(3), 3 is an error.
func complaint(line string) bool {
	level, text, ok := strings.Cut(strings.TrimPrefix(line, "<"), ">")
	if !ok {
		return false
	}
	if alarming.MatchString(text) {
		return true
	}
	if level == "" || level[len(level)-1] > '3' || len(level) > 1 {
		return false
	}
	for _, e := range expected {
		if e.MatchString(text) {
			return false
		}
	}
	return true
}
