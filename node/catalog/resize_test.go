package catalog

import (
	"errors"
	"testing"

	"sanctuary/blockstore/block"
)

func TestLUNGrowsAndNeverShrinks(t *testing.T) {
	m := NewModel("test")
	m.LUNs["id"] = LUN{ID: "id", Name: "vm", Geometry: block.Geometry{Capacity: 1 << 11, LogicalBlockBytes: 512}}
	for _, c := range []struct {
		lun      string
		capacity block.Count
		code     Code
		want     block.Count
	}{
		{"id", 1 << 12, "", 1 << 12},
		{"id", 1 << 12, "", 1 << 12},                    // a repeated request
		{"id", 1 << 11, CodeInvalid, 1 << 12},           // smaller
		{"id", 1<<12 + 1, CodeInvalid, 1 << 12},         // no whole block
		{"id", 17 << 40 / 512, CodeInvalid, 1 << 12},    // beyond 16 TiB
		{"other", 1 << 13, CodeNotFound, 1 << 12},       //
		{"id", block.MaxVolumeBytes / 512, "", 1 << 35}, // 16 TiB
	} {
		next, _, err := Apply(m, m.Index+1, &ResizeLUN{LUN: c.lun, Capacity: c.capacity})
		var refusal *Refusal
		if errors.As(err, &refusal) != (c.code != "") || refusal != nil && refusal.Code != c.code {
			t.Fatalf("%s to %d: %v", c.lun, c.capacity, err)
		}
		m = next
		if got := m.LUNs["id"].Geometry; got.Capacity != c.want || got.LogicalBlockBytes != 512 {
			t.Fatalf("%s to %d: now %v", c.lun, c.capacity, got)
		}
	}
}
