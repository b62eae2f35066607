package prove

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"
)

const (
	awayKeep    = 64 << 20  // journal kept for copies that are away
	awaySize    = 512 << 20 // the LUN, all of it written once
	awayTouched = 48 << 20  // the part that is written to while a copy is away
	awayWritten = 640 << 20 // how much is: an hour of a modest load, and many times what the journal keeps
)

// TestProveReplicaAway takes a copy away for longer than the journal reaches back, an hour of writes by volume, and brings
// it back: what it fetches must be in proportion to what has changed, not to the LUN. Then the node that was there all the
// time is killed, so that everything is read from the one that was not.
func TestProveReplicaAway(t *testing.T) {
	prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: awaySize, keepBytes: awayKeep})
	l := cl.healthy()
	b := newBulk(t, cl, l, 0, awaySize)
	b.write(t, awaySize/bulkBytes)
	l = cl.healthy()

	// In order: what a killed node finds itself to have is as old as its last checkpoint, up to 30 s or 256 MiB of writes,
	// and that much more would be fetched.
	away := other(l.Owner)
	cl.stop(away)
	began := time.Now()
	part := newBulk(t, cl, l, awaySize/4, awaySize/4+awayTouched)
	part.values.Store(1 << 32) // none of the first writes' values
	part.write(t, awayWritten/bulkBytes)
	t.Logf("%d MiB written to %d MiB of %d while %s was away, in %v", awayWritten>>20, awayTouched>>20, awaySize>>20, away, time.Since(began).Round(time.Millisecond))
	for off, v := range part.held {
		b.held[off] = v
	}

	from := cl.logSize(away)
	cl.start(away)
	returned := time.Now()
	cl.healthy()
	fetched, err := rebuiltBytes(cl.logAfter(away, from))
	if err != nil {
		t.Errorf("%s: %v", away, err)
	}
	t.Logf("in sync %v after its return; fetched %d MiB", time.Since(returned).Round(time.Millisecond), fetched>>20)
	// By chunk of 256 KiB, which the extents are aligned with; a chunk may be counted again when a rebuild is repeated.
	if fetched > awayTouched*5/4 {
		t.Errorf("%d MiB of a LUN of %d MiB were fetched, for %d MiB that had changed", fetched>>20, awaySize>>20, awayTouched>>20)
	}

	cl.kill(l.Owner)
	if l = cl.owner(); l.Owner != away {
		t.Fatalf("owner is %q, want %s", l.Owner, away)
	}
	b.verify(t, cl, away)
	cl.start(other(away))
	cl.healthy()
}

var rebuiltLine = regexp.MustCompile(`msg=rebuilt .*bytes=(\d+)`)

// rebuiltBytes adds up what a node says to have fetched.
func rebuiltBytes(log string) (sum int64, err error) {
	found := rebuiltLine.FindAllStringSubmatch(log, -1)
	if len(found) == 0 {
		return 0, fmt.Errorf("no word of a rebuild in its log: the journal reached back after all, and this test has shown nothing")
	}
	for _, f := range found {
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("log line %q: %w", f[0], err)
		}
		sum += n
	}
	return sum, nil
}
