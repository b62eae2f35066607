package session

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// Task attributes of a script: 1 is SIMPLE.
const (
	simple  = 1
	ordered = attributeOrdered
	head    = attributeHeadOfQueue
)

// waits issues a command that waits for the gate, and returns its tag.
func (p *peer) waits(attribute uint8, lun uint64) uint32 {
	c := p.command(0)
	c.CDB[15], c.Attribute, c.LUN = 1, attribute, lun
	p.issue(c, nil)
	return c.Tag
}

// entered fails unless the commands that have begun since the last call are these.
func (p *peer) entered(want ...uint32) {
	p.Helper()
	var got []uint32
	for range want {
		select {
		case tag := <-p.disk.entered:
			got = append(got, tag)
		case <-time.After(10 * time.Second):
		}
	}
	p.ping(nil) // what was sent before has been taken in
	time.Sleep(5 * time.Millisecond)
	for len(p.disk.entered) > 0 {
		got = append(got, <-p.disk.entered)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		p.Fatalf("began %v, want %v", got, want)
	}
}

// letGo ends a command that waits.
func (p *peer) letGo(tag uint32) {
	p.Helper()
	p.disk.mu.Lock()
	abort := p.disk.running[tag]
	delete(p.disk.running, tag)
	p.disk.mu.Unlock()
	close(abort)
}

func TestTaskAttributes(t *testing.T) {
	p := connect(t, setup{keys: all()})
	first, second := p.waits(simple, 0), p.waits(0, 0)
	p.entered(first, second)
	barrier, behind := p.waits(ordered, 0), p.waits(simple, 0)
	other, next := p.waits(simple, 1<<48), p.waits(ordered, 0)
	p.entered(other)
	urgent := p.waits(head, 0)
	p.entered(urgent)
	last := p.waits(0, 0)
	p.letGo(first)
	p.entered() // the second is still at it
	p.letGo(second)
	p.entered() // one that is HEAD OF QUEUE goes before what is dormant, though it came later
	p.letGo(urgent)
	p.entered(barrier)
	p.letGo(barrier)
	p.entered(behind)
	p.letGo(behind)
	p.entered(next)
	p.letGo(next)
	p.entered(last)
	// What is dormant can be aborted, and who waited for it does not any more.
	barrier, behind = p.waits(ordered, 0), p.waits(simple, 0)
	p.entered()
	p.expectManaged(p.manage(scsi.AbortTask, 0, barrier), scsi.FunctionComplete)
	p.entered(behind)
	p.waits(ordered, 0)
	p.expectManaged(p.manage(scsi.LogicalUnitReset, 0, 0), scsi.FunctionComplete)
	p.entered()
	p.alive()
}

// A command that was dormant for longer than initiators wait before they go on over another path is not carried out any more.
func TestWhatWasDormantForLongIsNotCarriedOut(t *testing.T) {
	p := connect(t, setup{keys: all()})
	long := p.waits(simple, 0)
	p.entered(long)
	old := p.waits(ordered, 0)
	p.entered()
	time.Sleep(stoodStill + 100*time.Millisecond)
	young := p.waits(ordered, 0)
	p.entered()
	p.letGo(long)
	p.expectStatus(old, scsi.StatusBusy)
	p.entered(young)
}

// serve sends the data of a write as it is asked for.
func (p *peer) serve(c pdu.SCSICommand, from int) {
	p.Helper()
	for sent := from; sent < int(c.EDTL); {
		r, _ := p.expect(pdu.OpR2T)
		n := int(r.DesiredLength())
		for off := 0; off < n; off += 4096 {
			p.dataOut(pdu.DataOut{
				Tag: c.Tag, TransferTag: r.TransferTag(), DataSN: uint32(off / 4096), BufferOffset: r.BufferOffset() + uint32(off), Final: off+4096 >= n,
			}, make([]byte, min(4096, n-off)))
		}
		sent += n
	}
}

// An older command that waits for memory does not wait for what younger ones hold that are dormant because of it.
func TestDormantCommandsGiveWayToWhatWaitsForMemory(t *testing.T) {
	const each = 128 << 10
	for name, parkedFirst := range map[string]bool{"it waits already": true, "it begins to wait": false} {
		t.Run(name, func(t *testing.T) {
			p := connect(t, setup{keys: all(), memory: 1 << 20}) // of which one session gets a quarter
			var holders []uint32
			for range 2 {
				c := p.rw(true, 0, each, each)
				c.CDB[15], c.LUN = 1, 1<<48
				p.issue(c, nil)
				p.serve(c, 0)
				p.entered(c.Tag)
				holders = append(holders, c.Tag)
			}
			old := p.rw(true, 0, each, each)
			old.Final = parkedFirst
			p.issue(old, nil)
			young := p.rw(true, each, 512, 512)
			young.Attribute = ordered
			p.issue(young, make([]byte, 512))
			from := 0
			if !parkedFirst {
				p.ping(nil)
				for from < 8192 {
					p.dataOut(pdu.DataOut{Tag: old.Tag, TransferTag: pdu.NoTag, DataSN: uint32(from / 4096), BufferOffset: uint32(from), Final: from == 4096}, make([]byte, 4096))
					from += 4096
				}
			}
			p.expectStatus(young.Tag, scsi.StatusTaskSetFull)
			p.letGo(holders[0])
			p.serve(old, from)
			p.expectStatus(old.Tag, scsi.StatusGood)
		})
	}
}

// Whatever is sent, no ORDERED command runs beside an older or younger one of its LUN, and all are answered.
func TestOrderedCommandsRunAlone(t *testing.T) {
	const commands = 400
	p := connect(t, setup{keys: all()})
	type span struct{ from, to int }
	var (
		mu    sync.Mutex
		clock int
		spans = map[uint32]*span{}
	)
	p.disk.mu.Lock()
	p.disk.around = func(task *scsi.Task) func() {
		mu.Lock()
		clock++
		s := &span{from: clock}
		spans[task.Tag] = s
		mu.Unlock()
		if rand.IntN(3) == 0 {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		}
		return func() {
			mu.Lock()
			defer mu.Unlock()
			clock++
			s.to = clock
		}
	}
	p.disk.mu.Unlock()
	type sent struct {
		tag       uint32
		attribute uint8
		lun       uint64
	}
	var all []sent
	for range commands / 32 {
		var tags []uint32
		for range 32 { // the window
			c := p.rw(true, 0, 512, 512)
			c.Attribute, c.LUN = uint8(rand.IntN(4)), uint64(rand.IntN(2))<<48
			p.issue(c, bytes.Repeat([]byte{1}, 512))
			all, tags = append(all, sent{c.Tag, c.Attribute, c.LUN}), append(tags, c.Tag)
		}
		for range tags {
			if h, _ := p.expect(pdu.OpSCSIResponse); h.Status() != 0 {
				t.Fatalf("status %02Xh", h.Status())
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.lun != b.lun || b.attribute == head || a.attribute < ordered && b.attribute != ordered {
				continue
			}
			if spans[b.tag].from < spans[a.tag].to {
				t.Fatalf("%+v began before %+v had ended", b, a)
			}
		}
	}
}
