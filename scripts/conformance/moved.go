package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// readSuites reads which suites run while the LUN is moved: "SUITE: yes" or "SUITE: no, REASON", every suite of the tool once.
func readSuites(file string, suites []suite) ([]suite, error) {
	notes, err := readNotes(file)
	if err != nil {
		return nil, err
	}
	var chosen []suite
	for _, s := range suites {
		note, listed := notes[s.name]
		delete(notes, s.name)
		switch {
		case !listed:
			return nil, fmt.Errorf("%s does not name %s", file, s.name)
		case note == "yes":
			chosen = append(chosen, s)
		case !strings.HasPrefix(note, "no, "):
			return nil, fmt.Errorf("%s: %s: %q is neither \"yes\" nor \"no, REASON\"", file, s.name, note)
		}
	}
	if len(notes) > 0 {
		return nil, fmt.Errorf("%s names suites that the tool does not have: %v", file, slices.Sorted(maps.Keys(notes)))
	}
	return chosen, nil
}

// campaign is what became of suites run again and again while the LUN was moved.
type campaign struct {
	suites, tests, moves int
	told                 int // tests that met a move, see toRepeat
	every                time.Duration
	wrong                []result // what failed, or skipped without being on the list
}

// runMoved runs the suites one after another, over and over, while the LUN is handed to the other data node every so often,
// until it has been moved as often as wanted and each suite has run at least once.
func runMoved(ctx context.Context, t tool, s *subject, suites []suite, expected map[string]string, moves int, every time.Duration) (campaign, error) {
	c := campaign{every: every}
	var mover sync.WaitGroup
	var moveErr error // read when over is closed
	over := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	defer mover.Wait()
	defer cancel()
	mover.Go(func() {
		defer close(over)
		c.moves, moveErr = moveOften(ctx, s.admin, moves, every)
	})
	for i := 0; ; i++ {
		select {
		case <-over:
			if i >= len(suites) || moveErr != nil {
				return c, moveErr
			}
		default:
		}
		one := suites[i%len(suites)]
		for _, r := range t.suite(ctx, s.paths(one.name), one) {
			c.tests++
			if r.verdict == failed && toRepeat(r.reason) {
				fmt.Printf("told %-45s that the LUN moves, and run again: %s\n", r.name, r.reason)
				c.told++
				r = t.apart(ctx, s.paths(one.name), suite{name: one.name, tests: []string{r.name}})[0]
			}
			if _, listed := expected[r.name]; r.verdict == failed || r.verdict == skipped && !listed {
				fmt.Printf("%-4s %-45s while the LUN is moved: %s\n", r.verdict, r.name, r.reason)
				c.wrong = append(c.wrong, r)
			}
		}
		c.suites++
		if ctx.Err() != nil {
			cancel()
			mover.Wait()
			return c, ctx.Err()
		}
		if !s.alive() {
			cancel()
			mover.Wait()
			return c, errors.New("the target ended while its LUN was moved")
		}
	}
}

// toRepeat says whether a test failed because a command of it was answered BUSY or with unit attention 06/2A/06 (asymmetric
// access state changed), or its login's TEST UNIT READY with 02/04/0A (asymmetric access state transition), which on a machine that is busy
// a move may take long enough for: answers that ask the initiator to send the command again, as every one does but this tool.
func toRepeat(reason string) bool {
	if strings.Contains(reason, "Login Failed") && strings.Contains(reason, "(0x040a)") {
		return true
	}
	return strings.Contains(reason, "failed with status 8 ") || strings.Contains(reason, "(0x2a06)")
}

// moveOften moves the LUN so many times, waiting as long before each, and says how often it did.
func moveOften(ctx context.Context, a *admin, moves int, every time.Duration) (made int, err error) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for made < moves {
		select {
		case <-ctx.Done():
			return made, ctx.Err()
		case <-ticker.C:
		}
		if err := a.move(ctx); err != nil {
			return made, fmt.Errorf("move the LUN: %w", err)
		}
		made++
	}
	return made, nil
}

func (c campaign) String() string {
	return fmt.Sprintf("%d runs of suites, %d tests, while the LUN was moved %d times, every %s: %d told to repeat a command, %d wrong", c.suites, c.tests, c.moves, c.every, c.told, len(c.wrong))
}

// err names what went wrong.
func (c campaign) err() error {
	var errs []error
	for _, r := range c.wrong {
		errs = append(errs, fmt.Errorf("%s while the LUN was moved: %s, %s", r.name, r.verdict, r.reason))
	}
	return errors.Join(errs...)
}
