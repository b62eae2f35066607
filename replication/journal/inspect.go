package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/metadb"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/command"
)

// Looking at a journal from outside: nothing is written, and nothing is locked, so it may be in use. What is found in one reading of a journal that is
// in use may have been in the middle of a change; what two readings in a row have found is damage.

// InspectConfig says what to look at.
type InspectConfig struct {
	Dir string
	// Entry is called for each entry of the log, in order; nil: never. Of a journal in use it may see entries that are replaced meanwhile.
	Entry func(e InspectedEntry)
}

// Inspected is what a journal holds, and what is wrong with it.
type Inspected struct {
	First        uint64             `json:"first_index"` // 0: the log is empty
	Last         uint64             `json:"last_index"`
	FirstTerm    uint64             `json:"first_term"`
	LastTerm     uint64             `json:"last_term"`
	CurrentTerm  uint64             `json:"current_term"`
	VoteTerm     uint64             `json:"vote_term"` // 0: it has never voted
	VotedFor     string             `json:"voted_for"`
	Snapshot     uint64             `json:"snapshot_index"` // 0: there is none
	SnapshotTerm uint64             `json:"snapshot_term"`
	SnapshotBody []byte             `json:"-"`
	Segments     []InspectedSegment `json:"segments"`
	Notes        []string           `json:"notes,omitempty"`
	Findings     []block.Finding    `json:"findings"`
	MoreFindings int64              `json:"more_findings,omitempty"` // that are not listed
}

// Sound says that nothing is wrong.
func (r *Inspected) Sound() bool { return len(r.Findings) == 0 }

// InspectedSegment is one file of the log.
type InspectedSegment struct {
	File    string `json:"file"`
	Min     uint64 `json:"min_index"` // the entries that count
	Max     uint64 `json:"max_index"` // 0: none
	Sealed  bool   `json:"sealed"`
	Bytes   int64  `json:"bytes"`   // of the file
	Written int64  `json:"written"` // up to the end of the last write that is whole
	Writes  int    `json:"writes"`
}

// InspectedEntry is one entry of the log. Command refers to memory that is used again when the callback returns.
type InspectedEntry struct {
	Index, Term uint64
	Type        string
	File        string
	Offset      int64
	DataBytes   int
	AppendedAt  time.Time
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
	dataReplica = "This replica cannot go on from what it has here, or must not. The other copies are not touched by that."
	nextReplica = "If a node is to use this journal, start it: a replica whose journal is damaged is taken out of its group and rebuilt from another copy. Look at the disk's health (smartctl). As long as no other copy is whole, keep a copy of this directory."
)

// Inspect looks at a journal. It writes nothing and locks nothing; of its memory, the copy of term and vote and of the log's table of segments is the largest part, or
// the largest entry. The error says why the journal could not be looked at: ErrNoJournal, ErrVersion, vfs.ErrUnsteady, ctx's, or the system's; what is damaged is in the report.
func Inspect(ctx context.Context, cfg InspectConfig) (*Inspected, error) {
	if err := hasJournal(cfg.Dir); err != nil {
		return nil, err
	}
	var before *Inspected
	for range maxReadings {
		r := &reading{cfg: cfg, report: &Inspected{Segments: []InspectedSegment{}, Findings: []block.Finding{}}}
		if err := r.all(ctx); err != nil {
			return nil, fmt.Errorf("inspect %s: %w", cfg.Dir, err)
		}
		if r.report.Sound() || before != nil && sameFindings(before, r.report) {
			return r.report, nil
		}
		before, cfg.Entry = r.report, nil
	}
	return nil, fmt.Errorf("inspect %s: %w: something else was wrong with it %d times", cfg.Dir, vfs.ErrUnsteady, maxReadings)
}

func hasJournal(dir string) error {
	for _, name := range []string{stableFile, walFolder, snapshotName} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%w: %s has none of %s, %s and %s", ErrNoJournal, dir, stableFile, walFolder, snapshotName)
}

func sameFindings(a, b *Inspected) bool {
	if len(a.Findings) != len(b.Findings) {
		return false
	}
	for i := range a.Findings {
		if a.Findings[i].Path != b.Findings[i].Path || a.Findings[i].Offset != b.Findings[i].Offset || a.Findings[i].Kind != b.Findings[i].Kind {
			return false
		}
	}
	return true
}

// reading is one reading of a journal.
type reading struct {
	cfg    InspectConfig
	report *Inspected
}

func (r *reading) find(f block.Finding) {
	if f.Data == "" {
		f.Data = dataReplica
	}
	if f.Next == "" {
		f.Next = nextReplica
	}
	if len(r.report.Findings) >= maxFindings {
		r.report.MoreFindings++
		return
	}
	r.report.Findings = append(r.report.Findings, f)
}

func (r *reading) note(format string, args ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}

// all reads the log first: in a journal in use, the terms and the snapshot that are read afterwards can only be newer.
func (r *reading) all(ctx context.Context) error {
	if err := r.log(ctx); err != nil {
		return err
	}
	p := r.report
	before := len(p.Findings)
	if err := r.snapshot(); err != nil {
		return err
	}
	if len(p.Findings) == before && p.First > p.Snapshot+1 {
		r.find(block.Finding{
			Kind: "log", Path: filepath.Join(r.cfg.Dir, walFolder), Offset: -1, What: fmt.Sprintf("the log begins with entry %d, and the newest snapshot ends with entry %d: what was between is missing", p.First, p.Snapshot),
		})
	}
	before = len(p.Findings)
	if err := r.stable(); err != nil {
		return err
	}
	if len(p.Findings) == before && p.CurrentTerm < p.LastTerm {
		r.find(block.Finding{
			Kind: "vote", Path: filepath.Join(r.cfg.Dir, stableFile), Offset: -1, What: fmt.Sprintf("the current term is %d, the log has entries of term %d", p.CurrentTerm, p.LastTerm),
			Data: "The replica has forgotten what it voted for: two owners could be elected in one term.",
		})
	}
	return nil
}

func (r *reading) snapshot() error {
	path := filepath.Join(r.cfg.Dir, snapshotName)
	s, err := OpenSnapshots(path)
	if errors.Is(err, ErrVersion) {
		return err
	}
	if err != nil {
		r.find(block.Finding{Kind: "snapshot", Path: path, Offset: 0, What: err.Error(), Data: "It is not known up to where the volume was durable when the log was cut off. " + dataReplica})
		return nil
	}
	if meta, body, ok := s.Newest(); ok {
		r.report.Snapshot, r.report.SnapshotTerm, r.report.SnapshotBody = meta.Index, meta.Term, body
	}
	return nil
}

// stable reads term and vote. They have no checksums of their own: that a number has become another one is not noticed, unless it contradicts another.
func (r *reading) stable() error {
	path := filepath.Join(r.cfg.Dir, stableFile)
	bad := func(what string) {
		r.find(block.Finding{Kind: "vote", Path: path, Offset: -1, What: what, Data: "The replica does not know what it has voted for and must not vote again. The other copies are not touched by that."})
	}
	values, err := readBolt(path, string(stableBucket))
	switch damaged := (*damagedError)(nil); {
	case errors.Is(err, os.ErrNotExist):
		bad("it is missing")
		return nil
	case errors.As(err, &damaged):
		bad(err.Error())
		return nil
	case err != nil:
		return err
	}
	for key, value := range values {
		if (key == "CurrentTerm" || key == keyVoteTerm) && len(value) != 8 {
			bad(fmt.Sprintf("%s has %d bytes, not 8", key, len(value)))
			return nil
		}
	}
	p := r.report
	p.CurrentTerm, p.VoteTerm, p.VotedFor = number(values["CurrentTerm"]), number(values[keyVoteTerm]), string(values[keyVoteCandidate])
	if p.VoteTerm > p.CurrentTerm {
		bad(fmt.Sprintf("it has voted in term %d, and the current term is %d", p.VoteTerm, p.CurrentTerm))
	}
	return nil
}

// log reads the table of segments and the segments.
func (r *reading) log(ctx context.Context) error {
	dir := filepath.Join(r.cfg.Dir, walFolder)
	table := filepath.Join(dir, metadb.FileName)
	files, err := segmentFiles(dir)
	if err != nil {
		return err
	}
	state, err := readTable(table)
	switch damaged := (*damagedError)(nil); {
	case errors.Is(err, os.ErrNotExist) && len(files) == 0:
		return nil // it was never opened, or that was cut off
	case errors.Is(err, os.ErrNotExist):
		r.find(block.Finding{Kind: "table", Path: table, Offset: -1, What: "the table of segments is missing, and there are segments", Data: "Which entries count is not known. " + dataReplica})
		return nil
	case errors.As(err, &damaged):
		r.find(block.Finding{Kind: "table", Path: table, Offset: -1, What: err.Error(), Data: "Which entries count is not known. " + dataReplica})
		return nil
	case err != nil:
		return err
	}
	var last raft.Log // the last entry that counts
	for i, info := range state.Segments {
		delete(files, segmentName(info))
		for _, what := range flaws(state, i) {
			r.find(block.Finding{Kind: "table", Path: table, Offset: -1, What: what})
		}
		s := &segmentScan{r: r, info: info, tail: i == len(state.Segments)-1 && info.SealTime.IsZero(), last: &last, path: filepath.Join(dir, segmentName(info))}
		if err := s.scan(ctx); err != nil {
			return err
		}
	}
	for name := range files {
		r.note("%s is not part of the log any more; it is deleted at the next start", name)
	}
	r.report.Last, r.report.LastTerm = last.Index, last.Term
	return nil
}
