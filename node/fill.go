package node

import (
	"context"
	"errors"
	"fmt"

	"sanctuary/node/catalog"
	"sanctuary/node/reconcile"
	"sanctuary/replication"
)

// filling is the storage of a replica that is being filled beside the one that runs (replication.Host.Fill).
type filling struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended and err is set
	err    error
}

// Fill implements reconcile.Runner.
func (s *replicas) Fill(_ context.Context, l catalog.LUN, r catalog.Replica) error {
	if r.Witness {
		return nil // its log comes when it joins
	}
	key := memoryKey(l.ID, r.ID)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.New("the node is stopping")
	}
	f := s.fillings[key]
	if f == nil {
		ctx, cancel := context.WithCancel(context.Background())
		f = &filling{cancel: cancel, done: make(chan struct{})}
		s.fillings[key] = f
		go func() {
			defer close(f.done)
			defer cancel()
			f.err = s.fill(ctx, l, r)
			s.n.reconciler.Wake()
		}()
	}
	s.mu.Unlock()
	select {
	case <-f.done:
	default:
		return fmt.Errorf("being filled, %w", reconcile.ErrNotYet)
	}
	s.mu.Lock()
	delete(s.fillings, key)
	s.mu.Unlock()
	return f.err
}

func (s *replicas) fill(ctx context.Context, l catalog.LUN, r catalog.Replica) (err error) {
	run := &running{lun: l, replica: r}
	cfg := replication.Config{
		LUN: l.ID, Epoch: l.Epoch, Self: member(r), Members: members(l.Replicas), Geometry: l.Geometry, Logger: s.n.log.With("lun-name", l.Name),
		Timing: s.timing(),
	}
	if inMemory(l, r) {
		m, err := s.held(l, r)
		if err != nil {
			return err
		}
		cfg.Journal, run.volume = m.journal, m.volume
	} else {
		if _, err := s.openStorage(run, &cfg); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, cfg.Journal.Close(), run.volume.Close()) }()
	}
	cfg.Store = run.volume
	return s.n.host.Fill(ctx, cfg)
}

// endFilling ends what is being filled, if anything, and waits for it: its storage is about to go, or the process.
func (s *replicas) endFilling(key string) {
	s.mu.Lock()
	f := s.fillings[key]
	delete(s.fillings, key)
	s.mu.Unlock()
	if f != nil {
		f.cancel()
		<-f.done
	}
}
