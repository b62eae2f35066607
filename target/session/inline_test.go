package session

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// expectRead fails unless the next PDU is the only Data-In of that task, with status.
func (p *peer) expectRead(tag uint32, want []byte) {
	p.Helper()
	h, data := p.expect(pdu.OpDataIn)
	if h.Tag() != tag || !h.Has(pdu.FlagStatus) || !bytes.Equal(data, want) {
		p.Fatalf("Data-In of task %d, flags %02Xh, %d bytes: want task %d, its status and its %d bytes", h.Tag(), h.Flags(), len(data), tag, len(want))
	}
}

func TestTheSessionIsHeardWhileAShortReadIsStuck(t *testing.T) {
	p := connect(t, setup{keys: all()})
	p.disk.store(0, pattern(1024, 5))
	for range 3 { // one after another, so that the second can only have come to a reader in the first one's place
		c := p.rw(false, 0, 512, 512)
		c.CDB[15] = 2
		p.issue(c, nil)
		select {
		case <-p.disk.entered:
		case <-time.After(10 * time.Second):
			close(p.disk.gate)
			t.Fatal("nobody reads while a command of the reader is stuck")
		}
	}
	p.ping([]byte("are you there"))
	ok := p.rw(false, 512, 512, 512)
	p.issue(ok, nil)
	p.expectRead(ok.Tag, pattern(1024, 5)[512:])

	if got := p.s.stats.relieved.Load(); got == 0 {
		t.Error("no reader was relieved: the reads were not executed by it, and this test shows nothing")
	}
	close(p.disk.gate)
	for range 3 {
		if h, data := p.expect(pdu.OpDataIn); !h.Has(pdu.FlagStatus) || !bytes.Equal(data, pattern(512, 5)) {
			t.Errorf("a stuck read brought %d bytes, flags %02Xh", len(data), h.Flags())
		}
	}
	p.alive()
}

func TestAbortingAReadThatTheReaderExecutes(t *testing.T) {
	p := connect(t, setup{keys: all()})
	c := p.rw(false, 0, 512, 512)
	c.CDB[15] = 1
	p.issue(c, nil)
	<-p.disk.entered
	p.expectManaged(p.manage(scsi.AbortTask, 0, c.Tag), scsi.FunctionComplete)
	p.alive() // the first PDU after it: the read was not answered
}

// expectReads takes the Data-In of reads of 512 bytes that may come in any order; tags[i] is the one of offset i * 512.
func (p *peer) expectReads(tags []uint32, disk []byte) {
	p.Helper()
	open := make(map[uint32]int)
	for i, tag := range tags {
		open[tag] = i
	}
	for range tags {
		h, data := p.expect(pdu.OpDataIn)
		i, ok := open[h.Tag()]
		if !ok || !h.Has(pdu.FlagStatus) || !bytes.Equal(data, disk[i*512:][:512]) {
			p.Fatalf("Data-In of task %d, flags %02Xh, %d bytes", h.Tag(), h.Flags(), len(data))
		}
		delete(open, h.Tag())
	}
}

func TestAnswersOfCommandsThatArriveTogetherAreNotKept(t *testing.T) {
	p := connect(t, setup{keys: all(), config: func(c *Config) { c.Ping = time.Hour }}) // a ping would take them along
	p.disk.store(0, pattern(64<<10, 9))
	for range 20 {
		var tags []uint32
		for i := range 20 {
			c := p.rw(false, i*512, 512, 512)
			tags = append(tags, c.Tag)
			var h pdu.Header
			c.Put(&h)
			if err := p.w.Append(&h, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.w.Flush(); err != nil {
			t.Fatal(err)
		}
		p.expectReads(tags, pattern(64<<10, 9))
	}
	// Whole commands and the beginning of one more: the reader waits for its end, the answers do not.
	var bytes []byte
	var tags []uint32
	for i := range 4 {
		c := p.rw(false, i*512, 512, 512)
		tags = append(tags, c.Tag)
		var h pdu.Header
		c.Put(&h)
		bytes = append(bytes, h[:]...)
	}
	cut := len(bytes) - 20
	if _, err := p.conn.Write(bytes[:cut]); err != nil {
		t.Fatal(err)
	}
	p.expectReads(tags[:3], pattern(64<<10, 9))
	if _, err := p.conn.Write(bytes[cut:]); err != nil {
		t.Fatal(err)
	}
	p.expectRead(tags[3], pattern(64<<10, 9)[3*512:][:512])
}

// A batch of reads that together need more memory than a session gets: what is held back must be sent to make room.
func TestHeldAnswersAreSentWhenMemoryIsShort(t *testing.T) {
	p := connect(t, setup{memory: 1 << 20, config: func(c *Config) { c.Ping = time.Hour }})
	const n = 64 << 10
	p.disk.store(0, pattern(n, 1))
	for range 20 {
		c := p.rw(false, 0, n, n)
		var h pdu.Header
		c.Put(&h)
		if err := p.w.Append(&h, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.w.Flush(); err != nil {
		t.Fatal(err)
	}
	got := 0
	for got < 20*n {
		_, data, err := p.read()
		if err != nil {
			t.Fatal(err)
		}
		got += len(data)
	}
}

func TestAPanicInACommandOfTheReaderEndsTheSession(t *testing.T) {
	p := connect(t, setup{keys: all()})
	c := p.command(0x02)
	c.Read, c.EDTL = true, 512
	p.issue(c, nil)
	if _, _, err := p.read(); err == nil {
		t.Error("an answer to a command that panicked")
	}
	select {
	case err := <-p.ended:
		if !errors.Is(err, ErrPanic) {
			t.Errorf("ended with %v, want %v", err, ErrPanic)
		}
		p.ended <- err
	case <-time.After(10 * time.Second):
		t.Fatal("the session goes on")
	}
}

func TestSlowCommandsAreLeftToTheWorkersAndProbed(t *testing.T) {
	var p pace
	run := func(n int, took time.Duration) (inline int) {
		for range n {
			if p.quick() {
				inline++
				p.note(took)
			}
		}
		return inline
	}
	if n := run(1000, 5*time.Microsecond); n != 1000 {
		t.Errorf("%d of 1000 quick commands executed by the reader", n)
	}
	if n := run(1000, 100*time.Microsecond); n > 20 {
		t.Errorf("%d of 1000 slow commands executed by the reader", n)
	}
	if n := run(100_000, 100*time.Microsecond); n > 100_000/probeEvery+1 {
		t.Errorf("%d of 100000 slow commands executed by the reader, want one in %d", n, probeEvery)
	}
	run(10*probeEvery, 5*time.Microsecond)
	if n := run(1000, 5*time.Microsecond); n != 1000 {
		t.Errorf("%d of 1000 quick commands executed by the reader after slow ones", n)
	}
}

// No goroutine is started for a command while a worker waits for work.
func TestWorkersAreKept(t *testing.T) {
	p := connect(t, setup{keys: all()})
	for range 200 {
		p.alive() // a command without data is a worker's
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	// One that has answered and not yet said that it waits makes room for a second.
	if n := p.s.running; n < 1 || n > 4 {
		t.Errorf("%d workers for 200 commands one after the other", n)
	}
}
