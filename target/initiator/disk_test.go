package initiator_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// proxy passes bytes on until it is frozen: then connections stay open and nothing moves, as with a stopped process.
type proxy struct {
	address string
	gate    chan struct{}
	once    sync.Once
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: ln.Addr().String(), gate: make(chan struct{})}
	var wg sync.WaitGroup
	over := make(chan struct{})
	pump := func(dst, src net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			select {
			case <-p.gate:
				<-over
			default:
			}
			if err != nil {
				dst.Close()
				return
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				src.Close()
				return
			}
		}
	}
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			wg.Go(func() { pump(out, in) })
			wg.Go(func() { pump(in, out) })
			wg.Go(func() { <-over; in.Close(); out.Close() })
		}
	})
	t.Cleanup(func() { close(over); ln.Close(); wg.Wait() })
	return p
}

func (p *proxy) freeze() { p.once.Do(func() { close(p.gate) }) }

// journal records what a Disk reports.
type journal struct {
	mu       sync.Mutex
	attempts []initiator.Attempt
	events   []initiator.PathEvent
	refused  chan struct{} // one for every path found unusable, if not nil
}

func open(t *testing.T, c *cluster, j *journal, addresses ...string) *initiator.Disk {
	t.Helper()
	cfg := initiator.MultipathConfig{
		RetryEvery: 2 * time.Millisecond,
		Session:    initiator.Config{KeepAlive: 30 * time.Millisecond, SilentTimeout: 150 * time.Millisecond},
		OnAttempt:  func(a initiator.Attempt) { j.mu.Lock(); j.attempts = append(j.attempts, a); j.mu.Unlock() },
		OnPath: func(e initiator.PathEvent) {
			j.mu.Lock()
			j.events = append(j.events, e)
			j.mu.Unlock()
			if e.What == initiator.PathRefused && j.refused != nil {
				j.refused <- struct{}{}
			}
		},
	}
	if addresses == nil {
		for _, n := range c.nodes {
			addresses = append(addresses, n.address)
		}
	}
	for _, a := range addresses {
		cfg.Paths = append(cfg.Paths, initiator.PathConfig{Address: a, Target: targetName})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := initiator.OpenMultipath(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// TestFailoverUnderLoad loses the owner in every way while writers run: each write must end acknowledged, and be there.
func TestFailoverUnderLoad(t *testing.T) {
	for name, lose := range map[string]func(*cluster, *proxy){
		"killed": func(c *cluster, _ *proxy) { c.nodes[0].kill(); c.move(1) },
		"killed, no owner": func(c *cluster, _ *proxy) {
			c.nodes[0].kill()
			c.move(-1)
			time.AfterFunc(50*time.Millisecond, func() { c.move(1) })
		},
		"moved":  func(c *cluster, _ *proxy) { c.move(1) },
		"silent": func(c *cluster, p *proxy) { p.freeze(); c.move(1) },
	} {
		t.Run(name, func(t *testing.T) {
			c, j := newCluster(t, 2), &journal{}
			p := newProxy(t, c.nodes[0].address)
			d := open(t, c, j, p.address, c.nodes[1].address)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			var written atomic.Int32
			for w := range 4 {
				wg.Go(func() {
					for i := range 60 {
						off := int64(w*60+i) * 4096
						r, err := d.WriteAt(ctx, pattern(4096, byte(w*60+i)), off)
						if err != nil || r.Outcome != initiator.Acknowledged {
							t.Errorf("write at %d: %+v, %v", off, r, err)
							return
						}
						if written.Add(1) == 60 {
							lose(c, p)
						}
					}
				})
			}
			wg.Wait()
			for i := range 240 {
				got := make([]byte, 4096)
				if r, err := d.ReadAt(ctx, got, int64(i)*4096); err != nil || r.Outcome != initiator.Acknowledged || !bytes.Equal(got, pattern(4096, byte(i))) {
					t.Fatalf("block %d is lost: %+v, %v", i, r, err)
				}
			}
			if n := d.Counters(); n.Switches < 2 || n.Operations != 480 || n.Retries == 0 || n.Attempts != n.Operations+n.Retries {
				t.Errorf("counters %+v", n)
			}
			j.check(t)
		})
	}
}

// check verifies that no two attempts of an operation overlap and that every start has its end.
func (j *journal) check(t *testing.T) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	running := map[uint64]int{}
	for _, a := range j.attempts {
		if a.End.IsZero() {
			if running[a.IO] != 0 {
				t.Errorf("operation %d: attempt %d began before the last one was over", a.IO, a.N)
			}
			running[a.IO] = a.N
			continue
		}
		if running[a.IO] != a.N || a.Outcome == "" || (a.Outcome == initiator.Acknowledged) != (a.Err == nil) {
			t.Errorf("operation %d: attempt %d ended %q, %v", a.IO, a.N, a.Outcome, a.Err)
		}
		delete(running, a.IO)
	}
	if len(running) != 0 {
		t.Errorf("attempts without an end: %v", running)
	}
	active := -1
	for _, e := range j.events {
		switch e.What {
		case initiator.PathActive:
			if active >= 0 {
				t.Error("two paths active at once")
			}
			active = e.Path
		case initiator.PathLost:
			if active != e.Path {
				t.Errorf("path %d lost while %d was active", e.Path, active)
			}
			active = -1
		}
	}
}

// A node that is cut off knows of no other owner and can only say BUSY: the disk does not wait for it to say more.
func TestACutOffOwnerIsLeftSoon(t *testing.T) {
	c := newCluster(t, 2)
	j := &journal{}
	d := open(t, c, j, c.nodes[0].address, c.nodes[1].address)
	data := pattern(4096, 1)
	if _, err := d.WriteAt(t.Context(), data, 0); err != nil {
		t.Fatal(err)
	}
	c.cut.Store(1)
	c.move(1)
	io, err := d.WriteAt(t.Context(), data, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if io.Attempts > 4 { // a unit attention, BUSY twice, and the other node
		t.Errorf("%d attempts, acknowledged after %v", io.Attempts, io.Elapsed)
	}
	if got := c.mem.Bytes(block.BytesRange(4096, 4096)); !bytes.Equal(got, data) {
		t.Error("acknowledged but not written")
	}
}

func TestTheSameNodeComesBack(t *testing.T) {
	c, j := newCluster(t, 1), &journal{refused: make(chan struct{}, 100)}
	d := open(t, c, j)
	c.nodes[0].kill()
	var (
		r   initiator.IO
		err error
		wg  sync.WaitGroup
	)
	wg.Go(func() { r, err = d.WriteAt(t.Context(), pattern(512, 1), 0) })
	<-j.refused // the write waits, and the search has found nothing yet
	c.nodes[0].start([16]byte{0x60, 1})
	wg.Wait()
	if err != nil || r.Outcome != initiator.Acknowledged || r.Stall == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if f, err := d.Flush(t.Context()); err != nil || f.Outcome != initiator.Acknowledged {
		t.Errorf("flush: %+v, %v", f, err)
	}
}

func TestOutcomesAreHonest(t *testing.T) {
	c, j := newCluster(t, 2), &journal{}
	d := open(t, c, j)
	data := pattern(512, 9)
	// Refused for good: no retry.
	r, err := d.CompareAndWrite(t.Context(), data, data, 0)
	var status *initiator.StatusError
	if !errors.As(err, &status) || status.Key != scsi.Miscompare || r.Outcome != initiator.Failed || r.Attempts > 2 {
		t.Errorf("miscompare: %+v, %v", r, err)
	}
	// Busy after it took effect, then a miscompare with what it wrote itself: not "failed".
	var first atomic.Bool
	c.mem.After(func(_ context.Context, op string, _ block.Range) error {
		if op == "CompareAndWrite" && first.CompareAndSwap(false, true) {
			return block.ErrUnknown
		}
		return nil
	})
	r, err = d.CompareAndWrite(t.Context(), make([]byte, 512), data, 0)
	if err == nil || r.Outcome != initiator.Unknown || r.Attempts != 2 {
		t.Errorf("compare-and-write that had taken effect: %+v, %v", r, err)
	}
	// No owner until the time is up: with nothing but refusals nothing was done.
	c.move(-1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err = d.WriteAt(ctx, data, 4096)
	if !errors.Is(err, context.DeadlineExceeded) || r.Outcome == initiator.Acknowledged {
		t.Errorf("without an owner: %+v, %v", r, err)
	}
	for _, bad := range [][2]int64{{-512, 512}, {1, 512}, {0, 100}, {sectors * 512, 512}, {0, 0}} {
		if r, err := d.ReadAt(t.Context(), make([]byte, bad[1]), bad[0]); err == nil || r.Outcome != initiator.Failed {
			t.Errorf("extent %v was accepted", bad)
		}
	}
}

func TestPathsToDifferentLUNsAreRefused(t *testing.T) {
	c := newCluster(t, 2)
	c.nodes[1].kill()
	c.nodes[1].start([16]byte{0x60, 2})
	_, err := initiator.OpenMultipath(t.Context(), initiator.MultipathConfig{Paths: []initiator.PathConfig{
		{Address: c.nodes[0].address, Target: targetName}, {Address: c.nodes[1].address, Target: targetName},
	}})
	if !errors.Is(err, initiator.ErrMismatch) {
		t.Errorf("%v", err)
	}
}
