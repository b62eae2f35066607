package scsi

import (
	"context"
	"sync"
	"time"
)

// taskContext is the context of a task: it ends when the task is aborted, or with the session. Unlike that of context.WithCancel
// it costs nothing until somebody asks for Done, which a command that does not wait never does.
type taskContext struct {
	parent context.Context

	mu   sync.Mutex
	done chan struct{} // nil until asked for
	err  error
	stop func() bool // of the parent's hook; set with done
}

var _ context.Context = (*taskContext)(nil)

// Deadline is the parent's.
func (c *taskContext) Deadline() (time.Time, bool) { return c.parent.Deadline() }

// Value is the parent's.
func (c *taskContext) Value(key any) any { return c.parent.Value(key) }

// Done returns a channel that is closed at the end.
func (c *taskContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		} else {
			c.stop = context.AfterFunc(c.parent, c.endWithParent)
		}
	}
	return c.done
}

// Err returns why the context has ended, nil if it has not.
func (c *taskContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.done == nil { // nobody is told by a channel: the parent is asked
		c.err = c.parent.Err()
	}
	return c.err
}

func (c *taskContext) endWithParent() { c.end(c.parent.Err()) }

// cancel ends the context.
func (c *taskContext) cancel() { c.end(context.Canceled) }

func (c *taskContext) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil {
		c.stop()
		c.stop = nil
	}
	if c.err != nil {
		return
	}
	c.err = err
	if c.done != nil {
		close(c.done)
	}
}

// spareRequests bounds what a nexus keeps for its next commands.
const spareRequests = 64

// request returns an empty request with a context under ctx, one that was used before if there is one.
func (n *nexusUnits) request(ctx context.Context) *request {
	n.mu.Lock()
	r := n.spare
	if r != nil {
		n.spare, r.next = r.next, nil
		n.spares--
	}
	n.mu.Unlock()
	if r == nil {
		own := &taskContext{}
		r = &request{own: own, ctx: own, cancel: own.cancel}
	}
	r.own.parent = ctx
	return r
}

// keep ends the context of a request that is no longer among the running tasks, so that nobody finds it any more, and keeps it
// for the next command, unless somebody can still hold on to it or to its context.
func (n *nexusUnits) keep(r *request) {
	own := r.own
	own.mu.Lock()
	fresh := own.done == nil && own.err == nil
	own.mu.Unlock()
	if !fresh || r.done != nil {
		own.cancel()
		return
	}
	own.parent = nil
	*r = request{own: own, ctx: r.ctx, cancel: r.cancel}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.spares < spareRequests {
		r.next, n.spare = n.spare, r
		n.spares++
	}
}
