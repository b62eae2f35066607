package replication

import (
	"time"

	"github.com/hashicorp/raft"
)

// What the Rafts of an owner need not send: requests that tell a member nothing new, and all of a quiet group (quiet.go).

// withhold keeps a request that would tell a member only what it knows until there is something to tell, and then answers it in the
// member's place. Raft sends such requests every Timing.Commit; of a group that is not quiet one a second goes out. false: it has to be
// sent.
func (p *peers) withhold(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) bool {
	g := p.g
	if len(req.Entries) > 0 || req.PrevLogEntry != req.LeaderCommitIndex || !g.told(id, req) {
		return false
	}
	l := g.lull.Load()
	if l == nil {
		l = &lull{done: make(chan struct{})}
		if !g.lull.CompareAndSwap(nil, l) {
			return false
		}
	}
	// Looked at after the lull is seen by whoever stores an entry.
	if last, err := g.cfg.Journal.LastIndex(); err != nil || last != req.PrevLogEntry || g.storing.Load() != g.stored.Load() {
		return false
	}
	var pause <-chan time.Time
	if q := g.quiet.Load(); q == nil || q.last != req.PrevLogEntry {
		timer := time.NewTimer(holdFor)
		defer timer.Stop()
		pause = timer.C
	}
	select {
	case <-l.done:
	case <-p.closed:
	case <-pause:
		return false
	}
	*resp = raft.AppendEntriesResponse{RPCHeader: req.RPCHeader, Term: req.Term, LastLog: req.PrevLogEntry, Success: true}
	return true
}

// lull is the time in which nothing is stored.
type lull struct{ done chan struct{} }

// endLull lets go of what is held.
func (g *Group) endLull() {
	if l := g.lull.Load(); l != nil && g.lull.CompareAndSwap(l, nil) {
		close(l.done)
	}
}

// told says whether a member has answered all that req would tell it, in this term.
func (g *Group) told(id raft.ServerID, req *raft.AppendEntriesRequest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gate != nil && g.gateTerm == req.Term && g.match[id] == req.PrevLogEntry && g.heardCommit[id] == req.LeaderCommitIndex
}

// holding is a pipeline that holds what a quiet group need not send.
type holding struct {
	raft.AppendPipeline
	p  *peers
	id raft.ServerID
}

// pipe returns the pipeline to a member, nil if there is none.
func (p *peers) pipe(id raft.ServerID) *holding {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pipes[id]
}

func (h *holding) Close() error {
	h.p.mu.Lock()
	if h.p.pipes[h.id] == h {
		delete(h.p.pipes, h.id)
	}
	h.p.mu.Unlock()
	err := h.AppendPipeline.Close()
	if a, ok := h.AppendPipeline.(interface{ Answer(raft.AppendFuture) }); ok {
		a.Answer(&quiet{}) // no success: see raftLog
	}
	return err
}

// contact gives Raft an answer to a heartbeat that was not sent. Answers on a pipeline are what it takes as contact without a timer of
// its own.
func (h *holding) contact(q *quiet) {
	if a, ok := h.AppendPipeline.(interface{ Answer(raft.AppendFuture) }); ok {
		a.Answer(q)
	}
}

// A quiet is its own answered heartbeat: it implements raft.AppendFuture.
func (q *quiet) Error() error                          { return nil }
func (q *quiet) Start() time.Time                      { return q.since }
func (q *quiet) Request() *raft.AppendEntriesRequest   { return &q.beat }
func (q *quiet) Response() *raft.AppendEntriesResponse { return &q.answer }

func (h *holding) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if h.p.withhold(h.id, req, resp) {
		return nil, nil // Raft takes its answers from Consumer and does not look at this one
	}
	return h.AppendPipeline.AppendEntries(req, resp)
}
