package node

import (
	"fmt"

	"sanctuary/blockstore"
	"sanctuary/node/api"
)

// warnFraction of a pool is left when operators are warned, and initiators unless they have chosen otherwise.
const warnFraction = 10

// warnBelow is how much is left of a pool then, in bytes.
func warnBelow(u blockstore.PoolUsage) int64 { return u.CapacityBytes / warnFraction }

// roomAlert says that a pool is nearly full, or full. It goes by the numbers alone, so it comes and goes as often as it is asked. What waits to be
// freed will be there within a second, so a pool that has that is not called full, though writes are refused until then.
func roomAlert(node, pool, where string, u blockstore.PoolUsage) (api.Alert, bool) {
	free := u.FreeBytes()
	if u.CapacityBytes == 0 || free > warnBelow(u) {
		return api.Alert{}, false
	}
	a := api.Alert{
		Severity: api.SeverityWarning, Subject: "node/" + node,
		What: fmt.Sprintf("Pool %s of node %s (%s) is nearly full: %d%% used, %d bytes (%d MiB) left", pool, node, where, u.AllocatedBytes*100/u.CapacityBytes, free, free>>20),
		Data: "Nothing is lost. When it is full, writes to the LUNs in it that need new space are refused (27h/07h).",
		Next: "Delete snapshots or LUNs, unmap in guests (fstrim), move copies to another pool (sanctuary lun replica move), or make it larger: \"A pool is full\" in docs/OPERATING.md.",
	}
	if free+u.PendingFreeBytes == 0 {
		a.Severity = api.SeverityCritical
		a.What = fmt.Sprintf("Pool %s of node %s (%s) is full: 100%% used, 0 bytes left", pool, node, where)
		a.Data = "Nothing is lost. Writes to the LUNs in it that need new space are refused (27h/07h), and their guests see an error or pause; reads, overwrites and UNMAP go on."
	}
	return a, true
}
