package journal

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// Damage is an entry whose payload is lost. Another copy of it is the same entry if its index and term are the same (Raft's log matching
// property); Sum makes sure of it.
type Damage struct {
	Index, Term uint64
	Sum         uint32 // CRC32C of Data and Extensions
}

func (l *groupLog) Damaged() (out []Damage) {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	g := l.group()
	if g == nil || g.damaged == 0 {
		return nil
	}
	for i := range g.entries {
		if e := &g.entries[i]; e.damaged {
			out = append(out, Damage{Index: g.first + uint64(i), Term: e.term, Sum: e.sum})
		}
	}
	return out
}

func (l *groupLog) Mend(e *raft.Log) error {
	rec := newRecord(record{kind: kindMoved, typ: e.Type, index: e.Index, term: e.Term, data: e.Data, exts: e.Extensions})
	l.j.mu.Lock()
	before, err := l.ready()
	if err != nil {
		l.j.mu.Unlock()
		return err
	}
	g := l.group()
	if g == nil || g.at(e.Index) == nil {
		l.j.mu.Unlock()
		return ErrCutOff
	}
	if was := g.at(e.Index); was.term != e.Term || was.typ != e.Type || was.sum != rec.sum || was.dataLen != rec.dataBytes || was.extLen != rec.extBytes {
		l.j.mu.Unlock()
		return fmt.Errorf("entry %d of term %d is not the one that is damaged, which is of term %d", e.Index, e.Term, was.term)
	}
	rec.group, rec.from = l.number, g.at(e.Index).place()
	return l.j.submit(&request{records: append(before, rec), done: make(chan error, 1)})
}
