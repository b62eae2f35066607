package session

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"
	"unsafe"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

func TestBuffersAreAlignedExactAndReused(t *testing.T) {
	m := NewMemory(64 << 20)
	a := &account{m: m}
	for _, n := range []int{1, 4095, 4096, 4097, 70000, 1 << 20, 3 << 20} {
		b := a.Get(t.Context(), n)
		if len(b) != n || uintptr(unsafe.Pointer(&b[0]))%4096 != 0 {
			t.Errorf("Get(%d): %d bytes at %p", n, len(b), b)
		}
		if m.Used() != sizeOf(n) {
			t.Errorf("Get(%d): %d bytes used, want %d", n, m.Used(), sizeOf(n))
		}
		a.Put(b[:1])
		if m.Used() != 0 {
			t.Errorf("Put: %d bytes used", m.Used())
		}
	}
	first := a.Get(t.Context(), 5000)
	a.Put(first)
	if second := a.Get(t.Context(), 6000); &second[0] != &first[0] {
		t.Error("a buffer given back was not used again")
	} else {
		a.Put(second)
	}
	if m.idle > m.budget/4 {
		t.Errorf("%d bytes kept idle", m.idle)
	}
}

func TestMemoryStaysWithinBudgetPlusOneBufferPerKindAndSession(t *testing.T) {
	m := NewMemory(4 << 20)
	a, b := &account{m: m}, &account{m: m}
	var held [][]byte
	for {
		x := a.tryGet(unsolicited, 1<<20)
		if x == nil {
			break
		}
		held = append(held, x)
	}
	if m.Used() != 4<<20 {
		t.Fatalf("%d bytes lent of a budget of 4 MiB", m.Used())
	}
	if x := b.tryGet(solicited, 1<<20); x == nil {
		t.Error("a session that holds nothing got nothing")
	} else {
		held = append(held, x)
	}
	if b.tryGet(solicited, 4096) != nil {
		t.Error("and a second one beyond the budget")
	}
	var order []int
	for i := range 3 {
		b.getLater(solicited, 1<<18, func(x []byte) { order = append(order, i); b.put(solicited, x) })
	}
	if len(order) != 0 {
		t.Fatalf("served without room: %v", order)
	}
	b.put(solicited, held[len(held)-1])
	if len(order) != 3 || order[0] != 0 {
		t.Errorf("served %v after room was made", order)
	}
	for _, x := range held[:len(held)-1] {
		a.put(unsolicited, x)
	}
	if m.Used() != 0 || len(m.waiting) != 0 {
		t.Errorf("%d bytes used, %d waiting", m.Used(), len(m.waiting))
	}
}

// starved returns an account that has its first buffer and finds no room for another; release gives everything back.
func starved(t *testing.T) (a *account, release func()) {
	m := NewMemory(1 << 20)
	a, hog := &account{m: m}, &account{m: m}
	first, rest := a.Get(t.Context(), 4096), hog.get(t.Context(), unsolicited, 1<<20)
	return a, func() {
		a.Put(first)
		hog.put(unsolicited, rest)
	}
}

func TestClosingAnAccountLetsItsWaitersGo(t *testing.T) {
	a, release := starved(t)
	got := make(chan []byte)
	go func() { got <- a.Get(t.Context(), 4096) }()
	a.close()
	a.Put(<-got)
	release()
}

// A task that is aborted must not wait for memory that somebody keeps who does not read.
func TestAbortedTaskDoesNotWaitForMemory(t *testing.T) {
	a, release := starved(t)
	m := a.m
	ctx, abort := context.WithCancel(t.Context())
	got := make(chan []byte)
	go func() { got <- a.Get(ctx, 4096) }()
	select {
	case <-got:
		t.Fatal("it did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	abort()
	b := <-got
	if len(b) != 4096 || m.Used() != 1<<20+2*4096 {
		t.Errorf("%d bytes lent, %d in all", len(b), m.Used())
	}
	a.Put(b)
	release()
	if m.Used() != 0 || len(m.waiting) != 0 {
		t.Errorf("%d bytes used, %d waiting", m.Used(), len(m.waiting))
	}
}

func TestMemoryUnderConcurrentUse(t *testing.T) {
	m := NewMemory(1 << 20)
	var wg sync.WaitGroup
	for i := range 8 {
		a := &account{m: m}
		for k := range kinds {
			wg.Go(func() {
				for j := range 200 {
					b := a.get(t.Context(), k, 1000*(i+j%50+1))
					b[0], b[len(b)-1] = byte(i), byte(j)
					if b[0] != byte(i) || b[len(b)-1] != byte(j) {
						t.Error("a buffer has two owners")
					}
					a.put(k, b)
				}
			})
		}
	}
	wg.Wait()
	if m.Used() != 0 || len(m.waiting) != 0 {
		t.Errorf("%d bytes used, %d waiting", m.Used(), len(m.waiting))
	}
}

// A budget far too small for what is outstanding: every write still ends, in GOOD or TASK SET FULL, GOOD ones are stored,
// and the memory lent never exceeds what the rules allow.
func TestWritesEndUnderATinyBudget(t *testing.T) {
	p := connect(t, setup{keys: []pdu.Pair{
		{Key: "InitialR2T", Value: "No"},
		{Key: "ImmediateData", Value: "Yes"},
		{Key: "FirstBurstLength", Value: "65536"},
		{Key: "MaxBurstLength", Value: "262144"},
		{Key: "MaxOutstandingR2T", Value: "4"},
	}, memory: 1 << 20})
	const size = 512 << 10
	data := pattern(size, 9)
	at := map[uint32]int{}
	var order []uint32
	for i := range 16 {
		c := p.rw(true, i*size, size, size)
		c.Final = true
		p.issue(c, data[:65536])
		at[c.Tag] = i * size
		order = append(order, c.Tag)
	}
	most := int64(0)
	good := 0
	for len(at) > 0 {
		h, _, err := p.read()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, p.memory.Used())
		switch h.Opcode() {
		case pdu.OpR2T:
			from, n := int(h.BufferOffset()), int(h.DesiredLength())
			p.dataOut(pdu.DataOut{Tag: h.Tag(), TransferTag: h.TransferTag(), BufferOffset: h.BufferOffset(), Final: true}, data[from:from+n])
		case pdu.OpSCSIResponse:
			switch scsi.Status(h.Status()) {
			case scsi.StatusGood:
				good++
				if !bytes.Equal(p.disk.contents(at[h.Tag()], size), data) {
					t.Errorf("task %d: GOOD, but what was stored differs", h.Tag())
				}
			case scsi.StatusTaskSetFull:
				if p.disk.contents(at[h.Tag()], 1)[0] == data[0] && data[0] != 0 {
					t.Errorf("task %d: TASK SET FULL, but it was written", h.Tag())
				}
			default:
				t.Fatalf("status %02Xh", h.Status())
			}
			delete(at, h.Tag())
		default:
			t.Fatalf("%v", h.Opcode())
		}
	}
	if limit := int64(1<<20 + size + 65536); most > limit {
		t.Errorf("%d bytes lent, at most %d allowed", most, limit)
	}
	if good == 0 {
		t.Error("no write got through")
	}
	t.Logf("%d of %d writes in GOOD, at most %d bytes lent", good, len(order), most)
	p.statSN = 0
	p.alive()
}

func TestOtherSessionsGoOnWhenOneHoldsTheMemory(t *testing.T) {
	p := connect(t, setup{keys: all(), memory: 1 << 20})
	hog := &account{m: p.memory}
	held := hog.get(t.Context(), unsolicited, 1<<20)
	for i := range 4 {
		p.writeAll(i*65536, pattern(65536, i), 4096)
	}
	hog.put(unsolicited, held)
}

// 32 writes of 256 KiB outstanding while the backend stands still: what is held is what they carry, and pings are answered.
func TestAStalledBackendHoldsNoMoreThanItsWritesAndPingsAreAnswered(t *testing.T) {
	p := connect(t, setup{keys: []pdu.Pair{
		{Key: "InitialR2T", Value: "No"},
		{Key: "ImmediateData", Value: "Yes"},
		{Key: "FirstBurstLength", Value: "262144"},
	}})
	const size = 256 << 10
	data := pattern(size, 1)
	for i := range 32 {
		c := p.rw(true, i%16*size, size, size)
		c.CDB[15] = 1
		p.issue(c, data)
	}
	for range 32 {
		<-p.disk.entered
	}
	if used := p.memory.Used(); used != 32*size {
		t.Errorf("%d bytes lent for 32 writes of %d", used, size)
	}
	p.ping(nil)
	close(p.disk.gate)
	for range 32 {
		if h, _ := p.expect(pdu.OpSCSIResponse); h.Status() != 0 {
			t.Errorf("status %02Xh", h.Status())
		}
	}
}

// An initiator that asks for data and does not take it holds a bounded amount, and others are served meanwhile.
func TestWhoDoesNotReadHoldsABoundedAmount(t *testing.T) {
	p := connect(t, setup{memory: 8 << 20, keys: []pdu.Pair{{Key: "MaxRecvDataSegmentLength", Value: "262144"}}})
	for range 32 {
		p.issue(p.rw(false, 0, 1<<20, 1<<20), nil)
	}
	other := &account{m: p.memory}
	for range 100 {
		b := other.get(t.Context(), unsolicited, 256<<10)
		if used := p.memory.Used(); used > 8<<20 {
			t.Fatalf("%d bytes lent of a budget of 8 MiB", used)
		}
		other.put(unsolicited, b)
	}
	got := 0
	for done := 0; done < 32; {
		h, b := p.expect(pdu.OpDataIn)
		if got += len(b); h.Has(pdu.FlagStatus) {
			done++
		}
	}
	if got != 32<<20 {
		t.Errorf("%d bytes read, want 32 MiB", got)
	}
}
