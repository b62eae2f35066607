package session

import (
	"bytes"
	"context"
	"testing"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// steppedDisk carries out a command each time it is let.
type steppedDisk struct {
	*disk
	step chan struct{}
}

func (d steppedDisk) Execute(ctx context.Context, t *scsi.Task) {
	select {
	case <-d.step:
		d.disk.Execute(ctx, t)
	case <-ctx.Done():
		t.Status = scsi.StatusTaskAborted
	}
}

// An initiator that sends all it may is slowed to the pace of the storage: the window stays shut until a command has been dealt with, data is asked for only
// when there is a buffer for it, and no memory is taken beyond the session's share, however much is asked for.
func TestTheInitiatorGoesAtThePaceOfTheStorage(t *testing.T) {
	const size, window, commands, budget = 256 << 10, 32, 80, 2 << 20
	const share = budget / 4
	step := make(chan struct{})
	p := connect(t, setup{
		keys:   []pdu.Pair{{Key: "InitialR2T", Value: "Yes"}, {Key: "ImmediateData", Value: "No"}, {Key: "MaxBurstLength", Value: "262144"}},
		memory: budget,
		config: func(c *Config) { c.Executor = steppedDisk{c.Executor.(*disk), step} },
	})
	p.statSN = 0 // R2Ts and answers come in any order
	data := pattern(size, 3)
	start, issued, stepped, answered, asked, sent := p.cmdSN, 0, 0, 0, 0, 0
	most := int64(0)
	top := start + window - 1 // MaxCmdSN
	var owed []pdu.Header     // R2Ts that have not been answered
	load := func() {
		for issued < commands && int32(top-p.cmdSN) >= 0 {
			c := p.rw(true, issued%16*size, size, size)
			c.Final = true
			p.issue(c, nil)
			issued++
		}
		for _, r := range owed {
			from, n := int(r.BufferOffset()), int(r.DesiredLength())
			p.dataOut(pdu.DataOut{Tag: r.Tag(), TransferTag: r.TransferTag(), BufferOffset: r.BufferOffset(), Final: true}, data[from:from+n])
			sent += n
		}
		owed = nil
	}
	take := func() pdu.Opcode {
		h, _, err := p.read()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, p.memory.Used())
		switch op := h.Opcode(); op {
		case pdu.OpR2T:
			owed = append(owed, h)
			asked += int(h.DesiredLength())
		case pdu.OpSCSIResponse:
			if answered++; h.Status() != 0 {
				t.Fatalf("status %02Xh", h.Status())
			}
			top = h.MaxCmdSN()
		}
		if most := start + uint32(stepped) + window - 1; int32(h.MaxCmdSN()-most) > 0 {
			t.Fatalf("the window is open to %d with %d commands dealt with, want at most %d", h.MaxCmdSN(), stepped, most)
		}
		return h.Opcode()
	}
	settle := func() { // everything has been sent, and the target has dealt with all of it
		for {
			load()
			var ping pdu.Header
			p.tag++
			(&pdu.NopOut{Immediate: true, Tag: p.tag, TransferTag: pdu.NoTag, CmdSN: p.cmdSN}).Put(&ping)
			p.send(&ping, nil)
			for take() != pdu.OpNopIn {
			}
			if len(owed) == 0 {
				return
			}
		}
	}
	for answered < commands {
		settle()
		if want := min(answered+window, commands); issued != want {
			t.Fatalf("%d commands are sent with %d dealt with, want %d", issued, answered, want)
		}
		if held := asked - answered*size; held > share || held == 0 && issued > answered {
			t.Fatalf("data of %d bytes is asked for that the storage has not taken, the session's share is %d", held, share)
		}
		step <- struct{}{}
		stepped++
		for before := answered; answered == before; {
			take()
		}
	}
	if most > share {
		t.Errorf("%d bytes were lent, the session's share is %d", most, share)
	}
	if sent != commands*size || !bytes.Equal(p.disk.contents(0, size), data) {
		t.Errorf("%d bytes were sent, want %d; or what is stored differs", sent, commands*size)
	}
}
