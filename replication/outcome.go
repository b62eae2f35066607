package replication

import "sanctuary/blockstore/block"

// What becomes of an entry that was under way when this node ceased to own the LUN is open: it may yet be committed. Its writers have been told so
// (block.ErrUnknown), and hear how it ended as soon as this replica's log says it.

// unknown tells the writers that the entry's fate is open. It stays in inflight, where settled or seal will find it.
func (p *proposer) unknown(id uint64) {
	p.mu.Lock()
	e := p.inflight[id]
	if e == nil || e.failed {
		p.mu.Unlock()
		return
	}
	e.failed = true
	p.eager--
	p.arrivedLocked(e)
	p.mu.Unlock()
	e.finish(block.ErrUnknown)
}

// tell resolves an unknown outcome.
func (e *entry) tell(err error) {
	for _, q := range e.parts {
		select {
		case q.w.late <- err:
		default: // a write in several parts; nobody asks
		}
	}
}

// open says whether an entry's fate is unknown.
func (p *proposer) open() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.inflight) > p.eager
}

// seal settles entries whose fate was open: everything up to an entry of this term has been applied, so what was proposed
// under an earlier one has been applied too, or never will be (rule F). One that was applied and is parked is left to settled: to say that
// it never happened would be false.
func (p *proposer) seal(term uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, e := range p.inflight {
		if e.failed && !e.parked && e.parts[0].w.fence < term {
			delete(p.inflight, id)
			e.tell(block.ErrNotOwner)
		}
	}
}

// abandon ends the wait for open outcomes: what this replica's log would have told is not going to be applied here.
func (p *proposer) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, e := range p.inflight {
		if e.failed {
			delete(p.inflight, id)
			e.tell(block.ErrUnknown)
		}
	}
}
