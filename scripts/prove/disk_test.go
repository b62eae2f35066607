package prove

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// TestProveDiskFails pulls the owner's disk under load: the pool's, the journal's or both, so that everything that is asked of it fails
// from one moment on. The process goes on, and so do initiators, with several paths and with one, on the other copy; an alert says what
// has happened. Then the node gets an empty disk and is brought up again by itself.
func TestProveDiskFails(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 128 << 20, power: true})
	single := cl.startSingle()
	w := startLoad(t, cl, cl.healthy(), rng)
	var longest []time.Duration
	for i := range max(3, kills(t)/4) {
		wait(t, time.Duration(200+rng.IntN(800))*time.Millisecond)
		l := cl.healthy()
		single.follow(l.Owner)
		what := [][]string{{"pool"}, {"journal"}, {"pool", "journal"}}[i%3]
		pulled := time.Now()
		cl.disks[l.Owner].Break(what...)
		back, again := w.answered(pulled.Add(time.Millisecond)), single.answered(pulled)
		wait(t, time.Duration(rng.IntN(1500))*time.Millisecond)
		cl.alerted(l.Owner)
		if now := cl.owner(); now.Owner == l.Owner {
			t.Errorf("pull %d: %s still owns the LUN", i, l.Owner)
		}
		select {
		case <-cl.process(l.Owner).done:
			t.Fatalf("pull %d: the process of %s has ended", i, l.Owner)
		default:
		}
		longest = append(longest, w.longest(pulled, w.answered(time.Now())))
		cl.kill(l.Owner)
		d := cl.disks[l.Owner]
		if err := d.unmount(); err != nil {
			t.Fatal(err)
		}
		d.Replace()
		d.mount(t)
		cl.emptyDisk(l.Owner) // "A failed disk" in docs/OPERATING.md: what is left of the old one's goes as well
		cl.start(l.Owner)
		cl.healthyBehind(l.Term)
		t.Logf("pull %d, %v of %s: first I/O after %v, longest %v; with a single path after %v; in sync again after %v", i, what, l.Owner,
			back.Sub(pulled).Round(time.Millisecond), longest[i].Round(time.Millisecond), again.Sub(pulled).Round(time.Millisecond), time.Since(pulled).Round(time.Millisecond))
		w.heat(rng)
	}
	single.finish()
	w.finish(cl)
	stalls(t, "disks pulled", longest, stallLimit(t))
	if quickest := slices.Min(longest); quickest > time.Second {
		t.Errorf("even the shortest wait was %v: the others were not told, and found out by silence", quickest)
	}
}

// alerted waits for an alert about a node's storage.
func (c *cluster) alerted(node string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, "alert about the disk of "+node, func() error {
		s, err := c.api.Status(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(s.Alerts, func(a api.Alert) bool {
			return a.Severity == api.SeverityCritical && strings.Contains(a.What, node) && strings.Contains(a.What, "failed")
		}) {
			return fmt.Errorf("alerts are %+v", s.Alerts)
		}
		return nil
	})
}

// single is an initiator with one path, to one portal, that knows nothing of ALUA: it writes and reads back one block after another of a LUN of
// its own. It comes back to its portal whenever a session ends, and is sent on from there. BUSY it hears with patience, as QEMU and Linux
// do; any other error is one its guest would see.
type single struct {
	t      *testing.T
	c      *cluster
	lun    api.LUN
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	portal   string
	began    time.Time // of what was answered last
	ended    time.Time
	versions map[uint64]value // acknowledged
	err      error
}

const (
	singleLUN    = "single"
	singleBlocks = 512
)

func (c *cluster) startSingle() *single {
	c.t.Helper()
	s := &single{t: c.t, c: c, versions: map[uint64]value{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, "LUN for a single path", func() error {
		_, err := c.api.CreateLUN(ctx, api.LUNSpec{Name: singleLUN, SizeBytes: singleBlocks * block.Size, Media: "file", BlockBytes: 512, Nodes: c.copies, Open: true, SinglePath: true}, 0)
		return err
	})
	c.until(ctx, "it is served", func() (err error) {
		if s.lun, err = c.api.LUN(ctx, singleLUN); err == nil && (s.lun.Health != api.HealthHealthy || !s.lun.Served()) {
			err = fmt.Errorf("it is %s", s.lun.Health)
		}
		return err
	})
	s.portal = c.portal(s.lun, s.lun.Owner).Address
	s.done.Go(s.run)
	c.t.Cleanup(func() {
		s.cancel()
		s.done.Wait()
	})
	return s
}

// follow makes a node the owner of its LUN, and that node's portal the one it knows: the worst, if the disk of that node is to fail.
func (s *single) follow(node string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), healTimeout)
	defer cancel()
	s.mu.Lock()
	s.portal = s.c.configs[node].Listen.ISCSI[0]
	s.mu.Unlock()
	s.c.until(ctx, "single path's LUN at "+node, func() error {
		l, err := s.c.api.LUN(ctx, singleLUN)
		switch {
		case err != nil:
		case l.Health != api.HealthHealthy || l.View.Source != api.SourceOwner:
			err = fmt.Errorf("it is %s", l.Health)
		case l.Owner != node:
			_, err = s.c.api.MoveLUN(ctx, singleLUN, node, time.Second)
		}
		return err
	})
	s.answered(time.Now())
}

func (s *single) run() {
	buf, got := make([]byte, block.Size), make([]byte, block.Size)
	var session *initiator.Session
	defer func() {
		if session != nil {
			session.Close()
		}
	}()
	for i := uint64(1); s.ctx.Err() == nil; i++ {
		n, began := i%singleBlocks, time.Now()
		fill(buf, value(i), n)
		err := s.surely(&session, func(ctx context.Context) error {
			return session.Write(ctx, n*block.SectorsPerBlock, block.SectorsPerBlock, buf)
		})
		if err == nil {
			err = s.surely(&session, func(ctx context.Context) error {
				return session.Read(ctx, n*block.SectorsPerBlock, block.SectorsPerBlock, got)
			})
		}
		if err == nil {
			if v, verr := valueOf(got, n); verr != nil || v != value(i) {
				err = fmt.Errorf("block %d: wrote %d, read %d (%w)", n, i, v, verr)
			}
		}
		s.mu.Lock()
		switch {
		case err == nil:
			s.began, s.ended, s.versions[n] = began, time.Now(), value(i)
		case s.ctx.Err() == nil:
			s.err = err
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// surely does something in a session until it is done: again when it was BUSY, and in a new session when that has ended.
func (s *single) surely(session **initiator.Session, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	for last := error(nil); ; {
		if *session == nil {
			s.mu.Lock()
			portal := s.portal
			s.mu.Unlock()
			opened, err := initiator.Dial(ctx, initiator.Config{Address: portal, Target: s.lun.IQN, LUN: uint16(s.lun.Number), InitiatorName: "iqn.test:single"})
			if err == nil {
				*session = opened
			} else {
				last = err
			}
		}
		if *session != nil {
			err := do(ctx)
			status := (*initiator.StatusError)(nil)
			switch {
			case err == nil:
				return nil
			case errors.As(err, &status) && status.Status != scsi.StatusBusy && status.Key != scsi.UnitAttention:
				return fmt.Errorf("a guest would see %w", err)
			case !errors.As(err, &status):
				(*session).Close()
				*session = nil
			}
			last = err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("not done within %v: %w", patience, last)
		}
	}
}

// answered waits for something that began after a moment to be answered, and returns when that was.
func (s *single) answered(from time.Time) time.Time {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		s.mu.Lock()
		began, ended, err := s.began, s.ended, s.err
		s.mu.Unlock()
		if err != nil {
			s.t.Fatalf("initiator with a single path: %v", err)
		}
		if began.After(from) {
			return ended
		}
		wait(s.t, time.Millisecond)
	}
	s.t.Fatalf("initiator with a single path: nothing was answered for %v", patience)
	return time.Time{}
}

// finish reads everything back.
func (s *single) finish() {
	s.t.Helper()
	s.cancel()
	s.done.Wait()
	if s.err != nil {
		s.t.Errorf("initiator with a single path: %v", s.err)
		return
	}
	s.ctx, s.cancel = context.WithCancel(s.t.Context())
	var session *initiator.Session
	buf := make([]byte, block.Size)
	for n, want := range s.versions {
		err := s.surely(&session, func(ctx context.Context) error {
			return session.Read(ctx, n*block.SectorsPerBlock, block.SectorsPerBlock, buf)
		})
		if v, verr := valueOf(buf, n); err != nil || verr != nil || v < want { // the last write may have taken effect without an answer
			s.t.Errorf("initiator with a single path: block %d is %d, %d was acknowledged: %v", n, v, want, errors.Join(err, verr))
		}
	}
	if session != nil {
		session.Close()
	}
	if len(s.versions) == 0 {
		s.t.Error("initiator with a single path: it has written nothing")
	}
	s.t.Logf("initiator with a single path: %d blocks read back", len(s.versions))
}
