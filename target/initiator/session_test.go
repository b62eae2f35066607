package initiator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

func TestDiscoverListsEveryPortal(t *testing.T) {
	c := newCluster(t, 2)
	targets, err := initiator.Discover(t.Context(), c.nodes[1].address)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint([]initiator.Target{{Name: targetName, Portals: []initiator.Portal{{c.nodes[0].address, 1}, {c.nodes[1].address, 2}}}})
	if got := fmt.Sprint(targets); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestLoginRefusalIsTyped(t *testing.T) {
	c := newCluster(t, 1)
	_, err := initiator.Dial(t.Context(), initiator.Config{Address: c.nodes[0].address, Target: "iqn.2024-01.test:other"})
	var refused *initiator.LoginError
	if !errors.As(err, &refused) || refused.Status != 0x0203 {
		t.Errorf("%v", err)
	}
}

// TestDataTravelsWhole writes and reads sizes around every boundary under every way of sending data.
func TestDataTravelsWhole(t *testing.T) {
	for name, change := range map[string]func(*initiator.Config){
		"immediate and unsolicited": nil,
		"digests":                   func(c *initiator.Config) { c.HeaderDigest, c.DataDigest = true, true },
		"all solicited":             func(c *initiator.Config) { c.InitialR2T, c.NoImmediateData = true, true },
		"immediate only":            func(c *initiator.Config) { c.InitialR2T = true },
		"unsolicited only":          func(c *initiator.Config) { c.NoImmediateData = true },
		"small bursts": func(c *initiator.Config) {
			c.FirstBurst, c.MaxBurst, c.MaxRecvData = 4096, 8192, 1024
			c.HeaderDigest, c.DataDigest = true, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			s := ready(t, c, change)
			for i, blocks := range []uint32{1, 8, 9, 128, 513, 2048} {
				data, got := pattern(int(blocks)*512, byte(i)), make([]byte, blocks*512)
				if err := s.Write(t.Context(), 7, blocks, data); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(c.mem.Bytes(block.Range{Start: 7, Count: block.Count(blocks)}), data) {
					t.Fatalf("%d blocks were not stored as written", blocks)
				}
				if err := s.Read(t.Context(), 7, blocks, got); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%d blocks came back otherwise: %v", blocks, err)
				}
			}
			if err := s.Logout(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHelperCommands(t *testing.T) {
	c := newCluster(t, 2)
	s, ctx := ready(t, c, nil), t.Context()
	if b, err := s.Inquiry(ctx); err != nil || string(b[8:16]) != "SANCTURY" {
		t.Errorf("inquiry: %q, %v", b, err)
	}
	if naa, err := s.NAA(ctx); err != nil || len(naa) != 16 || naa[0] != 0x60 {
		t.Errorf("NAA %x, %v", naa, err)
	}
	size, err := s.ReadCapacity16(ctx)
	if want := (initiator.Capacity{Blocks: sectors, BlockBytes: 512, PhysicalPerUnit: 8, Thin: true, ReadsZero: true}); err != nil || size != want {
		t.Errorf("capacity %+v, %v", size, err)
	}
	groups, err := s.ReportTargetPortGroups(ctx)
	if got := fmt.Sprint(groups); err != nil || got != "[{1 0 [1]} {2 2 [2]}]" {
		t.Errorf("port groups %s, %v", got, err)
	}
	data, zero := pattern(512, 3), make([]byte, 512)
	if err := s.WriteSame(ctx, 4, 3, data); err != nil {
		t.Error(err)
	}
	if err := s.Unmap(ctx, 5, 1); err != nil {
		t.Error(err)
	}
	if err := s.CompareAndWrite(ctx, 5, 1, zero, data); err != nil {
		t.Error(err)
	}
	var miss *initiator.StatusError
	other := bytes.Clone(data)
	other[100]++
	if err := s.CompareAndWrite(ctx, 5, 1, other, zero); !errors.As(err, &miss) || miss.Key != scsi.Miscompare || miss.Info != 100 || !miss.HasInfo {
		t.Errorf("miscompare: %v", err)
	}
	if err := s.WriteSame(ctx, 6, 1, nil); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.SyncCache(ctx), s.Ping(ctx, []byte("sanctuary"))); err != nil {
		t.Error(err)
	}
	want := append(append(bytes.Clone(data), data...), zero...)
	if got := c.mem.Bytes(block.Range{Start: 4, Count: 3}); !bytes.Equal(got, want) {
		t.Error("the medium holds something else")
	}
}

// TestManyCommandsAtOnce has more commands on their way than the target's window.
func TestManyCommandsAtOnce(t *testing.T) {
	c := newCluster(t, 1)
	s := ready(t, c, nil)
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			data, got := pattern(4096, byte(i)), make([]byte, 4096)
			lba := uint64(i * 8)
			if err := s.Write(t.Context(), lba, 8, data); err != nil {
				t.Error(err)
				return
			}
			if err := s.Read(t.Context(), lba, 8, got); err != nil || !bytes.Equal(got, data) {
				t.Errorf("block %d: %v", lba, err)
			}
		})
	}
	wg.Wait()
}

func TestCancelledCommandIsAbortedAndTheSessionLives(t *testing.T) {
	c := newCluster(t, 1)
	s := ready(t, c, nil)
	entered := make(chan struct{}, 1)
	c.mem.Before(func(ctx context.Context, op string, _ block.Range) error {
		if op != "Read" {
			return nil
		}
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if err := s.Read(ctx, 0, 1, make([]byte, 512)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := s.Write(t.Context(), 0, 1, pattern(512, 1)); err != nil {
		t.Errorf("after the abort: %v", err)
	}
}

func TestSilentTargetEndsTheSession(t *testing.T) {
	c := newCluster(t, 1)
	proxy := newProxy(t, c.nodes[0].address)
	s := ready(t, c, func(cfg *initiator.Config) {
		cfg.Address = proxy.address
		cfg.KeepAlive, cfg.SilentTimeout = 20*time.Millisecond, 100*time.Millisecond
	})
	start := time.Now()
	proxy.freeze()
	err := s.Read(t.Context(), 0, 1, make([]byte, 512))
	if !errors.Is(err, initiator.ErrSession) || !errors.Is(err, initiator.ErrSilent) {
		t.Errorf("%v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("noticed after %v", took)
	}
}

// TestBadTargetsDoNoHarm feeds answers no target should give.
func TestBadTargetsDoNoHarm(t *testing.T) {
	login := make([]byte, 48)
	login[0], login[1] = 0x23, 0x87 // final, operational to full feature
	login[19] = 1                   // the tag of the login request
	login[35] = 32                  // MaxCmdSN
	pdu := func(op, flags byte, set map[int]byte) []byte {
		b := make([]byte, 48)
		b[0], b[1] = op, flags
		for i, v := range set {
			b[i] = v
		}
		return b
	}
	for name, answer := range map[string][]byte{
		"no such opcode":           pdu(0x3E, 0x80, nil),
		"a request":                pdu(0x01, 0x80, nil),
		"data for nobody":          pdu(0x25, 0x80, map[int]byte{19: 9}),
		"data beyond the buffer":   append(pdu(0x25, 0x81, map[int]byte{6: 4, 19: 2}), make([]byte, 1024)...),
		"data with a gap":          append(pdu(0x25, 0x81, map[int]byte{7: 4, 19: 2, 43: 8}), 1, 2, 3, 4),
		"response for nobody":      pdu(0x21, 0x80, map[int]byte{19: 9}),
		"sense beyond its segment": append(pdu(0x21, 0x80, map[int]byte{3: 2, 7: 4, 19: 2}), 0xFF, 0xFF, 0, 0),
		"r2t for a read":           pdu(0x31, 0x80, map[int]byte{19: 2, 46: 2}),
		"reject":                   pdu(0x3F, 0x80, map[int]byte{2: 4}),
		"segment too long":         pdu(0x21, 0x80, map[int]byte{5: 0xFF, 19: 2}),
		"cut off":                  pdu(0x21, 0x80, nil)[:20],
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			var wg sync.WaitGroup
			wg.Go(func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				buf := make([]byte, 4096)
				for _, reply := range [][]byte{login, answer} {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					if _, err := conn.Write(reply); err != nil {
						return
					}
				}
				if name != "cut off" {
					_, _ = conn.Read(buf) // until the initiator gives up
				}
			})
			s, err := initiator.Dial(t.Context(), initiator.Config{Address: ln.Addr().String(), Target: targetName})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Read(t.Context(), 0, 1, make([]byte, 512)); !errors.Is(err, initiator.ErrSession) {
				t.Errorf("%v", err)
			}
			s.Close()
			wg.Wait()
		})
	}
}
