package journal

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/command"
)

// What findings say again and again.
const (
	dataEntry   = "The replica has acknowledged this entry and does not have it. The other copies are not touched by that."
	dataKnown   = "Nothing is lost: what it held is known from a second place, or is not needed any more."
	dataUnknown = "What it held is not known, and may be the newest entries or a vote of any replica on this node. The other copies are not touched by that."
	dataNames   = "Of a log the name is lost, and with it all of that log: the replica it belongs to must not go on. The other copies are not touched by that."
	dataLog     = "The replica cannot go on from this log. The other copies are not touched by that."
	nextMend    = "Start the node: the replica takes no part until it has fetched the entry from another copy, which it does by itself. Look at the disk's health (smartctl). As long as no other copy is whole, keep a copy of this directory."
	nextDisk    = "Look at the disk's health (smartctl)."
	nextReplace = "Is another copy of every LUN whole? Then start the node: what cannot go on here is replaced by new replicas, and rebuilt from the others. Look at the disk's health (smartctl)."
	nextLog     = "No disk does that. Keep a copy of this directory and report it; then let this node's replicas be rebuilt from the others, as after a failed disk."
)

// errDisturbed: segments have been let go of while the journal was read.
var errDisturbed = errors.New("the journal has gone on meanwhile")

// reading is one reading of a journal.
type reading struct {
	*recovery
	dir    string
	report *Inspected
	places []block.Finding // what the journal itself is made of, and cannot be read
	told   map[int]bool    // places of which finer findings tell
	buf    []byte          // of the entry that was read last
}

// inspectOnce reads a journal. Entries are shown only if everything it has found was found before.
func inspectOnce(ctx context.Context, cfg InspectConfig, before map[foundAt]bool) (_ *Inspected, err error) {
	r := &reading{dir: cfg.Dir, told: map[int]bool{}, report: &Inspected{Segments: []InspectedSegment{}, Groups: []InspectedGroup{}, Findings: []block.Finding{}}}
	r.recovery = &recovery{folder: lookOnly(cfg.Dir), index: newIndex(), log: func(f block.Finding) { r.places = append(r.places, f) }}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.run(); errors.Is(err, ErrDamaged) {
		r.find("journal", nil, -1, "", err.Error(), "No replica on this node can go on from it. The other copies are not touched by that.", nextReplace)
		return r.report, nil
	} else if err != nil {
		return nil, err
	}
	if err := r.headers(); err != nil {
		return nil, err
	}
	for i := range r.places {
		if r.gone(r.places[i].Path) {
			return nil, errDisturbed
		}
	}
	r.index.done()
	for _, s := range r.index.segments {
		r.report.Segments = append(r.report.Segments, InspectedSegment{File: s.name, Sealed: s.sealed, Bytes: s.bytes, Live: s.live})
	}
	slices.SortStableFunc(r.places, func(a, b block.Finding) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Offset, b.Offset))
	})
	names := slices.Sorted(maps.Keys(r.index.names))
	if cfg.Group != "" {
		names = slices.DeleteFunc(names, func(name string) bool { return name != cfg.Group })
	}
	for i := range r.places {
		if f := &r.places[i]; f.Offset%blockBytes != 0 {
			r.tells(f.Path, f.Offset) // what a frame carries beside entries
		}
	}
	suspects := r.suspects()
	for _, name := range names {
		if err := r.look(ctx, r.index.names[name], suspects[name]); err != nil {
			return nil, err
		}
	}
	r.findPlaces()
	if cfg.Entry == nil || !r.report.confirmed(before) {
		return r.report, nil
	}
	for _, name := range names {
		if err := r.show(ctx, r.index.names[name], cfg.Entry); err != nil {
			return nil, err
		}
	}
	return r.report, nil
}

// headers looks at those that a start does not need: what they say is said by the segments beside them.
func (r *reading) headers() error {
	b := make([]byte, blockBytes)
	for _, s := range r.index.segments {
		if slices.ContainsFunc(r.places, func(f block.Finding) bool { return f.Path == s.name && f.Offset == 0 }) || s.bytes < blockBytes {
			continue
		}
		if err := s.dev.ReadAt(b, 0); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if h, err := parseHeader(b); err != nil || h.sequence != s.sequence {
			r.places = append(r.places, block.Finding{Kind: "journal", Path: s.name, What: "the header of a segment cannot be read"})
		}
	}
	return nil
}

// findPlaces puts what is damaged of the journal itself before what has come of that.
func (r *reading) findPlaces() {
	logs := r.report.Findings
	r.report.Findings = make([]block.Finding, 0, len(logs))
	data, next := dataKnown, nextDisk
	switch {
	case r.unknown:
		data, next = dataUnknown, nextReplace
	case r.index.nameless > 0:
		data, next = dataNames, nextReplace
	}
	for i, f := range r.places {
		if !r.told[i] {
			r.find(f.Kind, &f.Path, f.Offset, "", f.What, data, next)
		}
	}
	n := min(len(logs), maxFindings-len(r.report.Findings))
	r.report.Findings = append(r.report.Findings, logs[:n]...)
	r.report.MoreFindings += int64(len(logs) - n)
}

// find adds a finding; file is nil for what is in no particular one.
func (r *reading) find(kind string, file *string, off int64, group, what, data, next string) {
	if len(r.report.Findings) >= maxFindings {
		r.report.MoreFindings++
		return
	}
	path := r.dir
	if file != nil {
		path = filepath.Join(path, *file)
	}
	r.report.Findings = append(r.report.Findings, block.Finding{Kind: kind, Path: path, Offset: off, Volume: group, What: what, Data: data, Next: next})
}

// gone says that a segment has been let go of: before anything else is written to its file, that gets another name.
func (r *reading) gone(name string) bool {
	_, err := os.Stat(filepath.Join(r.dir, name))
	return errors.Is(err, os.ErrNotExist)
}

// payload reads what an entry carries into buf. whole is false if it is damaged.
func (r *reading) payload(e *entryAt) (data, exts []byte, whole bool, err error) {
	if e.damaged {
		return nil, nil, false, nil
	}
	if n := int(e.payload()); cap(r.buf) < n {
		r.buf = make([]byte, n)
	} else {
		r.buf = r.buf[:n]
	}
	if err := r.index.segment(e.segment).dev.ReadAt(r.buf, int64(e.offset)); err != nil {
		return nil, nil, false, err
	}
	data, exts = r.buf[:e.dataLen:e.dataLen], r.buf[e.dataLen:]
	return data, exts, payloadSum(data, exts) == e.sum, nil
}

// look checks a log and all its entries. suspect says why it must not be gone on from, or is nil.
func (r *reading) look(ctx context.Context, g *groupIndex, suspect error) error {
	if suspect != nil {
		r.find("log", nil, -1, g.name, suspect.Error(), "The replica may have forgotten what it has voted for or acknowledged, and must not go on. The other copies are not touched by that.", nextReplace)
	}
	v := InspectedGroup{Name: g.name, Bytes: g.bytes, CurrentTerm: stableNumber(g.stable["CurrentTerm"]), VoteTerm: stableNumber(g.stable[keyVoteTerm]), VotedFor: string(g.stable[keyVoteCandidate])}
	v.First, v.Last = g.bounds()
	if raw := g.stable[keySnapshot]; len(raw) > 0 {
		s, err := decodeSnapshot(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		v.Snapshot, v.SnapshotTerm, v.SnapshotBody = s.Meta.Index, s.Meta.Term, s.Body
	}
	for i := range g.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, index := &g.entries[i], g.first+uint64(i)
		if i == 0 {
			v.FirstTerm = e.term
		}
		s := r.index.segment(e.segment)
		entry := func(data, next, format string, args ...any) {
			r.find("entry", &s.name, int64(e.offset), g.name, fmt.Sprintf("entry %d ", index)+fmt.Sprintf(format, args...), data, next)
		}
		if e.term < v.LastTerm {
			entry(dataLog, nextLog, "is of term %d, and the one before it of term %d", e.term, v.LastTerm)
		}
		v.LastTerm = e.term
		data, _, whole, err := r.payload(e)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", s.name, err)
		case !whole && r.gone(s.name): // it has been cut off meanwhile, or moved
		case !whole:
			v.Damaged++
			r.tells(s.name, int64(e.offset))
			entry(dataEntry, nextMend, "cannot be read")
		case e.typ == raft.LogCommand && len(data) > 0:
			if _, err := command.Decode(data); err != nil {
				entry(dataLog, nextLog, "matches its checksum and does not decode: %v", err)
			}
		}
	}
	r.report.Groups = append(r.report.Groups, v)
	if suspect != nil {
		return nil
	}
	if v.First > v.Snapshot+1 {
		r.find("log", nil, -1, g.name, fmt.Sprintf("the log begins with entry %d, and its newest snapshot ends with entry %d: what was between is missing", v.First, v.Snapshot), dataLog, nextLog)
	}
	if v.CurrentTerm < v.LastTerm || v.VoteTerm > v.CurrentTerm {
		r.find("vote", nil, -1, g.name, fmt.Sprintf("the current term is %d, the last vote was in term %d, and the log ends in term %d", v.CurrentTerm, v.VoteTerm, v.LastTerm),
			"The replica has forgotten what it voted for: two owners could be elected in one term.", nextLog)
	}
	return nil
}

// tells notes that a finding on what a frame carries tells of the frame. In a segment whose frames are read, one that cannot be read, or not all of it,
// is among the places if a payload in it is damaged; frames are at multiples of a block.
func (r *reading) tells(name string, payload int64) {
	for i, f := range slices.Backward(r.places) {
		if f.Path == name && f.Offset <= payload && f.Offset >= blockBytes && f.Offset%blockBytes == 0 {
			r.told[i] = true
			return
		}
	}
}

// show calls visit for the entries of a log that are whole.
func (r *reading) show(ctx context.Context, g *groupIndex, visit func(InspectedEntry)) error {
	for i := range g.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := &g.entries[i]
		name := r.index.segment(e.segment).name
		data, _, whole, err := r.payload(e)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if !whole {
			continue
		}
		x := InspectedEntry{Group: g.name, Index: g.first + uint64(i), Term: e.term, Type: e.typ.String(), File: name, Offset: int64(e.offset), DataBytes: int(e.dataLen)}
		if e.typ == raft.LogCommand && len(data) > 0 {
			c, err := command.Decode(data)
			if err != nil {
				continue
			}
			x.Command = &c
		}
		visit(x)
	}
	return nil
}

func stableNumber(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// lookOnly is a directory of which nothing is changed or locked.
type lookOnly string

var errLookOnly = errors.New("the journal is only looked at")

func (d lookOnly) List() (names []string, err error) {
	files, err := os.ReadDir(string(d))
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names, err
}

func (d lookOnly) Open(name string) (vfs.Dev, error) {
	return vfs.OpenReadOnly(filepath.Join(string(d), name))
}

func (d lookOnly) Create(string, int64) (vfs.Dev, error) { return nil, errLookOnly }
func (d lookOnly) Rename(string, string) error           { return errLookOnly }
func (d lookOnly) Remove(string) error                   { return errLookOnly }
