package initiator

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"sanctuary/target/scsi"
)

// Outcome is how an operation or an attempt ended.
type Outcome string

// Outcomes.
const (
	Acknowledged Outcome = "acknowledged" // GOOD was received
	Failed       Outcome = "failed"       // refused: it had no effect and will have none
	Unknown      Outcome = "unknown"      // it may have taken effect, or may yet (see Attempt)
)

// Operation is a kind of operation.
type Operation string

// Operations.
const (
	OpRead            Operation = "read"
	OpWrite           Operation = "write"
	OpCompareAndWrite Operation = "compare-and-write"
	OpUnmap           Operation = "unmap"
	OpFlush           Operation = "flush"
)

// Attempt is one command of an operation. An attempt whose outcome is unknown was cut off on a connection that has been closed;
// a history checker must count it as possible from its start on, whatever the next attempt comes to.
type Attempt struct {
	IO     uint64 // number of the operation, from 1
	N      int    // number of the attempt, from 1
	Path   int    // index in MultipathConfig.Paths
	Op     Operation
	Offset int64  // in bytes
	Data   []byte // what is written, or on a finished read what was read; the operation's own buffer, not to be kept
	Want   []byte // what a compare-and-write compares with
	Start  time.Time
	End    time.Time // zero at the start of the attempt
	// Outcome and Err are set at the end.
	Outcome Outcome
	Err     error
}

// IO is what an operation came to.
type IO struct {
	ID       uint64
	Outcome  Outcome
	Attempts int
	Elapsed  time.Duration
	Stall    time.Duration // from the start to the beginning of the last attempt
}

// Counters are sums over all operations of a Disk.
type Counters struct {
	Operations, Attempts, Retries, Switches uint64
	LongestStall                            time.Duration
}

// Disk is one LUN over several paths. Its methods may be called concurrently. An operation goes on, on whichever path
// works, until it is acknowledged, refused for a reason no path can mend, or its ctx ends.
type Disk struct {
	cfg      MultipathConfig
	paths    *paths
	capacity Capacity

	ids, attempts, retries atomic.Uint64
	switches               atomic.Uint64
	longest                atomic.Int64
}

// OpenMultipath logs in, and checks that the paths that answer lead to one LUN. It waits for a path that is active until ctx ends.
func OpenMultipath(ctx context.Context, cfg MultipathConfig) (*Disk, error) {
	if len(cfg.Paths) == 0 {
		return nil, errors.New("no paths: name at least one")
	}
	if cfg.RetryEvery <= 0 {
		cfg.RetryEvery = 20 * time.Millisecond
	}
	if cfg.Session.LoginTimeout == 0 {
		cfg.Session.LoginTimeout = 2 * time.Second
	}
	// A node that is stopped but whose kernel answers is noticed within 1.5 s.
	if cfg.Session.KeepAlive == 0 {
		cfg.Session.KeepAlive = 500 * time.Millisecond
	}
	if cfg.Session.SilentTimeout == 0 {
		cfg.Session.SilentTimeout = time.Second
	}
	check := cfg.Session
	if err := check.setDefaults(); err != nil {
		return nil, err
	}
	d := &Disk{}
	notify := cfg.OnPath
	cfg.OnPath = func(e PathEvent) {
		if e.What == PathActive {
			d.switches.Add(1)
		}
		if notify != nil {
			notify(e)
		}
	}
	d.cfg = cfg
	if err := (&paths{cfg: cfg, isids: surveyISIDs(len(cfg.Paths))}).survey(ctx); err != nil {
		return nil, err
	}
	d.paths = newPaths(cfg)
	var err error
	for {
		var l *link
		if l, err = d.paths.use(ctx); err != nil {
			break
		}
		if d.capacity, err = l.ReadCapacity16(ctx); err == nil {
			return d, nil
		}
		if ctx.Err() == nil && !isAttention(err) {
			d.paths.drop(l, err)
		}
	}
	d.paths.close()
	return nil, fmt.Errorf("open LUN over %d paths: %w", len(cfg.Paths), err)
}

func surveyISIDs(n int) (isids [][6]byte) {
	for range n {
		isids = append(isids, NewISID())
	}
	return isids
}

// Close logs out. Operations that still run end as if their ctx had ended.
func (d *Disk) Close() { d.paths.close() }

// Capacity returns the size found at the start.
func (d *Disk) Capacity() Capacity { return d.capacity }

// Counters returns the sums so far.
func (d *Disk) Counters() Counters {
	return Counters{
		Operations: d.ids.Load(), Attempts: d.attempts.Load(), Retries: d.retries.Load(), Switches: d.switches.Load(),
		LongestStall: time.Duration(d.longest.Load()),
	}
}

// blocks checks an extent and turns it into logical blocks.
func (d *Disk) blocks(off, n int64) (lba uint64, blocks uint32, err error) {
	size := int64(d.capacity.BlockBytes)
	if off < 0 || n <= 0 || off%size != 0 || n%size != 0 || off > d.capacity.Bytes() || n > d.capacity.Bytes()-off || n/size > 1<<32-1 {
		return 0, 0, fmt.Errorf("%d bytes at %d: use whole blocks of %d within %d", n, off, size, d.capacity.Bytes())
	}
	return uint64(off / size), uint32(n / size), nil
}

// ReadAt reads len(p) bytes from off on; both must be multiples of the block length.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (IO, error) {
	lba, n, err := d.blocks(off, int64(len(p)))
	if err != nil {
		return IO{Outcome: Failed}, err
	}
	return d.do(ctx, Attempt{Op: OpRead, Offset: off, Data: p}, readCommand(lba, n, p))
}

// WriteAt writes p at off; both length and offset must be multiples of the block length.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64) (IO, error) {
	lba, n, err := d.blocks(off, int64(len(p)))
	if err != nil {
		return IO{Outcome: Failed}, err
	}
	return d.do(ctx, Attempt{Op: OpWrite, Offset: off, Data: p}, writeCommand(lba, n, p))
}

// CompareAndWrite writes p at off if want is there, else ends Failed with a *StatusError of scsi.Miscompare. A miscompare
// after an attempt whose outcome is unknown is Unknown: that attempt may have written.
func (d *Disk) CompareAndWrite(ctx context.Context, want, p []byte, off int64) (IO, error) {
	lba, n, err := d.blocks(off, int64(len(p)))
	if err == nil && (len(want) != len(p) || n > 255) {
		err = fmt.Errorf("compare %d bytes and write %d: use one length of at most 255 blocks", len(want), len(p))
	}
	if err != nil {
		return IO{Outcome: Failed}, err
	}
	return d.do(ctx, Attempt{Op: OpCompareAndWrite, Offset: off, Data: p, Want: want}, compareAndWriteCommand(lba, byte(n), want, p))
}

// Unmap frees n bytes from off on, which then read as zeros.
func (d *Disk) Unmap(ctx context.Context, off, n int64) (IO, error) {
	lba, blocks, err := d.blocks(off, n)
	if err != nil {
		return IO{Outcome: Failed}, err
	}
	return d.do(ctx, Attempt{Op: OpUnmap, Offset: off}, unmapCommand(lba, blocks))
}

// Flush returns when everything acknowledged is durable.
func (d *Disk) Flush(ctx context.Context) (IO, error) {
	return d.do(ctx, Attempt{Op: OpFlush}, &Command{CDB: cdb16(0x91, 0, 0, 0)})
}

// do repeats c until it has an outcome.
func (d *Disk) do(ctx context.Context, a Attempt, c *Command) (IO, error) {
	begin := time.Now()
	io := IO{ID: d.ids.Add(1)}
	a.IO = io.ID
	open := false // an earlier attempt may have taken effect
	pause := backoff{}
	var (
		busyAt    *link // what has answered BUSY
		busySince time.Time
	)
	finish := func(o Outcome, err error) (IO, error) {
		if open && o == Failed {
			o = Unknown
		}
		io.Outcome, io.Elapsed = o, time.Since(begin)
		return io, err
	}
	var last error // why the latest attempt has to be repeated
	for {
		l, err := d.paths.use(ctx)
		if err != nil {
			return finish(Failed, errors.Join(err, last))
		}
		io.Attempts++
		d.attempts.Add(1)
		if io.Attempts > 1 {
			d.retries.Add(1)
		}
		a.N, a.Path, a.Start, a.End, a.Outcome, a.Err = io.Attempts, l.path, time.Now(), time.Time{}, "", nil
		io.Stall = a.Start.Sub(begin)
		for was := d.longest.Load(); int64(io.Stall) > was && !d.longest.CompareAndSwap(was, int64(io.Stall)); was = d.longest.Load() {
		}
		d.notify(a)
		err = l.exact(ctx, c)
		outcome, then := judge(err)
		if status := new(StatusError); errors.As(err, &status) && status.Status == scsi.StatusBusy {
			// A node that is cut off says BUSY while another may own the LUN.
			if busyAt, busySince = since(busyAt, busySince, l, a.Start); time.Since(busySince) >= busyPatience {
				then = retryElsewhere
			}
		}
		if then == retryElsewhere && ctx.Err() == nil {
			d.paths.drop(l, err) // before the attempt is reported as over: nothing more is sent of it
		}
		a.End, a.Outcome, a.Err = time.Now(), outcome, err
		d.notify(a)
		switch {
		case outcome == Acknowledged:
			return finish(Acknowledged, nil)
		case then == giveUp:
			return finish(outcome, err)
		}
		open = open || outcome == Unknown
		last = err
		if ctx.Err() != nil {
			return finish(Failed, errors.Join(ctx.Err(), last))
		}
		if status := new(StatusError); errors.As(err, &status) && status.Key != scsi.UnitAttention {
			pause.wait(ctx) // the target is there and said "not now"
		}
	}
}

// busyPatience is how long a command takes BUSY for an answer from one path before it looks at the others.
const busyPatience = 500 * time.Millisecond

// since returns the link and when it was first tried by a command that it keeps telling BUSY.
func since(last *link, first time.Time, now *link, start time.Time) (*link, time.Time) {
	if last == now {
		return last, first
	}
	return now, start
}

func (d *Disk) notify(a Attempt) {
	if d.cfg.OnAttempt != nil {
		d.cfg.OnAttempt(a)
	}
}

type next uint8

const (
	giveUp next = iota
	retryHere
	retryElsewhere
)

// judge says what an attempt came to, and what to do about it.
func judge(err error) (Outcome, next) {
	var e *StatusError
	switch {
	case err == nil:
		return Acknowledged, giveUp
	case errors.As(err, &e):
	case errors.Is(err, errNotSent):
		return Failed, retryElsewhere
	default:
		return Unknown, retryElsewhere // the session is gone, or was cancelled
	}
	switch e.Status {
	case scsi.StatusBusy:
		return Unknown, retryHere // also what a target says that lost ownership in mid-command
	case scsi.StatusTaskSetFull:
		return Failed, retryHere
	case scsi.StatusCheckCondition:
	default:
		return Unknown, retryElsewhere
	}
	switch e.Key {
	case scsi.UnitAttention:
		return Failed, retryHere // not begun
	case scsi.NotReady:
		return Failed, retryElsewhere
	case scsi.AbortedCommand, scsi.HardwareError:
		return Unknown, retryElsewhere
	case scsi.IllegalRequest:
		if e.Code == 0x2500 { // the LUN is not served here (any more)
			return Failed, retryElsewhere
		}
	}
	return Failed, giveUp
}

// backoff is the pause before a command goes the same way again: 2 ms, doubling up to 256 ms.
type backoff struct{ next time.Duration }

func (b *backoff) wait(ctx context.Context) {
	b.next = min(max(2*b.next, 2*time.Millisecond), 256*time.Millisecond)
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
