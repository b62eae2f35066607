package scsi_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/scsi"
)

var (
	tur    = cdb(0x00)
	read1  = cdb(0x28, 0, 0, 0, 0, 0, 0, 0, 1)
	write1 = cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 1)
)

func TestAccessStatesDecideWhatRuns(t *testing.T) {
	describing := [][16]byte{cdb(0x12, 0, 0, 0, 96), cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64), cdb(0x03, 0, 0, 0, 18), cdb(0x25), cdb(0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32), cdb(0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 64)}
	standby := [][16]byte{cdb(0x1A, 0, 0x3F, 0, 255), cdb(0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 1)}
	media := [][16]byte{read1, write1, cdb(0x35), cdb(0x2F), cdb(0x42), cdb(0x89), cdb(0x1B, 0, 0, 0, 1)}
	for _, c := range []struct {
		state            scsi.AccessState
		ready, elsewhere string // for TEST UNIT READY and media while another group is active
		standby          string
	}{
		{scsi.Standby, "02/04/0B", "02/04/0B", "good"},
		{scsi.Unavailable, "02/04/0C", "02/04/0C", "02/04/0C"},
		{scsi.Transitioning, "02/04/0A", "busy", "02/04/0A"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, 512, nil)
			g.access.Store(access(1, c.state, scsi.ActiveOptimized))
			for _, d := range describing {
				g.want(g.run(g.nexus, d, 255, nil), "good")
			}
			for _, d := range standby {
				g.want(g.run(g.nexus, d, 255, nil), c.standby)
			}
			g.want(g.run(g.nexus, tur, 0, nil), c.ready)
			var outage time.Duration
			for _, m := range media {
				start := time.Now()
				r := g.run(g.nexus, m, 512, make([]byte, 512))
				if outage += time.Since(start); c.state == scsi.Transitioning && outage >= scsi.DefaultBusy {
					g.want(r, "02/04/0A")
				} else {
					g.want(r, c.elsewhere)
				}
				if held := time.Since(start); c.state == scsi.Transitioning != (held == scsi.DefaultHold) || c.state != scsi.Transitioning && held != 0 {
					t.Errorf("state %X: %02X held for %v", c.state, m[0], held)
				}
			}
		})
	}
}

func TestCommandsAreHeldUntilThereIsAnOwner(t *testing.T) {
	for name, announced := range map[string]bool{"announced": true, "polled": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var changed atomic.Pointer[chan struct{}]
				fresh := make(chan struct{})
				changed.Store(&fresh)
				g := newRig(t, 512, func(c *scsi.UnitConfig) {
					if announced {
						c.AccessChanged = func() <-chan struct{} { return *changed.Load() }
					}
				})
				g.access.Store(access(1, scsi.Standby, scsi.Standby))
				become := func(a *scsi.Access) {
					g.access.Store(a)
					next := make(chan struct{})
					close(*changed.Swap(&next))
				}
				start := time.Now()
				go func() {
					time.Sleep(300 * time.Millisecond)
					become(access(1, scsi.ActiveOptimized, scsi.Standby))
				}()
				g.want(g.run(g.nexus, read1, 512, nil), "good")
				if held := time.Since(start); held < 300*time.Millisecond || held > 320*time.Millisecond {
					t.Errorf("held for %v", held)
				}
				// Nobody at all: not "standby", which would send the initiator in circles.
				g.access.Store(access(1, scsi.Standby, scsi.Standby))
				g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), "busy")
				// Another node becomes the owner while the command is held: told at once.
				start = time.Now()
				go func() {
					time.Sleep(100 * time.Millisecond)
					become(access(1, scsi.Standby, scsi.ActiveOptimized))
				}()
				g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), "02/04/0B")
				if held := time.Since(start); held > 120*time.Millisecond {
					t.Errorf("held for %v although the owner is known", held)
				}
			})
		})
	}
}

func TestBackendErrorsBecomeSense(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
		held bool
	}{
		{block.ErrUnknown, "busy", false},
		{block.ErrNotOwner, "busy", true}, // no other owner is known
		{block.ErrUnavailable, "busy", true},
		{block.ErrClosed, "busy", true},
		{block.ErrLost, "02/04/03", false},
		{block.ErrNoSpace, "07/27/07", false},
		{block.ErrOutOfRange, "05/21/00", false},
		{&block.CorruptError{Range: block.Range{Start: 0x1234, Count: 8}, Where: "medium"}, "03/11/00", false},
		{block.ErrFailed, "04/44/00", false},
		{errors.New("something else"), "04/44/00", false},
		{context.DeadlineExceeded, "busy", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, 512, nil)
			var attempts atomic.Int32
			g.mem.Before(func(context.Context, string, block.Range) error {
				attempts.Add(1)
				return fmt.Errorf("wrapped: %w", c.err)
			})
			start := time.Now()
			r := g.run(g.nexus, read1, 512, nil)
			g.want(r, c.want)
			if held := time.Since(start); held != 0 != c.held || held > scsi.DefaultHold || c.held != (attempts.Load() > 1) {
				t.Errorf("%v: held for %v, %d attempts", c.err, held, attempts.Load())
			}
			if c.want == "03/11/00" && (r.Sense[0] != 0xF0 || r.Sense[5] != 0x12 || r.Sense[6] != 0x34) {
				t.Errorf("the corrupt block is not named: % x", r.Sense)
			}
		})
	}
}

// BUSY makes an initiator with one path try again, 02/04/0A sends one with several to look elsewhere.
func TestAnOutageIsBusyAtFirstThenATransition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 512, nil)
		down := atomic.Bool{}
		g.mem.Before(func(context.Context, string, block.Range) error {
			if down.Load() {
				return block.ErrUnavailable
			}
			return nil
		})
		for range 2 { // the second outage is a new one, however short the first
			down.Store(true)
			for start := time.Now(); time.Since(start) < 6*time.Second; {
				want := "busy"
				if time.Since(start)+scsi.DefaultHold >= scsi.DefaultBusy {
					want = "02/04/0A"
				}
				g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), want)
				g.want(g.run(g.nexus, tur, 0, nil), "good") // says nothing of the outage, and does not end it
			}
			down.Store(false)
			g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), "good")
		}
		// That another node is known to own the LUN ends it too.
		g.access.Store(access(1, scsi.Transitioning, scsi.Standby))
		g.want(g.run(g.nexus, read1, 512, nil), "busy")
		g.access.Store(access(1, scsi.Standby, scsi.ActiveOptimized))
		g.want(g.run(g.nexus, read1, 512, nil), "02/04/0B")
		time.Sleep(time.Minute)
		g.access.Store(access(1, scsi.Transitioning, scsi.Standby))
		g.want(g.run(g.nexus, read1, 512, nil), "busy")
	})
}

func TestErrNotOwnerWhileAnotherOwnsIsAnsweredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 512, nil)
		g.mem.Before(func(context.Context, string, block.Range) error {
			g.access.Store(access(2, scsi.Standby, scsi.ActiveOptimized)) // deposed between the check and the write
			return block.ErrNotOwner
		})
		start := time.Now()
		g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), "02/04/0B")
		if time.Since(start) != 0 {
			t.Error("held although the owner is known")
		}
		g.want(g.run(g.nexus, tur, 0, nil), "06/2A/06")
	})
}

// Who knows one path only is asked to follow the LUN. Until it has, BUSY keeps its guest from an I/O error.
func TestSinglePathInitiatorsAreBusyWhereTheLUNIsNot(t *testing.T) {
	g := newRig(t, 512, nil)
	g.access.Store(access(1, scsi.Standby, scsi.ActiveOptimized))
	for _, c := range [][16]byte{tur, read10(0, 1), cdb(0x2A, 0, 0, 0, 0, 0, 0, 0, 0)} {
		g.nexus.SetSinglePath(false)
		g.want(g.run(g.nexus, c, 512, nil), "02/04/0B")
		g.nexus.SetSinglePath(true)
		g.want(g.run(g.nexus, c, 512, nil), "busy")
	}
	g.want(g.run(g.nexus, cdb(0x12, 0, 0, 0, 96), 96, nil), "good")
	g.access.Store(access(1, scsi.Unavailable, scsi.ActiveOptimized)) // this node is broken
	g.want(g.run(g.nexus, read10(0, 1), 512, nil), "busy")
	g.want(g.run(g.nexus, tur, 0, nil), "busy")
	alone := access(1, scsi.Unavailable, scsi.Standby)
	alone.Groups = alone.Groups[:1]
	g.access.Store(alone)
	g.want(g.run(g.nexus, read10(0, 1), 512, nil), "02/04/0C")
}

// While nobody owns the LUN, however long, an initiator with one path has nowhere else to look.
func TestSinglePathInitiatorsAreBusyWhileNobodyOwnsTheLUN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 512, nil)
		g.access.Store(access(1, scsi.Transitioning, scsi.Transitioning))
		g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), "busy")
		time.Sleep(time.Minute)
		for _, c := range [][16]byte{tur, read10(0, 1), write1} {
			g.nexus.SetSinglePath(false)
			g.want(g.run(g.nexus, c, 512, make([]byte, 512)), "02/04/0A")
			g.nexus.SetSinglePath(true)
			g.want(g.run(g.nexus, c, 512, make([]byte, 512)), "busy")
		}
	})
}

// libiscsi ends a login with TEST UNIT READY, and gives up if the LUN is just moving.
func TestReadinessIsWaitedForWithASinglePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 512, nil)
		g.access.Store(access(1, scsi.Transitioning, scsi.Transitioning))
		g.want(g.run(g.nexus, tur, 0, nil), "02/04/0A")
		g.nexus.SetSinglePath(true)
		began := time.Now()
		time.AfterFunc(100*time.Millisecond, func() { g.access.Store(access(2, scsi.ActiveOptimized, scsi.Standby)) })
		g.want(g.run(g.nexus, tur, 0, nil), "good")
		if waited := time.Since(began); waited < 100*time.Millisecond || waited > 150*time.Millisecond {
			t.Errorf("after %v", waited)
		}
		g.want(g.run(g.nexus, tur, 0, nil), "06/2A/06")
		g.access.Store(access(2, scsi.Transitioning, scsi.Transitioning))
		began = time.Now()
		g.want(g.run(g.nexus, tur, 0, nil), "busy")
		if waited := time.Since(began); waited != scsi.DefaultHold {
			t.Errorf("after %v", waited)
		}
	})
}

func TestUnitAttentionsInOrderAndOncePerNexus(t *testing.T) {
	g := newRig(t, 512, nil)
	second := g.attach(2)
	inquiry, luns, sense := cdb(0x12, 0, 0, 0, 96), cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64), cdb(0x03, 0, 0, 0, 18)
	// Neither reported to nor cleared by INQUIRY and REPORT LUNS.
	g.want(g.run(second, inquiry, 96, nil), "good")
	g.want(g.run(second, luns, 64, nil), "good")
	g.want(g.run(second, cdb(0xFF), 0, nil), "06/29/00")
	g.want(g.run(second, cdb(0xFF), 0, nil), "05/20/00")

	g.access.Store(access(2, scsi.ActiveOptimized, scsi.Unavailable))
	g.mem.Grow(testSectors * 2)
	other, err := scsi.NewUnit(scsi.UnitConfig{Identity: testIdentity, Backend: g.mem, Access: func() scsi.Access { return *g.access.Load() }})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.target.Add(300, other); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*scsi.Nexus{g.nexus, second} {
		for _, want := range []string{"06/2A/09", "06/2A/06", "06/3F/0E", "good"} {
			g.want(g.run(n, tur, 0, nil), want)
		}
	}
	if r := g.target.Manage(scsi.LogicalUnitReset, g.nexus, 0, 0)(t.Context()); r != scsi.FunctionComplete {
		t.Fatalf("reset: %d", r)
	}
	r := g.run(g.nexus, sense, 18, nil)
	if g.want(r, "good"); r.data[2] != 0x06 || r.data[12] != 0x29 || r.data[13] != 0x03 {
		t.Errorf("REQUEST SENSE after a reset: % x", r.data)
	}
	g.want(g.run(g.nexus, tur, 0, nil), "good")
	g.want(g.run(second, tur, 0, nil), "06/29/03")
	g.want(g.run(second, tur, 0, nil), "good")

	// REPORT LUNS clears 3F/0E, and lists a LUN above 255 in flat space addressing.
	if err := g.target.Remove(t.Context(), 300); err != nil {
		t.Fatal(err)
	}
	if err := g.target.Add(301, other); err != nil {
		t.Fatal(err)
	}
	if r := g.run(g.nexus, luns, 64, nil); len(r.data) != 24 || r.data[16] != 0x41 || r.data[17] != 0x2D {
		t.Errorf("LUN list % x", r.data)
	}
	g.want(g.run(g.nexus, tur, 0, nil), "good")
	g.want(g.run(second, tur, 0, nil), "06/3F/0E")
}

func TestLUNsThatDoNotExist(t *testing.T) {
	g := newRig(t, 512, nil)
	at := func(lun uint64, c [16]byte) result {
		task := g.task(g.nexus, c, 255, nil)
		task.LUN = lun
		return g.execute(t.Context(), task)
	}
	for _, lun := range []uint64{1 << 48, 0x4001 << 48, 0x0100 << 48, 0xC101 << 48, 1, 0x8000 << 48, 0x0000000100000000} {
		r := at(lun, cdb(0x12, 0, 0, 0, 96))
		if g.want(r, "good"); len(r.data) != 96 || r.data[0] != 0x7F {
			t.Errorf("LUN %016x: inquiry % x", lun, r.data)
		}
		g.want(at(lun, cdb(0x12, 1, 0x83, 0, 96)), "05/25/00")
		for _, op := range []byte{0x00, 0x25, 0x28, 0x04} {
			g.want(at(lun, cdb(op)), "05/25/00")
		}
		if r := at(lun, cdb(0x03, 0, 0, 0, 18)); len(r.data) != 18 || r.data[2] != 5 || r.data[12] != 0x25 {
			t.Errorf("request sense % x", r.data)
		}
		g.want(at(lun, cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64)), "good")
	}
	g.want(at(0x4000<<48, tur), "good") // LUN 0 in flat space addressing
	for lun, want := range map[uint16]uint64{0: 0, 255: 255 << 48, 256: 0x4100 << 48, scsi.MaxLUN: 0x7FFF << 48} {
		if got := scsi.EncodeLUN(lun); got != want {
			t.Errorf("LUN %d is %016x, want %016x", lun, got, want)
		}
	}
	for _, bad := range []uint16{0, scsi.MaxLUN + 1} {
		if err := g.target.Add(bad, g.unit); !errors.Is(err, scsi.ErrLUN) {
			t.Errorf("adding LUN %d again or out of range: %v", bad, err)
		}
	}
}
