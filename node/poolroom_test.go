package node

import (
	"strings"
	"testing"

	"sanctuary/blockstore"
	"sanctuary/node/api"
)

// Operators hear of a pool from the threshold on that initiators are warned at, and that it is full when nothing is left that could be allocated, not
// while something waits to be freed.
func TestPoolThatRunsFullIsAnAlert(t *testing.T) {
	for name, test := range map[string]struct {
		capacity, free, pending int64 // MiB
		severity, what          string
	}{
		"empty":           {100, 100, 0, "", ""},
		"above":           {100, 11, 0, "", ""},
		"at":              {100, 10, 0, api.SeverityWarning, "Pool hdd1 of node alpha (/srv/p) is nearly full: 90% used, 10485760 bytes (10 MiB) left"},
		"nearly nothing":  {1 << 20, 1, 0, api.SeverityWarning, "99% used, 1048576 bytes (1 MiB) left"},
		"waits for frees": {100, 0, 1, api.SeverityWarning, "100% used, 0 bytes (0 MiB) left"},
		"full":            {100, 0, 0, api.SeverityCritical, "Pool hdd1 of node alpha (/srv/p) is full: "},
		"the largest":     {1 << 30, 0, 0, api.SeverityCritical, "100% used"},
		"no capacity":     {0, 0, 0, "", ""},
	} {
		u := blockstore.PoolUsage{CapacityBytes: test.capacity << 20, AllocatedBytes: (test.capacity - test.free) << 20, PendingFreeBytes: test.pending << 20}
		a, ok := roomAlert("alpha", "hdd1", "/srv/p", u)
		if ok != (test.severity != "") || a.Severity != test.severity || !strings.Contains(a.What, test.what) || ok && (a.Data == "" || !strings.Contains(a.Next, "A pool is full")) {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
