package session

import (
	"fmt"
	"time"
)

// A write whose data does not come holds its memory, which is everybody's. An initiator that answers pings is alive, and may still send none: so a session
// ends when it has been asked for data and none has come for Config.DataTimeout, or when a command's has not all come overdueTimes as long after the command, however
// it trickles. What we keep the initiator waiting for (memory, answers that are on their way before our R2T) is not counted.

const overdueTimes = 20

// overdue returns why the session is to end, nil if it is not.
func (s *Session) overdue(now int64) error {
	if !s.live.waiting.Load() || !s.out.quiet() {
		return nil
	}
	limit := s.cfg.DataTimeout
	silent := time.Duration(now - s.fed.Load())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.tasks {
		if c.phase != collecting && c.phase != soliciting {
			continue
		}
		age := c.age(now)
		switch {
		case silent > limit && age > limit:
			return fmt.Errorf("%w: none for %v", ErrNoData, silent.Round(time.Second))
		case age > overdueTimes*limit:
			return fmt.Errorf("%w: not all of a command's after %v", ErrNoData, age.Round(time.Second))
		}
	}
	return nil
}

// age is how long before now, of sinceEpoch, the command arrived.
func (c *command) age(now int64) time.Duration {
	return time.Duration(now) - c.task.Accepted.Sub(epoch)
}
