package witness

// holds checks what must hold of every state, of what is on disk there, so also if every node loses its power in it:
//   - What was committed, so all that was acknowledged, is on two disks, and its data on one: it never vanishes.
//   - A copy that is in sync, as the newest owner sees it who serves, or saw it when it ceased to, has every acknowledged write, and
//     the witness would vote for it. So would it for the owner itself.
//   - So for any copy that has all that may have been acknowledged, whatever its standing: every entry that the witness and the
//     other copy both have.
//
// Beside these, settle looks at every write when it is acknowledged, and elect at every owner when it is elected.
func (m *model) holds(t *state) {
	var logs [modelNodes]entries
	for i := range t.nodes {
		logs[i] = t.nodes[i].log.upTo(t.nodes[i].durable)
	}
	witness := &logs[theWitness]
	hasAcked := func(l *entries) bool {
		for i := uint8(1); i <= t.committed.n; i++ {
			if t.acked&bit(i) != 0 && l.at(i) != t.committed.at(i) {
				return false
			}
		}
		return true
	}
	for i := uint8(1); i <= t.committed.n; i++ {
		have, data := 0, 0
		for j := range t.nodes {
			if logs[j].at(i) == t.committed.at(i) {
				have++
				if j != theWitness {
					data++
				}
			}
		}
		check(have >= 2 && data >= 1, "committed entry %d is on %d disks, with its data on %d", i, have, data)
	}
	inSync := t.kept
	for id := range uint8(theWitness) {
		if n := &t.nodes[id]; n.role == owner && n.term == t.newestTerm() {
			inSync = m.inSync(n, id)
		}
	}
	for d := range uint8(theWitness) {
		log := &logs[d]
		if inSync&bit(d) != 0 {
			check(hasAcked(log), "%c is in sync and lacks an acknowledged write", 'A'+d)
			check(log.upToDate(witness), "%c is in sync and the witness would not vote for it", 'A'+d)
		}
		holdsAll := true
		other := &logs[otherCopy(d)]
		for i := uint8(1); i <= witness.n; i++ {
			if witness.at(i) == other.at(i) && log.at(i) != witness.at(i) {
				holdsAll = false
			}
		}
		if holdsAll {
			check(hasAcked(log), "%c holds what two others hold and lacks an acknowledged write", 'A'+d)
			check(log.upToDate(witness), "%c holds all that may have been acknowledged and the witness would not vote for it", 'A'+d)
		}
		if m.strict && hasAcked(log) {
			check(log.upToDate(witness), "%c holds all that was acknowledged and the witness would not vote for it", 'A'+d)
		}
	}
}
