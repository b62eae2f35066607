package scsi_test

import (
	"testing"
	"time"

	"sanctuary/target/scsi"
)

// FuzzCDB runs any CDB with any lengths and data: no panic, no data beyond what was asked for, a status that makes sense.
func FuzzCDB(f *testing.F) {
	for op := range 256 {
		f.Add([]byte{byte(op), 0x10, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1}, uint64(0), uint32(512), uint32(512), []byte{0, 22, 0, 16, 0})
	}
	f.Add([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24}, uint64(0), uint32(0), uint32(24), make([]byte, 24))
	f.Add([]byte{0xA3, 0x0C, 0x83, 0x9E, 0, 0x10, 0, 0, 0, 255}, uint64(0x4000<<48), uint32(9), uint32(0), []byte{})
	f.Fuzz(func(t *testing.T, bytes []byte, lun uint64, in, out uint32, data []byte) {
		g := newRig(t, 512, func(c *scsi.UnitConfig) { c.HoldFor = time.Nanosecond })
		c := cdb(bytes...)
		task := g.task(g.nexus, c, int(in%(64<<10)), nil)
		task.LUN, task.ExpectedOut = lun, int(out%(64<<10))
		want, _ := g.target.Accept(lun, &c)
		if want < 0 || want > scsi.DefaultMaxTransfer {
			t.Fatalf("wants %d bytes of Data-Out", want)
		}
		task.DataOut = make([]byte, min(want, int64(task.ExpectedOut)))
		copy(task.DataOut, data)
		r := g.execute(t.Context(), task)
		switch r.Status {
		case scsi.StatusGood:
			if len(r.Sense) != 0 || r.TransferIn < 0 || int64(len(r.data)) != min(r.TransferIn, int64(r.ExpectedIn)) {
				t.Fatalf("%d bytes in, transfer %d, EDTL %d, sense % x", len(r.data), r.TransferIn, r.ExpectedIn, r.Sense)
			}
			if r.TransferOut < 0 || r.TransferOut > want {
				t.Fatalf("used %d bytes of Data-Out, announced %d", r.TransferOut, want)
			}
		case scsi.StatusCheckCondition:
			if len(r.Sense) != 18 || r.data != nil || r.TransferIn != 0 {
				t.Fatalf("sense % x with %d bytes of data", r.Sense, len(r.data))
			}
			if o := outcome(&r.Task); o == "0B/0C/0D" || o == "04/44/00" {
				t.Fatalf("%s although every byte asked for was there", o)
			}
		default:
			t.Fatalf("status %02X", r.Status)
		}
	})
}
