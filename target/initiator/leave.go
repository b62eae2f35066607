package initiator

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// errNotSent: nothing of the command was sent, so it had no effect and will have none. It comes with the reason: the session
// has ended or is about to, or ctx has.
var errNotSent = errors.New("the command was not sent")

func notSent(err error) error {
	if errors.Is(err, errNotSent) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errNotSent)
}

// maxLeave bounds how long commands at work may delay the logout, however patient the target is.
const maxLeave = 10 * time.Second

// askedToLeave begins the logout that the target asked for (RFC 7143 §11.9.1, event 1), once. within is how long the target
// waits for it. Called by the reader.
func (s *Session) askedToLeave(within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving != nil || s.err != nil {
		return
	}
	s.leaving = make(chan struct{})
	s.leaver.Add(1)
	go s.leave(s.leaving, min(within, maxLeave))
	s.checkLeft()
}

// checkLeft tells leave that no task is left; mu is held. From askedToLeave on no new one is sent, and those that
// are only registered find out when they want to be.
func (s *Session) checkLeft() {
	if s.leaving == nil || len(s.tasks) > 0 {
		return
	}
	select {
	case <-s.leaving:
	default:
		close(s.leaving)
	}
}

// leave logs out when the commands at work have ended, in any case before the target loses its patience.
func (s *Session) leave(left <-chan struct{}, within time.Duration) {
	defer s.leaver.Done()
	patience := time.NewTimer(max(within/2, 100*time.Millisecond))
	defer patience.Stop()
	select {
	case <-left:
	case <-patience.C:
	case <-s.dead:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(within/2, 100*time.Millisecond))
	defer cancel()
	s.end(errors.Join(ErrAskedToLeave, s.logout(ctx)))
}
