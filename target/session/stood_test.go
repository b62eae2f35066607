package session

import (
	"errors"
	"io"
	"testing"
	"time"

	"sanctuary/target/pdu"
)

// A command that lay in the connection while the process stood still may be an old duplicate: it is not carried out, whether
// the watch or the reader is the first to run again. One that comes in time is.
func TestNothingIsTakenFromBeforeTheProcessStoodStill(t *testing.T) {
	for name, stop := range map[string]func(*Watch){
		"the watch ran first":  func(w *Watch) { w.tick(w.last.Load() + int64(stoodStill) + 1) },
		"the reader ran first": func(w *Watch) { w.last.Store(sinceEpoch() - int64(stoodStill) - 1) },
	} {
		t.Run(name, func(t *testing.T) {
			w := NewWatch()
			p := connect(t, setup{keys: all(), config: func(c *Config) { c.Watch = w }})
			p.alive()
			before := p.disk.executed()
			w.tick(w.last.Load() + int64(stoodStill)) // late, and not too late
			p.alive()
			if p.disk.executed() == before {
				t.Fatal("a command in time was not carried out")
			}
			before = p.disk.executed()
			stop(w)
			c := p.rw(true, 0, 4096, 4096)
			c.Final = true
			p.issue(c, make([]byte, 4096))
			var h pdu.Header
			if err := p.r.ReadHeader(&h); err == nil {
				t.Errorf("answered with %v", h.Opcode())
			} else if errors.Is(err, io.ErrUnexpectedEOF) {
				t.Error(err)
			}
			if err := <-p.ended; !errors.Is(err, ErrStoodStill) {
				t.Errorf("ended with %v", err)
			}
			p.ended <- nil
			if p.disk.executed() != before {
				t.Error("it was carried out")
			}
		})
	}
}

func TestWatchTakesASleepOfTheProcessForOneAndTicksForNone(t *testing.T) {
	w := NewWatch()
	for range 100 {
		w.tick(w.last.Load() + int64(watchTick))
	}
	if w.count() != 0 {
		t.Errorf("stood still %d times in ordinary ticks", w.count())
	}
	w.tick(w.last.Load() + int64(10*time.Second))
	if w.count() != 1 {
		t.Errorf("stood still %d times, want once", w.count())
	}
	if (*Watch)(nil).since(0, sinceEpoch()+int64(time.Hour)) {
		t.Error("no watch noticed something")
	}
}
