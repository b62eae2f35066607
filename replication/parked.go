package replication

// acknowledge ends an entry's writes once every replica in sync has it, which is normally at once.
func (g *Group) acknowledge(proposal, index uint64) {
	g.mu.Lock()
	wait := g.gate != nil && !g.gate.Synced(index)
	if wait {
		g.parked = append(g.parked, parked{index, proposal})
	}
	g.mu.Unlock()
	if wait {
		g.writes.park(proposal) // before settledIndex says that it has been applied
	} else {
		g.writes.settled(proposal, nil)
	}
}

// releaseParked ends what need not wait any more: the replica it waited for has it, or is out of sync, or this node has
// ceased to lead (then the entry is committed, and the next owner has it).
func (g *Group) releaseParked() {
	for {
		g.mu.Lock()
		if len(g.parked) == 0 || g.gate != nil && !g.gate.Synced(g.parked[0].index) {
			g.mu.Unlock()
			return
		}
		p := g.parked[0]
		g.parked = g.parked[1:]
		g.mu.Unlock()
		g.writes.settled(p.proposal, nil)
	}
}

// park notes that an entry has taken effect though it is not settled yet.
func (p *proposer) park(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.inflight[id]; e != nil {
		e.parked = true
	}
}
