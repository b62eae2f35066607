package replication

// park notes that an entry has taken effect though it is not settled yet.
func (p *proposer) park(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.inflight[id]; e != nil {
		e.parked = true
	}
}
