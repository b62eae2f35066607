package prove

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// clusterHost is a machine of a failover cluster (Windows, Pacemaker): it registers its key on every path to the LUN, and
// lives through the loss of paths. Its methods end the test on answers that such a machine could not live with.
type clusterHost struct {
	cl   *cluster
	lun  api.LUN
	name string
	key  uint64
	isid [6]byte

	mu       sync.Mutex
	sessions map[string]*initiator.Session // by node
	active   string                        // node that answered last
}

const (
	keyOfA = 0xA11CE
	keyOfB = 0xB0B

	prIn, prOut                    = 0x5E, 0x5F
	readKeys, readReservation      = 0x00, 0x01
	reserveAction                  = 0x01
	clearAction                    = 0x03
	preemptAndAbort                = 0x05
	registerAndIgnore              = 0x06
	writeExclusiveRegistrants      = 0x05
	unitAttention, notReady   byte = 0x06, 0x02
)

func newClusterHost(cl *cluster, l api.LUN, name string, key uint64) *clusterHost {
	h := &clusterHost{cl: cl, lun: l, name: name, key: key, isid: initiator.NewISID(), sessions: map[string]*initiator.Session{}, active: alpha}
	cl.t.Cleanup(h.close)
	return h
}

func (h *clusterHost) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		s.Close()
	}
	clear(h.sessions)
}

// session returns the session through a node, logging in if need be. The name of the initiator port stays the same, so that
// its registration is found again.
func (h *clusterHost) session(ctx context.Context, node string) (*initiator.Session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[node]; s != nil && s.Err() == nil {
		return s, nil
	}
	p := h.cl.portal(h.lun, node)
	s, err := initiator.Dial(ctx, initiator.Config{
		Address: p.Address, Target: p.Target, LUN: p.LUN, ISID: h.isid, InitiatorName: "iqn.2024-01.io.sanctuary.prove:" + h.name,
	})
	if err != nil {
		return nil, err
	}
	h.sessions[node] = s
	return s, nil
}

// try sends a command once, through one node. Commands that were aborted get no answer (TAS=0): they are given up after a while.
func (h *clusterHost) try(ctx context.Context, node string, c *initiator.Command) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	s, err := h.session(ctx, node)
	if err != nil {
		return err
	}
	r, err := s.Do(ctx, c)
	if err != nil {
		return err
	}
	return r.Err()
}

// errConflict is RESERVATION CONFLICT.
var errConflict = errors.New("reservation conflict")

// do sends a command until it is answered for good, through node, or through whichever answers if node is empty.
func (h *clusterHost) do(ctx context.Context, node string, c *initiator.Command) error {
	for at := node; ; {
		if node == "" {
			h.mu.Lock()
			at = h.active
			h.mu.Unlock()
		}
		err := h.try(ctx, at, c)
		var status *initiator.StatusError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &status) && status.Status == scsi.StatusReservationConflict:
			return errConflict
		case errors.As(err, &status) && status.Status == scsi.StatusCheckCondition && byte(status.Key) != unitAttention && byte(status.Key) != notReady:
			return err
		}
		if node == "" && (status == nil || status.Code == 0x040B || status.Code == 0x040A) {
			h.mu.Lock()
			if h.active == at { // not if another command has changed it already
				h.active = other(at)
			}
			h.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w, last answer: %w", h.name, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (h *clusterHost) reserve(ctx context.Context, node string, action byte, key, serviceKey uint64) error {
	out := make([]byte, 24)
	binary.BigEndian.PutUint64(out, key)
	binary.BigEndian.PutUint64(out[8:], serviceKey)
	c := &initiator.Command{Out: out}
	c.CDB = [16]byte{prOut, action, writeExclusiveRegistrants, 8: 24}
	return h.do(ctx, node, c)
}

// register registers the host's key on every path, as multipath software does.
func (h *clusterHost) register(ctx context.Context) {
	h.cl.t.Helper()
	for _, node := range []string{alpha, beta} {
		if err := h.reserve(ctx, node, registerAndIgnore, 0, h.key); err != nil {
			h.cl.t.Fatalf("%s registers through %s: %v", h.name, node, err)
		}
	}
}

// keys returns the registered keys, sorted, and the key of the holder with the reservation's type, as a node tells them.
func (h *clusterHost) keys(ctx context.Context, node string) (keys []uint64, holder uint64, kind byte) {
	h.cl.t.Helper()
	ask := func(action byte) []byte {
		in := make([]byte, 4096)
		c := &initiator.Command{In: in}
		c.CDB = [16]byte{prIn, action, 7: byte(len(in) >> 8), 8: byte(len(in))}
		if err := h.do(ctx, node, c); err != nil {
			h.cl.t.Fatalf("%s asks %s for keys: %v", h.name, node, err)
		}
		return in[8:min(8+int(binary.BigEndian.Uint32(in[4:])), len(in))]
	}
	for list := ask(readKeys); len(list) >= 8; list = list[8:] {
		keys = append(keys, binary.BigEndian.Uint64(list))
	}
	slices.Sort(keys)
	if r := ask(readReservation); len(r) >= 16 {
		holder, kind = binary.BigEndian.Uint64(r), r[13]&0x0F
	}
	return keys, holder, kind
}

func (h *clusterHost) write(ctx context.Context, n int, sequence uint64) error {
	out := make([]byte, block.Size)
	binary.BigEndian.PutUint64(out, sequence)
	c := &initiator.Command{Out: out}
	c.CDB = [16]byte{0x2A, 8: block.SectorsPerBlock}
	binary.BigEndian.PutUint32(c.CDB[2:], uint32(n*block.SectorsPerBlock))
	return h.do(ctx, "", c)
}

func (h *clusterHost) read(ctx context.Context, n int) uint64 {
	h.cl.t.Helper()
	in := make([]byte, block.Size)
	c := &initiator.Command{In: in}
	c.CDB = [16]byte{0x28, 8: block.SectorsPerBlock}
	binary.BigEndian.PutUint32(c.CDB[2:], uint32(n*block.SectorsPerBlock))
	if err := h.do(ctx, "", c); err != nil {
		h.cl.t.Fatalf("%s reads: %v", h.name, err)
	}
	return binary.BigEndian.Uint64(in)
}

// TestProveReservationsSurvive registers two machines on both paths, reserves, and then moves the LUN, kills its owner and
// cuts the power of everything: keys and reservation stay, are the same through every node, and keep strangers out.
func TestProveReservationsSurvive(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 64 << 20})
	l := cl.healthy()
	a, b := newClusterHost(cl, l, "a", keyOfA), newClusterHost(cl, l, "b", keyOfB)
	stranger := newClusterHost(cl, l, "stranger", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	a.register(ctx)
	b.register(ctx)
	if err := a.reserve(ctx, other(l.Owner), reserveAction, keyOfA, 0); err != nil {
		t.Fatal(err)
	}
	want := []uint64{keyOfB, keyOfB, keyOfA, keyOfA}
	check := func(what string) {
		t.Helper()
		for _, node := range []string{alpha, beta} {
			keys, holder, kind := b.keys(ctx, node)
			if !slices.Equal(keys, want) || holder != keyOfA || kind != writeExclusiveRegistrants {
				t.Fatalf("%s: %s tells keys %x, holder %x, type %d; want %x, %x, %d", what, node, keys, holder, kind, want, keyOfA, writeExclusiveRegistrants)
			}
		}
		if err := stranger.write(ctx, 9, 1); !errors.Is(err, errConflict) {
			t.Fatalf("%s: a machine that has not registered writes: %v", what, err)
		}
		for _, h := range []*clusterHost{a, b} {
			if err := h.write(ctx, 1, rng.Uint64()); err != nil {
				t.Fatalf("%s: %s writes: %v", what, h.name, err)
			}
		}
	}
	check("at first")
	for round := range 2 {
		l = cl.healthy()
		cl.move(other(l.Owner))
		check("after a move")

		l = cl.healthy()
		cl.kill(l.Owner)
		cl.start(l.Owner)
		cl.healthyBehind(l.Term)
		check("after the owner was killed")

		cl.kill(shuffled(rng.Perm(len(allNodes)))...)
		for _, node := range orders(allNodes)[rng.IntN(6)] {
			cl.start(node)
		}
		cl.healthy()
		check("after a blackout")
		t.Logf("round %d: the reservation survived a move, the death of its owner and a blackout", round)
	}
}

// TestProvePreemptFences lets one machine write without pause while the other preempts it, as a failover cluster does with a
// member it takes for dead, through either node, and with the owner killed at that moment. Once PREEMPT AND ABORT has been
// answered nothing of the first one may land, and nothing it was promised may be missing.
func TestProvePreemptFences(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "ram", sizeBytes: 64 << 20})
	l := cl.healthy()
	a, b := newClusterHost(cl, l, "a", keyOfA), newClusterHost(cl, l, "b", keyOfB)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	const writers = 4
	var acknowledged [writers]atomic.Uint64
	for round := range 6 {
		l = cl.healthy()
		b.register(ctx)
		if err := b.reserve(ctx, "", clearAction, keyOfB, 0); err != nil { // what the round before has left
			t.Fatal(err)
		}
		b.register(ctx)
		a.register(ctx)
		if err := a.reserve(ctx, "", reserveAction, keyOfA, 0); err != nil {
			t.Fatal(err)
		}
		fenced := make(chan error, writers)
		for w := range writers {
			go func() {
				for {
					next := acknowledged[w].Load() + 1
					if err := a.write(ctx, w, next); err != nil {
						fenced <- err
						return
					}
					acknowledged[w].Store(next)
				}
			}()
		}
		wait(t, time.Duration(200+rng.IntN(300))*time.Millisecond)
		through := []string{l.Owner, other(l.Owner)}[round%2]
		kill := round >= 2 && round%2 == 1
		if kill {
			go func(pause time.Duration) {
				time.Sleep(pause)
				cl.kill(l.Owner)
			}(time.Duration(rng.IntN(20)) * time.Millisecond)
		}
		err := b.reserve(ctx, through, preemptAndAbort, keyOfB, keyOfA)
		if errors.Is(err, errConflict) {
			// Its first answer was lost with the owner, and it had been carried out: a's key is gone.
			if keys, _, _ := b.keys(ctx, ""); slices.Contains(keys, uint64(keyOfA)) {
				t.Fatalf("round %d: preempting is refused although the key %x is registered: %x", round, keyOfA, keys)
			}
		} else if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		var settled [writers]uint64
		for w := range writers {
			settled[w] = b.read(ctx, w)
		}
		for range writers {
			if err := <-fenced; !errors.Is(err, errConflict) {
				t.Fatalf("round %d: a writer that was preempted ends with %v", round, err)
			}
		}
		wait(t, 300*time.Millisecond)
		for w := range writers {
			if now := b.read(ctx, w); now != settled[w] {
				t.Fatalf("round %d: block %d went from %d to %d after its writer had been fenced", round, w, settled[w], now)
			}
			if promised := acknowledged[w].Load(); promised > settled[w] {
				t.Fatalf("round %d: write %d of block %d was acknowledged, and the block holds %d", round, promised, w, settled[w])
			}
			acknowledged[w].Store(settled[w])
		}
		t.Logf("round %d: preempted through %s (owner %s, killed: %v) after %v writes", round, through, l.Owner, kill, settled)
		if kill {
			cl.start(l.Owner)
			cl.healthyBehind(l.Term)
		}
	}
}
