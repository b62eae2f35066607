package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/command"
)

// Looking at a journal from outside: nothing is written, and nothing is locked, so it may be in use. What is found in one reading of a journal that is
// in use may have been in the middle of a change; what two readings in a row have found is damage.

// InspectConfig says what to look at.
type InspectConfig struct {
	Dir string
	// Entry is called for each entry of the logs, log by log, in order; nil: never. Of a journal in use it may see entries that are replaced meanwhile.
	Entry func(e InspectedEntry)
}

// Inspected is what a journal holds, and what is wrong with it.
type Inspected struct {
	Segments     []InspectedSegment `json:"segments"`
	Groups       []InspectedGroup   `json:"groups"`
	Findings     []block.Finding    `json:"findings"`
	MoreFindings int64              `json:"more_findings,omitempty"` // that are not listed
}

// Sound says that nothing is wrong.
func (r *Inspected) Sound() bool { return len(r.Findings) == 0 }

// InspectedGroup is the log of one group.
type InspectedGroup struct {
	Name         string `json:"name"`
	First        uint64 `json:"first_index"` // 0: the log is empty
	Last         uint64 `json:"last_index"`
	FirstTerm    uint64 `json:"first_term"`
	LastTerm     uint64 `json:"last_term"`
	Bytes        int64  `json:"bytes"` // of its entries
	CurrentTerm  uint64 `json:"current_term"`
	VoteTerm     uint64 `json:"vote_term"` // 0: it has never voted
	VotedFor     string `json:"voted_for"`
	Snapshot     uint64 `json:"snapshot_index"` // 0: there is none
	SnapshotTerm uint64 `json:"snapshot_term"`
	SnapshotBody []byte `json:"-"`
	Damaged      int    `json:"damaged_entries"`
}

// InspectedSegment is one file.
type InspectedSegment struct {
	File   string `json:"file"`
	Sealed bool   `json:"sealed"`
	Bytes  int64  `json:"bytes"`
	Live   int    `json:"live_entries"` // that count
}

// InspectedEntry is one entry of a log. Command refers to memory that is used again when the callback returns.
type InspectedEntry struct {
	Group       string
	Index, Term uint64
	Type        string
	File        string
	Offset      int64
	DataBytes   int
	Command     *command.Entry // nil if it is none, or of a witness
}

// ErrNoJournal: there is none in the directory.
var ErrNoJournal = errors.New("there is no journal here")

const (
	maxFindings = 1000
	// maxReadings bounds how often a journal is read because something was found that the reading before had not found.
	maxReadings = 20
)

// What findings say again and again.
const (
	dataReplica = "The replica has acknowledged this entry and does not have it. The other copies are not touched by that."
	nextReplica = "Start the node: the replica takes no part until it has fetched the entry from another copy, which it does by itself. Look at the disk's health (smartctl). As long as no other copy is whole, keep a copy of this directory."
)

// HasJournal says whether a directory holds one.
func HasJournal(dir string) bool {
	files, err := os.ReadDir(dir)
	return err == nil && slices.ContainsFunc(files, func(f os.DirEntry) bool { _, ok := segmentSequence(f.Name()); return ok })
}

// Inspect looks at a journal. It writes nothing and locks nothing; the largest part of its memory are 32 bytes per entry, or the largest entry. The error says
// why the journal could not be looked at: ErrNoJournal, ErrVersion, vfs.ErrUnsteady, ctx's, or the system's; what is damaged is in the report.
func Inspect(ctx context.Context, cfg InspectConfig) (*Inspected, error) {
	if !HasJournal(cfg.Dir) {
		return nil, fmt.Errorf("%w: %s has no *%s", ErrNoJournal, cfg.Dir, segmentSuffix)
	}
	var before *Inspected
	for range maxReadings {
		report, err := inspectOnce(ctx, cfg)
		if errors.Is(err, os.ErrNotExist) {
			continue // a segment was let go of meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("inspect %s: %w", cfg.Dir, err)
		}
		if report.Sound() || before != nil && sameFindings(before, report) {
			return report, nil
		}
		before, cfg.Entry = report, nil
	}
	return nil, fmt.Errorf("inspect %s: %w: something else was wrong with it %d times", cfg.Dir, vfs.ErrUnsteady, maxReadings)
}

func sameFindings(a, b *Inspected) bool {
	return slices.EqualFunc(a.Findings, b.Findings, func(x, y block.Finding) bool {
		return x.Path == y.Path && x.Offset == y.Offset && x.Kind == y.Kind
	})
}

func inspectOnce(ctx context.Context, cfg InspectConfig) (report *Inspected, err error) {
	report = &Inspected{Segments: []InspectedSegment{}, Groups: []InspectedGroup{}, Findings: []block.Finding{}}
	find := func(f block.Finding) {
		if f.Data == "" {
			f.Data = dataReplica
		}
		if f.Next == "" {
			f.Next = nextReplica
		}
		f.Path = filepath.Join(cfg.Dir, f.Path)
		if len(report.Findings) >= maxFindings {
			report.MoreFindings++
			return
		}
		report.Findings = append(report.Findings, f)
	}
	r := &recovery{folder: lookOnly(cfg.Dir), index: newIndex(), log: find}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.run(); errors.Is(err, ErrDamaged) {
		find(block.Finding{Kind: "journal", Offset: -1, What: err.Error(), Data: "No replica on this node can go on from it. The other copies are not touched by that."})
		return report, nil
	} else if err != nil {
		return nil, err
	}
	r.index.done()
	for _, s := range r.index.segments {
		report.Segments = append(report.Segments, InspectedSegment{File: s.name, Sealed: s.sealed, Bytes: s.bytes, Live: s.live})
	}
	suspects := r.suspects()
	names := make([]string, 0, len(r.index.names))
	for name := range r.index.names {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		g := r.index.names[name]
		if err := suspects[name]; err != nil {
			find(block.Finding{
				Kind: "journal", Offset: -1, What: fmt.Sprintf("%s: %v", name, err), Data: "The replica does not know what it has voted for or acknowledged, and must not go on. The other copies are not touched by that.",
				Next: "Start the node: the replica is replaced by a new one, and rebuilt from the others.",
			})
		}
		v, err := r.look(ctx, g, cfg.Entry, find)
		if err != nil {
			return nil, err
		}
		report.Groups = append(report.Groups, v)
	}
	return report, nil
}

// look reads a log through.
func (r *recovery) look(ctx context.Context, g *groupIndex, visit func(InspectedEntry), find func(block.Finding)) (v InspectedGroup, err error) {
	v = InspectedGroup{Name: g.name, Bytes: g.bytes, CurrentTerm: stableNumber(g.stable["CurrentTerm"]), VoteTerm: stableNumber(g.stable[keyVoteTerm]), VotedFor: string(g.stable[keyVoteCandidate])}
	v.First, v.Last = g.bounds()
	if raw := g.stable[keySnapshot]; len(raw) > 0 {
		s, err := decodeSnapshot(raw)
		if err != nil {
			return v, err
		}
		v.Snapshot, v.SnapshotTerm, v.SnapshotBody = s.Meta.Index, s.Meta.Term, s.Body
	}
	for i := range g.entries {
		if err := ctx.Err(); err != nil {
			return v, err
		}
		e := &g.entries[i]
		s := r.index.segment(e.segment)
		at := g.first + uint64(i)
		if i == 0 {
			v.FirstTerm = e.term
		}
		v.LastTerm = e.term
		buf := make([]byte, e.payload())
		if !e.damaged {
			if err := s.dev.ReadAt(buf, int64(e.offset)); err != nil {
				return v, err
			}
		}
		if e.damaged || payloadSum(buf[:e.dataLen], buf[e.dataLen:]) != e.sum {
			v.Damaged++
			find(block.Finding{Kind: "entry", Path: s.name, Offset: int64(e.offset), What: fmt.Sprintf("entry %d of %s cannot be read", at, g.name)})
			continue
		}
		if visit != nil {
			x := InspectedEntry{Group: g.name, Index: at, Term: e.term, Type: e.typ.String(), File: s.name, Offset: int64(e.offset), DataBytes: int(e.dataLen)}
			if e.typ == raft.LogCommand && e.dataLen > 0 {
				c, err := command.Decode(buf[:e.dataLen])
				if err != nil {
					find(block.Finding{Kind: "entry", Path: s.name, Offset: int64(e.offset), What: fmt.Sprintf("entry %d of %s matches its checksum and does not decode: %v", at, g.name, err)})
					continue
				}
				x.Command = &c
			}
			visit(x)
		}
	}
	if v.First > v.Snapshot+1 {
		find(block.Finding{Kind: "log", Offset: -1, What: fmt.Sprintf("the log of %s begins with entry %d, and its newest snapshot ends with entry %d: what was between is missing", g.name, v.First, v.Snapshot)})
	}
	if v.CurrentTerm < v.LastTerm || v.VoteTerm > v.CurrentTerm {
		find(block.Finding{
			Kind: "vote", Offset: -1, What: fmt.Sprintf("%s: the current term is %d, the last vote was in term %d, and the log ends in term %d", g.name, v.CurrentTerm, v.VoteTerm, v.LastTerm),
			Data: "The replica has forgotten what it voted for: two owners could be elected in one term.",
		})
	}
	return v, nil
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
