package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/target/reserve"
	"sanctuary/target/scsi"
	"sanctuary/target/scsi/scsitest"
)

// nodePair is one LUN on two nodes, each with a target that holds it.
type nodePair struct {
	t       *testing.T
	cluster *scsitest.Cluster
	units   [2]*scsi.Unit
	targets [2]*scsi.Target
	links   [2]*scsitest.Link
	buffers buffers
	tags    atomic.Uint32
	delay   atomic.Int64 // what an operation of the owner takes, in nanoseconds
}

const nodeSectors = 16 << 11 // 16 MiB

func newNodes(t *testing.T, other scsi.AccessState, change func(int, *scsi.UnitConfig)) *nodePair {
	t.Helper()
	return newNodesOf(t, nodeSectors, other, change)
}

// newNodesOf makes a LUN of that many sectors: small ones are cheap to make again and again.
func newNodesOf(t *testing.T, sectors block.Count, other scsi.AccessState, change func(int, *scsi.UnitConfig)) *nodePair {
	t.Helper()
	return newNodesWith(t, block.Geometry{Capacity: sectors, LogicalBlockBytes: 512}, other, change)
}

func newNodesWith(t *testing.T, geometry block.Geometry, other scsi.AccessState, change func(int, *scsi.UnitConfig)) *nodePair {
	t.Helper()
	p := &nodePair{t: t, cluster: scsitest.NewCluster(geometry, 2, other)}
	p.cluster.Slow = func() time.Duration { return time.Duration(p.delay.Load()) }
	for i := range p.units {
		p.links[i] = &scsitest.Link{Cluster: p.cluster, From: i, Serve: func(n int) *scsi.Unit { return p.units[n] }}
		node := p.cluster.Node(i)
		cfg := scsi.UnitConfig{
			Identity: testIdentity, Backend: node, Access: node.Access, AccessChanged: node.AccessChanged, AskOwner: p.links[i].Ask,
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
		if change != nil {
			change(i, &cfg)
		}
		unit, err := scsi.NewUnit(cfg)
		if err != nil {
			t.Fatal(err)
		}
		p.units[i] = unit
		p.targets[i] = scsi.NewTarget(scsi.TargetConfig{Name: "iqn.2024-01.test:lun"})
		if err := p.targets[i].Add(0, unit); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// attach logs a host in to a node.
func (p *nodePair) attach(node int, name string) *scsi.Nexus {
	n := &scsi.Nexus{Initiator: "iqn.2024-01.test:" + name, ISID: [6]byte{0x80, byte(node)}, Port: uint16(node + 1)}
	p.targets[node].Attach(n)
	if err := p.targets[node].Reinstate(context.Background(), n); err != nil {
		p.t.Errorf("login: %v", err)
	}
	p.want(p.run(node, n, tur, 0, nil), "06/29/00")
	return n
}

func (p *nodePair) task(node int, n *scsi.Nexus, c [16]byte, in int, out []byte) *scsi.Task {
	task := &scsi.Task{
		Nexus: n, Tag: p.tags.Add(1), CDB: c, ExpectedIn: in, ExpectedOut: len(out), DataOut: out, Buffers: &p.buffers, Accepted: time.Now(),
	}
	p.targets[node].Accept(task)
	return task
}

func (p *nodePair) execute(ctx context.Context, node int, task *scsi.Task) result {
	p.targets[node].Execute(ctx, task)
	r := result{Task: *task, data: bytes.Clone(task.DataIn)}
	if task.DataIn != nil {
		p.buffers.Put(task.DataIn)
	}
	return r
}

func (p *nodePair) run(node int, n *scsi.Nexus, c [16]byte, in int, out []byte) result {
	return p.execute(context.Background(), node, p.task(node, n, c, in, out))
}

func (p *nodePair) want(r result, want string) {
	p.t.Helper()
	if got := outcome(&r.Task); got != want {
		p.t.Errorf("CDB % x: %s, want %s", r.CDB, got, want)
	}
}

// prout is a PERSISTENT RESERVE OUT command with its parameter list.
func prout(action reserve.Action, kind reserve.Type, key, service uint64) ([16]byte, []byte) {
	list := make([]byte, 24)
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], service)
	return cdb(0x5F, byte(action), byte(kind), 0, 0, 0, 0, 0, 24), list
}

func (p *nodePair) prout(node int, n *scsi.Nexus, action reserve.Action, kind reserve.Type, key, service uint64) result {
	c, list := prout(action, kind, key, service)
	return p.run(node, n, c, 0, list)
}

// write10 and read10 move blocks blocks from lba on.
func write10(lba uint32, blocks uint16) [16]byte {
	c := cdb(0x2A)
	binary.BigEndian.PutUint32(c[2:], lba)
	binary.BigEndian.PutUint16(c[7:], blocks)
	return c
}

func read10(lba uint32, blocks uint16) [16]byte { c := write10(lba, blocks); c[0] = 0x28; return c }

func TestOwnerCarriesOutDataCommandsForOtherNodes(t *testing.T) {
	p := newNodes(t, scsi.ActiveNonOptimized, nil)
	n := p.attach(1, "host")
	p.want(p.run(1, n, tur, 0, nil), "good")
	for _, blocks := range []int{1, 2048, 2049, 8000} { // up to four pieces
		data := pattern(blocks*512, byte(blocks))
		p.want(p.run(1, n, write10(7, uint16(blocks)), 0, data), "good")
		if !bytes.Equal(p.cluster.Bytes(block.Range{Start: 7, Count: block.Count(blocks)}), data) {
			t.Fatalf("%d blocks did not arrive as sent", blocks)
		}
		r := p.run(1, n, read10(7, uint16(blocks)), len(data), nil)
		if p.want(r, "good"); !bytes.Equal(r.data, data) || r.TransferIn != int64(len(data)) {
			t.Fatalf("%d blocks were not read as written", blocks)
		}
		if r := p.run(1, n, read10(7, uint16(blocks)), len(data)-100, nil); !bytes.Equal(r.data, data[:len(data)-100]) || r.TransferIn != int64(len(data)) {
			t.Fatalf("%d blocks, read short: %d bytes, residual from %d", blocks, len(r.data), r.TransferIn)
		}
		verify := write10(7, uint16(blocks))
		verify[0], verify[1] = 0x2F, 0x02
		p.want(p.run(1, n, verify, 0, data), "good")
		data[len(data)-3] ^= 1
		r = p.run(1, n, verify, 0, data)
		if p.want(r, "0E/1D/00"); binary.BigEndian.Uint32(r.Sense[3:]) != uint32(len(data)-3) {
			t.Errorf("%d blocks: differ at % x, want %d", blocks, r.Sense[3:7], len(data)-3)
		}
	}
	p.want(p.run(1, n, write10(nodeSectors-1, 2), 0, make([]byte, 1024)), "05/21/00")
	p.want(p.run(1, n, write10(nodeSectors-1, 8000), 0, make([]byte, 8000*512)), "05/21/00")
	caw := cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	p.want(p.run(1, n, caw, 0, append(make([]byte, 512), pattern(512, 1)...)), "good")
	p.want(p.run(1, n, caw, 0, append(make([]byte, 512), pattern(512, 1)...)), "0E/1D/00")
	if p.buffers.lent.Load() != 0 {
		t.Error("buffers were never given back")
	}
}

// COMPARE AND WRITE takes all that its field can hold, also with blocks of 4096 bytes, and through another node than the owner.
func TestLongestCompareAndWrite(t *testing.T) {
	for _, size := range []int{512, 4096} {
		p := newNodesWith(t, block.Geometry{Capacity: nodeSectors, LogicalBlockBytes: size}, scsi.ActiveNonOptimized, nil)
		caw := cdb(0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255)
		have := make([]byte, 255*size)
		for node, name := range []string{"a", "b"} {
			n := p.attach(node, name)
			p.run(node, n, tur, 0, nil)
			if limits := p.run(node, n, cdb(0x12, 1, 0xB0, 0, 0xFF), 255, nil).data; limits[5] != 255 {
				t.Errorf("blocks of %d: at most %d", size, limits[5])
			}
			next := pattern(len(have), byte(1+node))
			p.want(p.run(node, n, caw, 0, append(bytes.Clone(have), next...)), "good")
			wrong := bytes.Clone(next)
			wrong[len(wrong)-1] ^= 1
			r := p.run(node, n, caw, 0, append(wrong, have...))
			if p.want(r, "0E/1D/00"); binary.BigEndian.Uint32(r.Sense[3:]) != uint32(len(wrong)-1) {
				t.Errorf("blocks of %d: differ at % x", size, r.Sense[3:7])
			}
			have = next
		}
	}
}

func TestStandbyMovesNoDataButAnswersForReservations(t *testing.T) {
	p := newNodes(t, scsi.Standby, nil)
	a, b := p.attach(0, "a"), p.attach(1, "b")
	p.want(p.run(1, b, read10(0, 1), 512, nil), "02/04/0B")
	p.want(p.run(1, b, tur, 0, nil), "02/04/0B")
	p.want(p.prout(1, b, reserve.Register, 0, 0, 7), "good")
	p.want(p.prout(1, b, reserve.ReserveAction, reserve.ExclusiveAccess, 7, 0), "good")
	p.want(p.run(0, a, read10(0, 1), 512, nil), "status 18")
	for action := range 4 {
		in := cdb(0x5E, byte(action), 0, 0, 0, 0, 0, 2, 0)
		x, y := p.run(0, a, in, 512, nil), p.run(1, b, in, 512, nil)
		p.want(x, "good")
		if p.want(y, "good"); !bytes.Equal(x.data, y.data) || len(x.data) < 8 {
			t.Errorf("action %d: % x and % x", action, x.data, y.data)
		}
	}
	// The new owner knows of it all.
	p.cluster.Move(1)
	p.want(p.run(1, b, tur, 0, nil), "06/2A/06")
	p.want(p.run(1, b, read10(0, 1), 512, nil), "good")
	p.want(p.run(0, a, tur, 0, nil), "06/2A/06")
	p.want(p.prout(0, a, reserve.Register, 0, 0, 9), "good")
	p.want(p.prout(0, a, reserve.Preempt, reserve.WriteExclusive, 9, 7), "good")
	p.want(p.run(1, b, tur, 0, nil), "06/2A/05")
	p.want(p.run(1, b, write10(0, 1), 0, make([]byte, 512)), "status 18")
	if got := b.Stats(); got.Conflicts != 1 || got.Attentions != 3 {
		t.Errorf("counted %+v", got)
	}
	// An operator clears up.
	if n, err := p.units[0].PurgeReservations(t.Context(), scsi.Purge{What: scsi.PurgeKey, Key: 9}); n != 1 || err != nil {
		t.Errorf("purged %d: %v", n, err)
	}
	p.want(p.run(0, a, tur, 0, nil), "06/2A/05")
	p.want(p.run(1, b, write10(0, 1), 0, make([]byte, 512)), "good")
	if r, err := p.units[0].Reservations(); err != nil || !r.Table.Empty() {
		t.Error("not empty", err)
	}
}

// A command that comes late, from wherever it was delayed, must not land behind newer ones.
func TestLateDuplicateDoesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		stray time.Duration
		lands bool
	}{
		"at once, after it was given up": {10 * time.Millisecond, false},
		"later":                          {900 * time.Millisecond, false},
		"much later":                     {3 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNodes(t, scsi.ActiveNonOptimized, nil)
				a, b := p.attach(0, "host"), p.attach(1, "host")
				p.links[1].Fault = func() scsitest.Fault { return scsitest.Fault{} }
				old, fresh := pattern(512, 1), pattern(512, 2)
				p.want(p.run(1, b, write10(0, 1), 0, old), "good")
				first := true
				p.links[1].Fault = func() scsitest.Fault {
					if first {
						first = false
						return scsitest.Fault{Stray: c.stray}
					}
					return scsitest.Fault{}
				}
				p.want(p.run(1, b, write10(0, 1), 0, old), "busy")
				p.want(p.run(0, a, write10(0, 1), 0, fresh), "good")
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if !bytes.Equal(p.cluster.Bytes(block.Range{Count: 1}), fresh) {
					t.Error("the late command landed")
				}
			})
		})
	}
}

// TestAgeIsMeasuredByTheOwner replays a command that nobody has cancelled.
func TestAgeIsMeasuredByTheOwner(t *testing.T) {
	for _, c := range []struct {
		wait time.Duration
		want bool
	}{{500 * time.Millisecond, true}, {1100 * time.Millisecond, false}} {
		synctest.Test(t, func(t *testing.T) {
			var write []byte
			p := newNodes(t, scsi.ActiveNonOptimized, func(i int, cfg *scsi.UnitConfig) {
				if i == 1 {
					ask := cfg.AskOwner
					cfg.AskOwner = func(ctx context.Context, request []byte) ([]byte, error) {
						if len(request) > 512 {
							write = bytes.Clone(request)
						}
						return ask(ctx, request)
					}
				}
			})
			b := p.attach(1, "host")
			p.want(p.run(1, b, write10(0, 1), 0, pattern(512, 1)), "good")
			p.want(p.run(1, b, write10(0, 1), 0, pattern(512, 2)), "good")
			replay := bytes.Clone(write)
			p.want(p.run(1, b, write10(0, 1), 0, make([]byte, 512)), "good")
			time.Sleep(c.wait)
			if _, err := p.units[0].ServePeer(t.Context(), "b", replay); err != nil {
				t.Fatal(err)
			}
			if landed := bytes.Equal(p.cluster.Bytes(block.Range{Count: 1}), pattern(512, 2)); landed != c.want {
				t.Errorf("after %v: landed %v", c.wait, landed)
			}
		})
	}
}

func TestOwnerThatIsNoneRefuses(t *testing.T) {
	p := newNodes(t, scsi.ActiveNonOptimized, nil)
	if _, err := p.units[1].ServePeer(t.Context(), "a", []byte{1, 1}); !errors.Is(err, block.ErrUnavailable) {
		t.Error("a request that cannot be read:", err)
	}
	var request []byte
	q := newNodes(t, scsi.ActiveNonOptimized, func(_ int, cfg *scsi.UnitConfig) {
		cfg.AskOwner = func(_ context.Context, r []byte) ([]byte, error) {
			request = bytes.Clone(r)
			return nil, block.ErrUnavailable
		}
		cfg.HoldFor = time.Millisecond
	})
	n := &scsi.Nexus{Initiator: "iqn.2024-01.test:h", Port: 2}
	q.targets[1].Attach(n)
	q.run(1, n, tur, 0, nil)
	if _, err := p.units[1].ServePeer(t.Context(), "a", request); !errors.Is(err, block.ErrNotOwner) {
		t.Error("a node that does not own the LUN:", err)
	}
	if scsi.AnswerBytes(request) < 50 || scsi.AnswerBytes(nil) != 0 {
		t.Error("AnswerBytes", scsi.AnswerBytes(request))
	}
}

func TestBrokenLinkIsBusyNeverGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		b := p.attach(1, "host")
		p.want(p.run(1, b, write10(0, 1), 0, make([]byte, 512)), "good")
		p.links[1].Fault = func() scsitest.Fault { return scsitest.Fault{Stray: time.Hour} }
		start := time.Now()
		p.want(p.run(1, b, write10(0, 1), 0, pattern(512, 1)), "busy")
		if took := time.Since(start); took < 4*time.Second || took > 8*time.Second {
			t.Errorf("it was tried for %v to find out", took)
		}
		p.want(p.run(1, b, tur, 0, nil), "02/04/0A")
		time.Sleep(2 * time.Hour)
	})
}

// A change whose answer is lost is made once, and the initiator is told GOOD.
func TestChangeIsMadeOnceThoughTheAnswerIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.Standby, nil)
		a, b := p.attach(0, "a"), p.attach(1, "b")
		asks := 0
		p.links[1].Fault = func() scsitest.Fault { asks++; return scsitest.Fault{LoseAnswer: asks == 1} }
		p.want(p.prout(1, b, reserve.Register, 0, 0, 7), "good")
		if asks < 2 {
			t.Fatalf("asked %d times: the answer was not lost", asks)
		}
		// The owner's own, whose log does not answer.
		forget := true
		p.cluster.Forget = func() bool { was := forget; forget = false; return was }
		p.want(p.prout(0, a, reserve.Register, 0, 0, 9), "good")
		r := p.run(0, a, cdb(0x5E, 0, 0, 0, 0, 0, 0, 0, 64), 64, nil)
		if want := []byte{0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9}; !bytes.Equal(r.data, want) {
			t.Errorf("keys % x", r.data)
		}
	})
}

// takes sets how long operations of the owner take that begin from now on.
func (p *nodePair) takes(d time.Duration) { p.delay.Store(int64(d)) }

func TestAbortOfACommandThatAnotherNodeCarriesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		b := p.attach(1, "host")
		p.want(p.run(1, b, tur, 0, nil), "good")
		p.takes(time.Second)
		var broken atomic.Bool
		p.links[1].Fault = func() scsitest.Fault {
			if broken.Load() {
				return scsitest.Fault{Stray: time.Hour}
			}
			return scsitest.Fault{}
		}
		task := p.task(1, b, write10(0, 1), 0, pattern(512, 1))
		done := make(chan result, 1)
		go func() { done <- p.execute(context.Background(), 1, task) }()
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		if got := p.targets[1].Manage(scsi.AbortTask, b, 0, task.Tag)(t.Context()); got != scsi.FunctionComplete {
			t.Errorf("answered %d", got)
		}
		if took := time.Since(start); took < 800*time.Millisecond {
			t.Errorf("answered after %v, while the owner was at it", took)
		}
		at := bytes.Clone(p.cluster.Bytes(block.Range{Count: 1}))
		p.want(<-done, "aborted")
		time.Sleep(10 * time.Second)
		if !bytes.Equal(at, p.cluster.Bytes(block.Range{Count: 1})) {
			t.Error("it landed after FUNCTION COMPLETE")
		}
		// With the link broken, nobody can say that it has ended.
		task = p.task(1, b, write10(0, 1), 0, pattern(512, 2))
		go func() { done <- p.execute(context.Background(), 1, task) }()
		time.Sleep(100 * time.Millisecond)
		broken.Store(true)
		if got := p.targets[1].Manage(scsi.AbortTask, b, 0, task.Tag)(t.Context()); got != scsi.FunctionRejected {
			t.Errorf("answered %d", got)
		}
		p.want(<-done, "aborted")
		time.Sleep(2 * time.Hour)
	})
}

// TestFunctionsForTheWholeUnit has a write of each of three hosts in flight, two through the other node.
func TestFunctionsForTheWholeUnit(t *testing.T) {
	for name, c := range map[string]struct {
		node  int // the function's
		do    func(p *nodePair, node int, n *scsi.Nexus) bool
		told  [4]string // to the one that asked, and to the hosts
		spare bool      // the first host's write is let end
	}{
		"reset here":        {0, manage(scsi.LogicalUnitReset), [4]string{"06/29/03", "06/29/03", "06/29/03", "06/29/03"}, false},
		"reset there":       {1, manage(scsi.LogicalUnitReset), [4]string{"06/29/03", "06/29/03", "06/29/03", "06/29/03"}, false},
		"target reset":      {1, manage(scsi.TargetWarmReset), [4]string{"06/29/02", "06/29/02", "06/29/02", "06/29/02"}, false},
		"clear here":        {0, manage(scsi.ClearTaskSet), [4]string{"good", "06/2F/00", "06/2F/00", "06/2F/00"}, false},
		"clear there":       {1, manage(scsi.ClearTaskSet), [4]string{"good", "06/2F/00", "06/2F/00", "06/2F/00"}, false},
		"preempt and abort": {0, preemptAndAbort, [4]string{"good", "good", "06/2A/05", "06/2A/05"}, true},
		"preempt there":     {1, preemptAndAbort, [4]string{"good", "good", "06/2A/05", "06/2A/05"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNodes(t, scsi.ActiveNonOptimized, nil)
				asker := p.attach(c.node, "asker")
				hosts := []*scsi.Nexus{p.attach(0, "h0"), p.attach(0, "h1"), p.attach(1, "h2")}
				nodes := []int{0, 0, 1}
				p.want(p.prout(c.node, asker, reserve.Register, 0, 0, 1), "good")
				for i, h := range hosts {
					p.want(p.prout(nodes[i], h, reserve.Register, 0, 0, uint64(min(i, 1)+2)), "good")
				}
				p.want(p.run(1, hosts[2], tur, 0, nil), "good")
				p.takes(3 * time.Second)
				results := make([]chan result, 3)
				for i, h := range hosts {
					results[i] = make(chan result, 1)
					task := p.task(nodes[i], h, write10(uint32(i), 1), 0, pattern(512, byte(i+1)))
					go func() { results[i] <- p.execute(context.Background(), nodes[i], task) }()
				}
				time.Sleep(100 * time.Millisecond)
				p.takes(10 * time.Millisecond)
				if !c.do(p, c.node, asker) {
					t.Error("refused")
				}
				p.takes(0)
				ended := block.Range{Count: 3}
				if c.spare { // the first host's may land when it likes
					ended = block.Range{Start: 1, Count: 2}
				}
				at := p.cluster.Bytes(ended)
				for i := range hosts {
					want := "aborted"
					if c.spare && i == 0 {
						want = "good"
					}
					p.want(<-results[i], want)
				}
				time.Sleep(5 * time.Second)
				if !bytes.Equal(at, p.cluster.Bytes(ended)) {
					t.Error("something landed after the answer")
				}
				p.want(p.run(c.node, asker, tur, 0, nil), c.told[0])
				for i, h := range hosts {
					p.want(p.run(nodes[i], h, tur, 0, nil), c.told[i+1])
					p.want(p.run(nodes[i], h, tur, 0, nil), "good")
				}
			})
		})
	}
}

func manage(f scsi.Function) func(*nodePair, int, *scsi.Nexus) bool {
	return func(p *nodePair, node int, n *scsi.Nexus) bool {
		return p.targets[node].Manage(f, n, 0, 0)(context.Background()) == scsi.FunctionComplete
	}
}

func preemptAndAbort(p *nodePair, node int, n *scsi.Nexus) bool {
	r := p.prout(node, n, reserve.PreemptAndAbort, 0, 1, 3)
	return r.Status == scsi.StatusGood
}

func TestReserveEndsWithItsSession(t *testing.T) {
	p := newNodes(t, scsi.ActiveNonOptimized, nil)
	reserve6 := cdb(0x16)
	for node := range 2 {
		for name, end := range map[string]func(*scsi.Nexus){
			"logout": func(n *scsi.Nexus) { p.targets[node].Detach(n) },
			"reset": func(n *scsi.Nexus) {
				if !manage(scsi.LogicalUnitReset)(p, 1-node, n) {
					t.Error("reset refused")
				}
			},
			"release": func(n *scsi.Nexus) { p.want(p.run(node, n, cdb(0x17), 0, nil), "good") },
		} {
			holder, other := p.attach(node, "holder"), p.attach(1-node, "other")
			p.want(p.run(node, holder, reserve6, 0, nil), "good")
			p.want(p.run(1-node, other, reserve6, 0, nil), "status 18")
			p.want(p.run(1-node, other, tur, 0, nil), "status 18")
			p.want(p.run(1-node, other, cdb(0x17), 0, nil), "good") // does nothing
			p.want(p.run(1-node, other, read10(0, 1), 512, nil), "status 18")
			end(holder)
			if name == "reset" {
				p.want(p.run(1-node, other, tur, 0, nil), "06/29/03")
			}
			p.want(p.run(1-node, other, read10(0, 1), 512, nil), "good")
			p.targets[node].Detach(holder)
			p.targets[1-node].Detach(other)
		}
	}
	// A session that ended with the process, not in an orderly way, on the node that owns the LUN.
	holder := p.attach(0, "holder")
	p.want(p.run(0, holder, reserve6, 0, nil), "good")
	again := newNodes(t, scsi.ActiveNonOptimized, func(i int, cfg *scsi.UnitConfig) {
		cfg.Backend, cfg.Access = p.cluster.Node(i), p.cluster.Node(i).Access
	})
	other := &scsi.Nexus{Initiator: "iqn.2024-01.test:other", Port: 1}
	again.targets[0].Attach(other)
	again.run(0, other, tur, 0, nil)
	again.want(again.run(0, other, read10(0, 1), 512, nil), "good")
}

func TestUnitInSeveralTargets(t *testing.T) {
	p := newNodes(t, scsi.Standby, nil)
	second := scsi.NewTarget(scsi.TargetConfig{Name: "iqn.2024-01.test:host"})
	if err := second.Add(5, p.units[0]); err != nil {
		t.Fatal(err)
	}
	n := &scsi.Nexus{Initiator: "iqn.2024-01.test:other", Port: 1}
	second.Attach(n)
	run := func(c [16]byte, in int) result {
		task := &scsi.Task{Nexus: n, LUN: scsi.EncodeLUN(5), CDB: c, Buffers: &p.buffers, ExpectedIn: in}
		second.Accept(task)
		second.Execute(t.Context(), task)
		r := result{Task: *task}
		if task.DataIn != nil {
			p.buffers.Put(task.DataIn)
		}
		return r
	}
	p.want(run(tur, 0), "06/29/00")
	first := p.attach(0, "first")
	p.want(p.prout(0, first, reserve.Register, 0, 0, 1), "good")
	p.want(p.prout(0, first, reserve.ReserveAction, reserve.ExclusiveAccess, 1, 0), "good")
	p.want(run(read10(0, 1), 512), "status 18")
	if !manage(scsi.LogicalUnitReset)(p, 0, first) {
		t.Error("refused")
	}
	p.want(run(tur, 0), "06/29/03")
	p.want(run(read10(0, 1), 512), "status 18") // a reset leaves persistent reservations
	if err := second.Remove(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	p.want(run(tur, 0), "05/25/00")
	p.want(p.run(0, first, tur, 0, nil), "06/29/03")
	p.want(p.run(0, first, read10(0, 1), 512, nil), "good")
}

func TestUnreadableStateIsRefusedNotEmpty(t *testing.T) {
	log := &bytes.Buffer{}
	g := newRig(t, 512, func(c *scsi.UnitConfig) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	for _, blob := range [][]byte{{99}, {1, 2, 3}, bytes.Repeat([]byte{1}, 100)} {
		st := g.mem.State()
		if _, err := g.mem.SwapState(t.Context(), block.Fence{}, st.Version, blob); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		g.want(g.run(g.nexus, read1, 512, nil), "04/44/00")
		g.want(g.run(g.nexus, write1, 0, make([]byte, 512)), "04/44/00")
		g.want(g.run(g.nexus, cdb(0x5E, 0, 0, 0, 0, 0, 0, 0, 64), 64, nil), "04/44/00")
		g.want(g.run(g.nexus, cdb(0x12, 0, 0, 0, 96), 96, nil), "good")
		if n := bytes.Count(log.Bytes(), []byte("level=ERROR")); n != 1 {
			t.Errorf("told an operator %d times: %s", n, log)
		}
		if _, err := g.unit.Reservations(); err == nil {
			t.Error("reservations of an unreadable state")
		}
	}
	// It stays so until somebody who can read it, writes it.
	if r := g.target.Manage(scsi.LogicalUnitReset, g.nexus, 0, 0)(t.Context()); r != scsi.FunctionRejected {
		t.Errorf("reset: %d", r)
	}
}

// A nexus that has missed more events than are remembered is told so.
func TestForgottenEventsBecomeAReset(t *testing.T) {
	g := newRig(t, 512, nil)
	idle := g.attach(2)
	g.clear(idle)
	for range 3000 {
		if r := g.target.Manage(scsi.LogicalUnitReset, g.nexus, 0, 0)(t.Context()); r != scsi.FunctionComplete {
			t.Fatal(r)
		}
	}
	if st := g.mem.State(); len(st.Blob) > block.MaxStateBytes/2 {
		t.Errorf("state of %d bytes", len(st.Blob))
	}
	g.want(g.run(idle, tur, 0, nil), "06/29/00")
	g.want(g.run(idle, tur, 0, nil), "good")
}

func TestSetTargetPortGroups(t *testing.T) {
	var refuse error
	var asked []uint16
	var p *nodePair
	p = newNodes(t, scsi.ActiveNonOptimized, func(_ int, c *scsi.UnitConfig) {
		c.SetPreferred = func(_ context.Context, group uint16) error {
			if refuse == nil {
				asked = append(asked, group)
				p.cluster.Move(int(group) - 1)
			}
			return refuse
		}
	})
	a, b := p.attach(0, "a"), p.attach(1, "b")
	r := p.run(0, a, cdb(0x12, 0, 0, 0, 96), 96, nil)
	if r.data[5]&0x30 != 0x30 {
		t.Errorf("TPGS %02x", r.data[5])
	}
	a.SetSinglePath(true)
	if r := p.run(0, a, cdb(0x12, 0, 0, 0, 96), 96, nil); r.data[5]&0x30 != 0 {
		t.Errorf("TPGS %02x for one that is sent on to the owner", r.data[5])
	}
	a.SetSinglePath(false)
	set := func(node int, n *scsi.Nexus, descriptors ...byte) result {
		list := append(make([]byte, 4), descriptors...)
		return p.run(node, n, cdb(0xA4, 0x0A, 0, 0, 0, 0, 0, 0, 0, byte(len(list))), 0, list)
	}
	report := func(node int, n *scsi.Nexus) []byte {
		r := p.run(node, n, cdb(0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 255), 255, nil)
		p.want(r, "good")
		return r.data
	}
	if got := report(1, b); got[4] != 0x00 || got[5] != 0x8F || got[9] != 0x02 || got[16] != 0x01 {
		t.Errorf("report % x", got)
	}
	for _, bad := range [][]byte{
		{0, 0, 0, 9},             // no such group
		{3, 0, 0, 2},             // unavailable
		{0, 0, 0, 1, 0, 0, 0, 2}, // two owners
		{0, 0, 0, 2, 2, 0, 0, 2}, // twice the same
		{2, 0, 0, 1},             // who then?
		{2, 0, 0, 2},             // what it is not
	} {
		p.want(set(1, b, bad...), "05/26/00")
	}
	p.want(set(1, b, 0, 0, 0), "05/24/00")
	p.want(p.run(1, b, cdb(0xA4, 0x0A), 0, nil), "good")
	p.want(set(1, b, 0, 0, 0, 1), "good") // as it is
	refuse = errors.New("it has just moved")
	p.want(set(1, b, 0, 0, 0, 2), "04/67/0A")
	refuse = nil
	if len(asked) > 0 {
		t.Errorf("moved to %v", asked)
	}
	p.want(set(1, b, 0, 0, 0, 2, 1, 0, 0, 1), "good")
	if fmt.Sprint(asked) != "[2]" {
		t.Errorf("moved to %v", asked)
	}
	p.want(p.run(1, b, tur, 0, nil), "good") // it knows
	p.want(p.run(0, a, tur, 0, nil), "06/2A/06")
	if got := report(1, b); got[9] != 0x01 || got[12+4] != 0x00 {
		t.Errorf("report % x", got)
	}
	p.cluster.Move(0)
	p.want(p.run(1, b, tur, 0, nil), "06/2A/06")
	if got := report(1, b); got[9] != 0x02 {
		t.Errorf("report % x", got)
	}
}

// What was let in before a reservation that shuts it out has ended when the reservation is answered.
func TestReservationWaitsForWhatItShutsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		a, b := p.attach(0, "a"), p.attach(1, "b")
		p.want(p.prout(0, a, reserve.Register, 0, 0, 1), "good")
		p.want(p.run(1, b, tur, 0, nil), "good")
		p.takes(time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { p.want(p.run(1, b, write10(0, 1), 0, pattern(512, 1)), "good") })
		time.Sleep(100 * time.Millisecond)
		p.takes(0)
		p.want(p.prout(0, a, reserve.ReserveAction, reserve.WriteExclusive, 1, 0), "good")
		if !bytes.Equal(p.cluster.Bytes(block.Range{Count: 1}), pattern(512, 1)) {
			t.Error("answered while a write that is now forbidden was in flight")
		}
		wg.Wait()
		p.want(p.run(1, b, write10(0, 1), 0, pattern(512, 2)), "status 18")
	})
}

// A node that learns of changes late knows them when it has answered for them, and when it is asked whether it is ready.
func TestNodeThatLagsCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNodes(t, scsi.ActiveNonOptimized, nil)
		p.cluster.Lag = 100 * time.Millisecond
		a, b := p.attach(0, "a"), p.attach(1, "b")
		for _, f := range []func() bool{
			func() bool { return manage(scsi.LogicalUnitReset)(p, 1, b) },
			func() bool { return manage(scsi.LogicalUnitReset)(p, 0, a) },
		} {
			if !f() {
				t.Fatal("refused")
			}
			p.want(p.run(1, b, tur, 0, nil), "06/29/03")
			p.want(p.run(1, b, tur, 0, nil), "good")
			p.want(p.run(0, a, tur, 0, nil), "06/29/03")
		}
		p.want(p.prout(1, b, reserve.Register, 0, 0, 1), "good")
		if r, err := p.units[1].Reservations(); err != nil || len(r.Table.Registrations()) != 1 {
			t.Error("answered before this node knew of it", err)
		}
	})
}
