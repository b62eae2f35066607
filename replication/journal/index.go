package journal

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/hashicorp/raft"
)

// index says what the frames say so far: for each group, where its entries are, and its stable values. It changes by records alone,
// in the order in which they are in the journal, so that what a start finds is what was there before it. Guarded by Journal.mu.
type index struct {
	groups   map[uint32]*groupIndex
	names    map[string]*groupIndex
	segments []*segment // oldest first; the last one is written to
	next     uint32     // number of the next group
	nameless int        // groups that were dropped because both places of their names were bad
	// early has, while a journal is read, entries that were moved and whose first place is gone already: they come after what follows them in
	// the log. nil at any other time.
	early map[*groupIndex]map[uint64]entryAt
}

// entryAt is where one entry is: 32 bytes for each in the log.
type entryAt struct {
	term    uint64
	segment uint32 // its sequence number
	offset  uint32
	dataLen uint32
	extLen  uint32
	sum     uint32
	typ     raft.LogType
	damaged bool // its payload is lost
}

func (e *entryAt) place() place { return place{e.segment, e.offset} }

func (e *entryAt) payload() int64 { return int64(e.dataLen) + int64(e.extLen) }

// groupIndex is one group.
type groupIndex struct {
	number  uint32
	name    string
	front   uint64 // entries before it do not count
	first   uint64 // index of entries[0]
	entries []entryAt
	stable  map[string][]byte
	bytes   int64 // of payload
	damaged int   // entries whose payload is lost
}

// newIndex returns one for reading a journal.
func newIndex() *index {
	return &index{groups: map[uint32]*groupIndex{}, names: map[string]*groupIndex{}, next: 1, early: map[*groupIndex]map[uint64]entryAt{}}
}

// end is the index behind the last entry.
func (g *groupIndex) end() uint64 { return g.first + uint64(len(g.entries)) }

// bounds returns the first and the last index, 0 and 0 of an empty log.
func (g *groupIndex) bounds() (first, last uint64) {
	if len(g.entries) == 0 {
		return 0, 0
	}
	return g.first, g.end() - 1
}

func (g *groupIndex) at(i uint64) *entryAt {
	if i < g.first || i >= g.end() {
		return nil
	}
	return &g.entries[i-g.first]
}

// last is the segment that is written to.
func (x *index) last() *segment { return x.segments[len(x.segments)-1] }

func (x *index) segment(sequence uint32) *segment {
	if len(x.segments) == 0 {
		return nil
	}
	// They are consecutive.
	i := int64(sequence) - int64(x.segments[0].sequence)
	if i < 0 || i >= int64(len(x.segments)) {
		return nil
	}
	return x.segments[i]
}

func (x *index) hold(g *groupIndex, e *entryAt, n int) {
	g.bytes += int64(n) * e.payload()
	if e.damaged {
		g.damaged += n
	}
	if s := x.segment(e.segment); s != nil {
		s.live += n
		s.liveSize += int64(n) * e.payload()
	}
}

// cutFront lets go of the entries before i, cutBack of those from i on.
func (x *index) cutFront(g *groupIndex, i uint64) {
	g.front = max(g.front, i)
	if i <= g.first {
		return
	}
	n := min(i-g.first, uint64(len(g.entries)))
	for k := range g.entries[:n] {
		x.hold(g, &g.entries[k], -1)
	}
	g.entries, g.first = g.entries[n:], g.first+n
	if len(g.entries) == 0 {
		g.entries, g.first = nil, max(g.first, i)
	}
}

func (x *index) cutBack(g *groupIndex, i uint64) {
	if i >= g.end() {
		return
	}
	keep := uint64(0)
	if i > g.first {
		keep = i - g.first
	}
	for k := range g.entries[keep:] {
		x.hold(g, &g.entries[keep:][k], -1)
	}
	g.entries = g.entries[:keep]
}

// errRecord: a record says what cannot be.
var errRecord = errors.New("a record that cannot be")

// apply makes one record of a segment take effect. damaged says of an entry that its payload is not there; of names and values recovery.apply has taken care.
func (x *index) apply(s *segment, r *record, damaged bool) error {
	if r.kind == kindGroup {
		return x.begin(r)
	}
	g := x.groups[r.group]
	if g == nil {
		return fmt.Errorf("%w: %v of group %d, which is not there", errRecord, r.kind, r.group)
	}
	e := entryAt{
		term: r.term, segment: uint32(s.sequence), offset: r.offset, dataLen: r.dataBytes, extLen: r.extBytes, sum: r.sum, typ: r.typ,
		damaged: damaged || r.kind == kindLost,
	}
	if e.payload() == 0 {
		e.damaged = false // nothing that could be lost
	}
	switch r.kind {
	case kindEntry:
		x.forgetEarly(g, r)
		switch {
		case len(g.entries) == 0:
			g.first, g.front = r.index, min(g.front, r.index)
		case r.index > g.end(): // it goes on behind a gap: what was before is obsolete
			x.cutBack(g, 0)
			delete(x.early, g)
			g.first, g.front = r.index, r.index
		case r.index < g.first: // it begins again before all there is; or, when a journal is read, what lies between has been moved
			x.cutBack(g, 0)
			g.first, g.front = r.index, min(g.front, r.index)
		default:
			x.cutBack(g, r.index)
		}
		g.entries = append(g.entries, e)
		x.hold(g, &e, 1)
	case kindMoved, kindLost:
		was := g.at(r.index)
		switch {
		case was == nil && x.early != nil && r.index >= g.front:
			if x.early[g] == nil {
				x.early[g] = map[uint64]entryAt{}
			}
			x.early[g][r.index] = e
			return nil
		case was == nil || was.term != r.term:
			return nil // it has been cut off meanwhile
		}
		x.hold(g, was, -1)
		*was = e
		x.hold(g, was, 1)
	case kindFront:
		x.forgetEarly(g, r)
		x.cutFront(g, r.index)
	case kindBack:
		x.forgetEarly(g, r)
		x.cutBack(g, r.index)
	case kindForget:
		delete(x.early, g)
		x.cutBack(g, 0)
		delete(x.groups, g.number)
		if x.names[g.name] == g {
			delete(x.names, g.name)
		}
	case kindStable:
		g.stable[string(r.exts)] = slices.Clone(r.data)
	default:
		return fmt.Errorf("%w: kind %d", errRecord, r.kind)
	}
	return nil
}

func (x *index) forgetEarly(g *groupIndex, r *record) {
	maps.DeleteFunc(x.early[g], func(i uint64, _ entryAt) bool { return r.ends(i) })
}

// ends says whether the record ends entry i of its group.
func (r *record) ends(i uint64) bool {
	switch r.kind {
	case kindEntry, kindBack:
		return i >= r.index
	case kindFront, kindGroup:
		return i < r.index
	case kindForget:
		return true
	}
	return false
}

// done ends the reading of a journal: what was moved and goes before what is there is put there.
func (x *index) done() {
	for number, g := range x.groups {
		if g.name == "" { // both places were bad: its log is gone, and whoever asks for it finds that
			delete(x.early, g)
			x.cutBack(g, 0)
			delete(x.groups, number)
			x.nameless++
		}
	}
	for g, early := range x.early {
		var before []entryAt
		if len(g.entries) == 0 {
			// All of it was moved.
			for i := slices.Min(append(slices.Collect(maps.Keys(early)), math.MaxUint64)); ; i++ {
				e, ok := early[i]
				if !ok {
					break
				}
				if len(before) == 0 {
					g.first = i
				}
				before = append(before, e)
			}
			g.entries = before
		} else {
			for i := g.first - 1; ; i-- {
				e, ok := early[i]
				if !ok {
					break
				}
				before = append(before, e)
			}
			slices.Reverse(before)
			g.entries, g.first = append(before, g.entries...), g.first-uint64(len(before))
		}
		for i := range before {
			x.hold(g, &before[i], 1)
		}
	}
	x.early = nil
}

// begin is kindGroup: a new group, or one that is restated.
// A name is "" while it cannot be read: a group has it in two places.
func (x *index) begin(r *record) error {
	name := string(r.data)
	if g := x.groups[r.group]; g != nil {
		if g.name == "" && name != "" && x.names[name] == nil {
			g.name = name
			x.names[name] = g
		}
		if g.name != name {
			return fmt.Errorf("%w: group %d is %s and %s", errRecord, r.group, g.name, name)
		}
		x.forgetEarly(g, r)
		x.cutFront(g, r.index)
		return nil
	}
	if x.names[name] != nil {
		return fmt.Errorf("%w: %s is two groups", errRecord, name)
	}
	g := &groupIndex{number: r.group, name: name, front: r.index, first: r.index, stable: map[string][]byte{}}
	x.groups[r.group] = g
	if name != "" {
		x.names[name] = g
	}
	x.next = max(x.next, r.group+1)
	return nil
}

// table restates every group.
func (x *index) table() (records []record) {
	numbers := make([]uint32, 0, len(x.groups))
	for n := range x.groups {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		g := x.groups[n]
		records = append(records, newRecord(record{group: n, kind: kindGroup, index: max(g.front, g.first), data: []byte(g.name)}))
		keys := make([]string, 0, len(g.stable))
		for key := range g.stable {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		for _, key := range keys {
			records = append(records, newRecord(record{group: n, kind: kindStable, exts: []byte(key), data: g.stable[key]}))
		}
	}
	return records
}
