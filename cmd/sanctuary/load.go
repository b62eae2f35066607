package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"sanctuary/blockstore/block"
)

// disk is a LUN as the drill uses it. Methods are safe for concurrent use and keep trying until ctx ends.
type disk interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	Close() error
}

// Load of a drill.
const (
	drillWriters         = 8
	drillBlocksPerWriter = 512
	// drillPatience is how long one I/O may wait. It is what a patient guest would grant (Linux gives up after 30 s a try
	// and tries five times); one that takes longer counts as failed.
	drillPatience = 60 * time.Second
	// slowIO is when an I/O counts as stalled in the report.
	slowIO = 500 * time.Millisecond
	// maxViolations bounds what is kept of a catastrophe.
	maxViolations = 20
)

// load writes and reads tagged blocks until it is stopped.
type load struct {
	disk   disk
	ledger *ledger
	blocks uint64 // of the LUN, that writers share out

	mu         sync.Mutex // guards what follows; never held during I/O
	writes     int
	reads      int
	stalled    int           // I/Os longer than slowIO
	longest    time.Duration // I/O
	failures   []error       // I/Os that failed: I/O must wait, not fail
	violations []error       // reads that contradict what was acknowledged
	mark       time.Time     // of a kill
	firstAfter chan time.Time
}

// run writes and reads until stop is closed. It returns when the last I/O has ended; ctx cuts I/O off.
func (l *load) run(ctx context.Context, stop <-chan struct{}) {
	var wg sync.WaitGroup
	for w := range uint64(drillWriters) {
		wg.Go(func() { l.writer(ctx, stop, w) })
	}
	wg.Wait()
}

// writer writes to every drillWriters-th block, so that no block has two writers at a time.
func (l *load) writer(ctx context.Context, stop <-chan struct{}, w uint64) {
	rng := rand.New(rand.NewPCG(l.ledger.run, w))
	own := min(drillBlocksPerWriter, l.blocks/drillWriters)
	p := make([]byte, block.Size)
	for {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		default:
		}
		lba := w + drillWriters*rng.Uint64N(own)
		if !l.write(ctx, lba, p) {
			return
		}
		if rng.IntN(4) == 0 && !l.read(ctx, l.disk, lba, p) {
			return
		}
	}
}

// write writes the next value of a block; false ends the writer.
func (l *load) write(ctx context.Context, lba uint64, p []byte) bool {
	seq := l.ledger.begin(lba, p)
	start := time.Now()
	ioCtx, cancel := context.WithTimeout(ctx, drillPatience)
	err := l.disk.WriteAt(ioCtx, p, int64(lba)*block.Size)
	cancel()
	if err == nil {
		l.ledger.acknowledge(lba, seq)
	}
	return l.ended(ctx, &l.writes, start, err, func() error { return fmt.Errorf("write %d of block %d: %w", seq, lba, err) })
}

// read reads a block nobody writes at the moment and judges it; false ends the reader.
func (l *load) read(ctx context.Context, d disk, lba uint64, p []byte) bool {
	start := time.Now()
	ioCtx, cancel := context.WithTimeout(ctx, drillPatience)
	err := d.ReadAt(ioCtx, p, int64(lba)*block.Size)
	cancel()
	if err == nil {
		if bad := l.ledger.judge(lba, p); bad != nil {
			l.mu.Lock()
			if len(l.violations) < maxViolations {
				l.violations = append(l.violations, bad)
			}
			l.mu.Unlock()
		}
	}
	return l.ended(ctx, &l.reads, start, err, func() error { return fmt.Errorf("read of block %d: %w", lba, err) })
}

// ended records an I/O; false means that no more should follow.
func (l *load) ended(ctx context.Context, count *int, start time.Time, err error, describe func() error) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil && len(l.failures) < maxViolations { // cut off by the user otherwise
			l.failures = append(l.failures, describe())
		}
		return false
	}
	*count++
	took := now.Sub(start)
	l.longest = max(l.longest, took)
	if took >= slowIO {
		l.stalled++
	}
	if l.firstAfter != nil && start.After(l.mark) {
		l.firstAfter <- now // buffered for the one
		l.firstAfter = nil
	}
	return true
}

// markNow returns a channel that gets the time when the first I/O begun from now on has succeeded.
func (l *load) markNow() <-chan time.Time {
	first := make(chan time.Time, 1)
	l.mu.Lock()
	l.mark, l.firstAfter = time.Now(), first
	l.mu.Unlock()
	return first
}

// verify reads every block that was written to over another disk and returns how many there were.
func (l *load) verify(ctx context.Context, d disk) int {
	touched := l.ledger.touched()
	p := make([]byte, block.Size)
	for i, lba := range touched {
		if !l.read(ctx, d, lba, p) {
			return i
		}
	}
	return len(touched)
}
