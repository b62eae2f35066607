package node

import (
	"context"

	"sanctuary/blockstore/block"
	"sanctuary/node/catalog"
	"sanctuary/target/scsi"
)

// absentCopy is the Backend of a LUN in a host's target whose copy on this node does not run: it has not been started yet, it could not
// be, or it is being replaced. A number that stood for nothing meanwhile would be answered with 05/25/00, which is the end of the device
// to a host (ESXi: permanent device loss). So it is described as ever and says that this path is unavailable (02/04/0C).
type absentCopy struct{ geometry block.Geometry }

var _ scsi.Backend = absentCopy{}

// Geometry implements scsi.Backend, as do the others.
func (b absentCopy) Geometry() block.Geometry { return b.geometry }

func (absentCopy) Fence() block.Fence { return block.Fence{} }

func (absentCopy) State() block.State { return block.State{} }

func (absentCopy) Read(context.Context, block.Range, []byte) error { return block.ErrUnavailable }

func (absentCopy) Write(context.Context, block.Fence, block.Range, []byte) error {
	return block.ErrUnavailable
}

func (absentCopy) CompareAndWrite(context.Context, block.Fence, block.Range, []byte, []byte) (int, error) {
	return -1, block.ErrUnavailable
}

func (absentCopy) Modify(context.Context, block.Fence, block.Range, func(int64, []byte)) error {
	return block.ErrUnavailable
}

func (absentCopy) WriteSame(context.Context, block.Fence, block.Range, []byte) error {
	return block.ErrUnavailable
}

func (absentCopy) Unmap(context.Context, block.Fence, []block.Range) error {
	return block.ErrUnavailable
}

func (absentCopy) Allocated(context.Context, block.Range) (bool, block.Count, error) {
	return false, 0, block.ErrUnavailable
}

func (absentCopy) Flush(context.Context) error { return block.ErrUnavailable }

func (absentCopy) Confirm(context.Context) error { return block.ErrUnavailable }

func (absentCopy) SwapState(context.Context, block.Fence, uint64, []byte) (block.State, error) {
	return block.State{}, block.ErrUnavailable
}

// absentUnit returns the unit that stands for a LUN whose copy here does not run. It tells of this node's port group alone: who owns
// the LUN is not known here, and what hosts know of the others must not be unsaid.
func (n *Node) absentUnit(m *catalog.Model, l catalog.LUN) (*scsi.Unit, error) {
	cfg, err := n.describeUnit(l)
	if err != nil {
		return nil, err
	}
	self := m.Nodes[n.cfg.Node]
	access := scsi.Access{Local: self.PortGroup, LocalPort: self.PortGroup, Groups: []scsi.PortGroup{
		{ID: self.PortGroup, State: scsi.Unavailable, Ports: targetPorts(self)},
	}}
	cfg.Backend, cfg.Access = absentCopy{l.Geometry}, func() scsi.Access { return access }
	cfg.SetPreferred = func(context.Context, uint16) error { return block.ErrUnavailable }
	cfg.Space = func() scsi.Space { return scsi.Space{} }
	return scsi.NewUnit(cfg)
}
