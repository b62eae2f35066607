package catalog

import "sanctuary/blockstore/block"

// ResizeLUN makes a LUN larger. One that is that large already is a success; a smaller size is refused. The owner grows the
// replicas, through the LUN's own log, when it sees the change.
type ResizeLUN struct {
	LUN      string      `json:"lun"`      // ID
	Capacity block.Count `json:"capacity"` // in sectors of 512 bytes, a multiple of 8, at most 16 TiB
}

func (*ResizeLUN) kind() string { return "resize_lun" }

func (c *ResizeLUN) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	if l.ReadOnly {
		return refuse(CodeInvalid, "LUN %q is read-only: it keeps the size of the snapshot it shows", l.Name)
	}
	want := block.Geometry{Capacity: c.Capacity, LogicalBlockBytes: l.Geometry.LogicalBlockBytes}
	if err := want.Validate(); err != nil {
		return refuse(CodeInvalid, "LUN %q: %v", l.Name, err)
	}
	if c.Capacity < l.Geometry.Capacity {
		return refuse(CodeInvalid, "LUN %q has %d bytes and cannot shrink to %d: what lies behind would be lost", l.Name, l.Geometry.Capacity.Bytes(), c.Capacity.Bytes())
	}
	r.Changed = c.Capacity != l.Geometry.Capacity
	l.Geometry = want
	m.LUNs[l.ID] = l
	r.LUN = &l
	return nil
}
