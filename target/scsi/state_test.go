package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
)

// states returns blobs of units that have lived.
func states(t testing.TB) [][]byte {
	p := newNodes(&testing.T{}, scsi.ActiveNonOptimized, nil)
	var blobs [][]byte
	a, b := p.attach(0, "a"), p.attach(1, "b")
	for _, step := range []func(){
		func() { p.prout(0, a, reserve.Register, 0, 0, 1) },
		func() { p.prout(1, b, reserve.Register, 0, 0, 2) },
		func() { p.prout(1, b, reserve.ReserveAction, reserve.WriteExclusiveRegistrantsOnly, 2, 0) },
		func() { manage(scsi.LogicalUnitReset)(p, 1, b) },
		func() { p.run(1, b, tur, 0, nil); p.prout(1, b, reserve.Clear, 0, 2, 0) },
		func() { p.run(0, a, tur, 0, nil); p.run(0, a, tur, 0, nil); p.run(0, a, cdb(0x16), 0, nil) },
	} {
		step()
		blobs = append(blobs, p.cluster.Node(0).State().Blob)
	}
	for i, blob := range blobs {
		if len(blob) == 0 {
			t.Fatalf("state %d is empty", i)
		}
	}
	return blobs
}

func TestStateIsReadAsWrittenAndRefusesDamage(t *testing.T) {
	for _, blob := range states(t) {
		again, err := scsi.DecodeAndEncodeState(blob)
		if err != nil || !bytes.Equal(again, blob) {
			t.Fatalf("%v: % x became % x", err, blob, again)
		}
		for n := 1; n < len(blob); n++ {
			if _, err := scsi.DecodeAndEncodeState(blob[:n]); err == nil {
				t.Errorf("%d of %d bytes were accepted", n, len(blob))
			}
		}
		if _, err := scsi.DecodeAndEncodeState(append(bytes.Clone(blob), 0)); err == nil {
			t.Error("a byte too many was accepted")
		}
	}
	if _, err := scsi.DecodeAndEncodeState(nil); err != nil {
		t.Error("a LUN that has none:", err)
	}
	if _, err := scsi.DecodeAndEncodeState(make([]byte, block.MaxStateBytes+1)); err == nil {
		t.Error("too long")
	}
}

// FuzzState: no panic, and what is accepted is encoded again byte for byte.
func FuzzState(f *testing.F) {
	for _, blob := range states(f) {
		f.Add(blob)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		again, err := scsi.DecodeAndEncodeState(blob)
		if err == nil && len(blob) > 0 && !bytes.Equal(again, blob) {
			t.Fatalf("% x became % x", blob, again)
		}
	})
}

// FuzzServePeer gives the owner requests that no node of ours sends. It must answer or refuse, and stay what it is.
func FuzzServePeer(f *testing.F) {
	var ticketRequest []byte
	record := func(i int, cfg *scsi.UnitConfig) {
		if i != 1 {
			return
		}
		ask := cfg.AskOwner
		cfg.AskOwner = func(ctx context.Context, b []byte) ([]byte, error) {
			f.Add(bytes.Clone(b))
			if ticketRequest == nil {
				ticketRequest = bytes.Clone(b) // the first thing a node asks for
			}
			return ask(ctx, b)
		}
	}
	p := newNodes(&testing.T{}, scsi.ActiveNonOptimized, record)
	n := p.attach(1, "host")
	p.run(1, n, write10(0, 2), 0, pattern(1024, 1))
	p.run(1, n, read10(0, 2), 1024, nil)
	p.prout(1, n, reserve.Register, 0, 0, 1)
	manage(scsi.LogicalUnitReset)(p, 1, n)
	if _, err := p.units[1].PurgeReservations(context.Background(), scsi.Purge{What: scsi.PurgeInitiator, Initiator: n.Initiator}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newNodesOf(t, 64, scsi.ActiveNonOptimized, func(_ int, c *scsi.UnitConfig) { c.Log = slog.New(slog.NewTextHandler(io.Discard, nil)) })
		// With a ticket of this owner, or no command would be young enough to be carried out.
		ticket, err := p.units[0].ServePeer(t.Context(), "peer", ticketRequest)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 14 {
			if at := 14 + 1 + int(b[14]) + 6 + 2 + 8 + 16; len(b) >= at+24 {
				b = bytes.Clone(b)
				copy(b[at:at+16], ticket[2:18])
				clear(b[at+16 : at+24])
			}
		}
		answer, err := p.units[0].ServePeer(t.Context(), "peer", b)
		if err == nil && len(answer) > scsi.AnswerBytes(b) {
			t.Fatalf("answered %d bytes, announced %d", len(answer), scsi.AnswerBytes(b))
		}
		if blob := p.cluster.Node(0).State().Blob; len(blob) > 0 {
			if _, err := scsi.DecodeAndEncodeState(blob); err != nil {
				t.Fatal(err)
			}
		}
		p.want(p.run(0, p.attach(0, "host"), cdb(0x12, 0, 0, 0, 96), 96, nil), "good")
		if _, err := p.units[0].Reservations(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzSetTargetPortGroups: any list is refused or moves the LUN to a node that there is.
func FuzzSetTargetPortGroups(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 2})
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) > 8192 {
			return
		}
		p := newNodesOf(t, 64, scsi.ActiveNonOptimized, nil)
		q := newNodesOf(t, 64, scsi.ActiveNonOptimized, func(i int, c *scsi.UnitConfig) {
			c.SetPreferred = func(_ context.Context, group uint16) error {
				if group != 1 && group != 2 {
					t.Errorf("moved to group %d", group)
				}
				p.cluster.Move(int(group) - 1)
				return nil
			}
			c.Backend, c.Access = p.cluster.Node(i), p.cluster.Node(i).Access
		})
		n := q.attach(0, "host")
		c := cdb(0xA4, 0x0A)
		binary.BigEndian.PutUint32(c[6:], uint32(len(list)))
		r := q.run(0, n, c, 0, list)
		if got := outcome(&r.Task); got != "good" && got != "05/26/00" && got != "05/24/00" {
			t.Errorf("% x: %s", list, got)
		}
	})
}

// BenchmarkRead is the path of a read without transport and replication: every command pays for it.
func BenchmarkRead(b *testing.B) {
	g := newRig(&testing.T{}, 512, nil)
	buf := make([]byte, 4096)
	task := &scsi.Task{Nexus: g.nexus, CDB: read10(0, 8), ExpectedIn: 4096, Buffers: fixedBuffer(buf)}
	b.ReportAllocs()
	for b.Loop() {
		g.target.Execute(context.Background(), task)
		if task.Status != scsi.StatusGood {
			b.Fatal(outcome(task))
		}
	}
}

// fixedBuffer lends the same memory again and again.
type fixedBuffer []byte

func (f fixedBuffer) Get(_ context.Context, n int) []byte { return f[:n] }
func (f fixedBuffer) Put([]byte)                          {}

// An initiator port that has lost its session and logs in again hears one unit attention, which stands for the loss and for all it has missed, and
// finds what is kept by its name.
func TestLossOfASessionIsToldAsAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for node := range 2 {
			p := newNodes(t, scsi.Standby, nil)
			old, other := p.loggedIn(node, "host", 1), p.loggedIn(0, "other", 1)
			p.want(p.prout(node, old, reserve.Register, 0, 0, 7), "good")
			p.targets[node].Detach(old)
			p.cluster.Move(1)
			p.cluster.Move(0)
			manage(scsi.LogicalUnitReset)(p, 0, other)
			again := p.loggedIn(node, "host", 1) // 06/29/00
			p.want(p.run(node, again, cdb(0x5E, 0, 0, 0, 0, 0, 0, 0, 64), 64, nil), "good")
			p.want(p.prout(node, again, reserve.Register, 0, 7, 8), "good")
		}
	})
}
