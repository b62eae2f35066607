package session

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"

	"sanctuary/target/pdu"
	"sanctuary/target/scsi"
)

// item is one thing to send: a PDU that is ready but for its sequence numbers, or a command's data and status.
type item struct {
	header   pdu.Header
	data     []byte
	numbered bool  // takes a StatSN of its own
	end      error // not nil: nothing follows, the session ends with it
	ping     bool  // our own ping: its answer is due from when it has been sent
	bytes    int   // counted in unsent: what the reader left
	command  *command
}

// outbox is what waits to be sent. The window bounds how many commands can be in it, and R2Ts are bounded per command; what
// the reader answers by itself is bounded by maxUnsentBytes, beyond which it stops reading.
//
// Whoever has set busy is the sender and alone touches the fields above mu. That is the writer, except when the last command
// at work ends: whoever executed it sends at once, because waking the writer would cost more than the answer.
type outbox struct {
	s      *Session
	writer *pdu.Writer
	statSN uint32 // of the next response
	sent   []*command

	// since is when the system call under way began, in nanoseconds since epoch, 0 if there is none. The pinger looks: a
	// deadline set anew for every call would cost as much as a small answer.
	since atomic.Int64

	mu      sync.Mutex
	filled  *sync.Cond // on mu: there is something to send and nobody sends, or closed
	drained *sync.Cond // on mu: unsent has become smaller, or everything is sent, or broken
	queue   []item
	spare   []item
	unsent  int // bytes the reader itself has queued
	busy    bool
	held    bool // there is something to send and nobody has been told
	closed  bool // no more is wanted
	broken  bool // nobody sends any more
}

func newOutbox(s *Session, w *pdu.Writer, statSN uint32) *outbox {
	o := &outbox{s: s, writer: w, statSN: statSN}
	o.filled, o.drained = sync.NewCond(&o.mu), sync.NewCond(&o.mu)
	return o
}

// post queues an item. It never waits, and may be called with Session.mu held.
func (o *outbox) post(it item) {
	o.mu.Lock()
	o.postLocked(it)
	o.mu.Unlock()
}

func (o *outbox) postLocked(it item) {
	o.queue = append(o.queue, it)
	if (len(o.queue) == 1 || o.held) && !o.busy {
		o.held = false
		o.filled.Signal()
	}
}

// postFromReader queues an item and then waits while too much is unsent: an initiator that asks and does not listen is
// not read any more.
func (o *outbox) postFromReader(it item) {
	it.bytes = pdu.HeaderSize + len(it.data)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unsent += it.bytes
	o.postLocked(it)
	for o.unsent > maxUnsentBytes && !o.broken {
		o.drained.Wait()
	}
}

// hold queues an item that may wait until takeOver or wake, or until something else is sent.
func (o *outbox) hold(it item) {
	o.mu.Lock()
	o.queue = append(o.queue, it)
	o.held = o.held || len(o.queue) == 1 && !o.busy
	o.mu.Unlock()
}

// wake has sent what is held.
func (o *outbox) wake() {
	o.mu.Lock()
	if o.held {
		o.held = false
		o.filled.Signal()
	}
	o.mu.Unlock()
}

// takeOver queues an item and makes the caller the sender if nobody is; sendTaken must follow then. It never waits, and may
// be called with Session.mu held.
func (o *outbox) takeOver(it item) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = append(o.queue, it)
	if o.busy || o.broken {
		return false // the sender looks again, or drop does
	}
	o.busy, o.held = true, false
	return true
}

// sendTaken sends everything queued, after takeOver. An error ends the session.
func (o *outbox) sendTaken() {
	var batch []item
	freed, broken := 0, true
	defer func() { // also of a panic, which goes on to whoever reports it
		if broken {
			o.giveBackRest(batch)
			o.giveBack()
		}
		o.stepDown(freed, broken)
	}()
	o.mu.Lock()
	batch = o.queue
	o.queue, o.spare = o.spare[:0], nil
	o.held = false
	o.mu.Unlock()
	err := o.send(batch)
	broken = err != nil
	for i := range batch {
		freed += batch[i].bytes
	}
	if err != nil {
		o.s.Close(err)
		return
	}
	clear(batch)
	o.mu.Lock()
	o.spare = batch[:0]
	o.mu.Unlock()
}

// stepDown ends the caller's being the sender. freed is what it has sent of unsent.
func (o *outbox) stepDown(freed int, broken bool) {
	o.mu.Lock()
	o.busy = false
	o.broken = o.broken || broken
	o.unsent -= freed
	if freed > 0 || len(o.queue) == 0 || o.broken {
		o.drained.Broadcast()
	}
	if len(o.queue) > 0 || o.broken || o.closed {
		o.filled.Signal()
	}
	o.mu.Unlock()
}

// flush waits until everything queued has been written, or cannot be.
func (o *outbox) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for (len(o.queue) > 0 || o.busy) && !o.broken {
		o.drained.Wait()
	}
}

// close lets run return once it has sent what it has.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.filled.Signal()
	o.mu.Unlock()
}

// run is the writer: it sends until close, or until the connection breaks.
func (o *outbox) run() {
	defer func() {
		o.mu.Lock()
		o.broken = true
		o.drained.Broadcast()
		o.mu.Unlock()
	}()
	for {
		o.mu.Lock()
		for (len(o.queue) == 0 || o.busy) && !o.broken && (!o.closed || o.busy) {
			o.filled.Wait()
		}
		if o.broken || len(o.queue) == 0 {
			o.mu.Unlock()
			return
		}
		o.busy = true
		o.mu.Unlock()
		// Commands end in swarms, because they arrive so and are journalled so. Whoever is about to post does it now, and one
		// system call takes all of it: on a machine with few processors that halves the cost of a command.
		runtime.Gosched()
		o.sendTaken()
	}
}

// quiet says whether everything that was to be sent is on its way.
func (o *outbox) quiet() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue) == 0 && !o.busy
}

// stuck says whether a system call has been waiting for the initiator to listen for longer than writeTimeout.
func (o *outbox) stuck(now int64) bool {
	since := o.since.Load()
	return since != 0 && now-since > int64(writeTimeout)
}

// flushBytes is what one system call writes at most, more or less: enough to make the call cheap, not so much that the
// buffers wait long for their return.
const flushBytes = 1 << 20

// send writes a batch and returns the buffers of what it has written.
func (o *outbox) send(batch []item) error {
	var end error
	ping := false
	for i := range batch {
		it := &batch[i]
		if c := it.command; c != nil {
			if err := o.appendCommand(c); err != nil {
				return err
			}
			o.sent, it.command = append(o.sent, c), nil
			continue
		}
		if err := o.append(&it.header, it.data, it.numbered); err != nil {
			return err
		}
		ping = ping || it.ping
		if end = it.end; end != nil {
			break
		}
	}
	if err := o.flushWriter(); err != nil {
		return err
	}
	if ping {
		o.s.pinged.Store(sinceEpoch())
	}
	return end
}

func (o *outbox) flushWriter() error {
	o.since.Store(sinceEpoch())
	err := o.writer.Flush()
	o.since.Store(0)
	o.giveBack()
	return err
}

// append adds one PDU with the sequence numbers of this moment.
func (o *outbox) append(h *pdu.Header, data []byte, numbered bool) error {
	h.SetSequence(o.statSN, o.s.expCmdSN.Load(), o.s.maxCmdSN.Load())
	if numbered {
		o.statSN++
	}
	if o.writer.Buffered() > flushBytes || o.writer.Full() {
		if err := o.flushWriter(); err != nil {
			return err
		}
	}
	o.s.stats.pdusOut.Add(1)
	return o.writer.Append(h, data)
}

// appendCommand adds a command's Data-In and its status; with GOOD the status is in the last Data-In.
func (o *outbox) appendCommand(c *command) error {
	t := &c.task
	var h pdu.Header
	data := t.DataIn[:min(len(t.DataIn), t.ExpectedIn)]
	o.s.stats.bytesOut.Add(uint64(len(data)))
	overflow, underflow, residual := residuals(t, len(data))
	var sn uint32
	for off, burst := 0, 0; off < len(data); sn++ {
		n := min(len(data)-off, o.s.params.MaxSendData, o.s.params.MaxBurst-burst)
		end := off+n == len(data)
		d := pdu.DataIn{Tag: c.tag, DataSN: sn, BufferOffset: uint32(off)}
		d.Final = end || burst+n == o.s.params.MaxBurst
		d.WithStatus = end && t.Status == scsi.StatusGood
		if d.WithStatus {
			d.Status, d.Overflow, d.Underflow, d.Residual = uint8(t.Status), overflow, underflow, residual
		}
		d.Put(&h)
		if err := o.append(&h, data[off:off+n], d.WithStatus); err != nil {
			return err
		}
		if d.WithStatus {
			return nil
		}
		off += n
		if burst += n; d.Final {
			burst = 0
		}
	}
	(&pdu.SCSIResponse{
		Status: uint8(t.Status), Overflow: overflow, Underflow: underflow, Tag: c.tag, ExpDataSN: sn + c.r2tSN, Residual: residual,
	}).Put(&h)
	var sense []byte
	if t.Status == scsi.StatusCheckCondition && len(t.Sense) > 0 {
		sense = pdu.AppendSense(make([]byte, 0, 2+len(t.Sense)), t.Sense)
	}
	return o.append(&h, sense, true)
}

// residuals compares what the command moved with what the initiator expected (RFC 7143 §11.4.5).
func residuals(t *scsi.Task, sent int) (overflow, underflow bool, residual uint32) {
	expected, moved := int64(t.ExpectedIn), int64(sent)
	asked := t.TransferIn
	if t.ExpectedOut > 0 || t.ExpectedIn == 0 && t.TransferOut > 0 {
		expected, moved, asked = int64(t.ExpectedOut), t.TransferOut, t.TransferOut
	}
	switch {
	case asked > expected:
		return true, false, uint32(min(asked-expected, math.MaxUint32))
	case moved < expected:
		return false, true, uint32(expected - moved)
	}
	return false, false, 0
}

// giveBack returns the buffers of what has been written, and the commands.
func (o *outbox) giveBack() {
	if len(o.sent) == 0 {
		return
	}
	for _, c := range o.sent {
		if c.task.DataIn != nil {
			o.s.memory.put(dataIn, c.task.DataIn)
			c.task.DataIn = nil
		}
	}
	o.s.recycle(o.sent)
	clear(o.sent)
	o.sent = o.sent[:0]
}

func (o *outbox) giveBackRest(rest []item) {
	for i := range rest {
		if rest[i].command != nil {
			o.sent = append(o.sent, rest[i].command)
		}
	}
}

// drop returns the buffers of what was never sent, once nobody sends any more.
func (o *outbox) drop() {
	o.mu.Lock()
	rest := o.queue
	o.queue = nil
	o.mu.Unlock()
	o.giveBackRest(rest)
	o.giveBack()
}
