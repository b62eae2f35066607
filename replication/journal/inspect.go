package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/replication/command"
)

// Looking at a journal from outside: nothing is written, and nothing is locked, so it may be in use. What is found in one reading of a journal that is
// in use may have been in the middle of a change; what two readings in a row have found is damage. Nothing in a segment that has been let go of meanwhile
// counts: its file has another name then, or none. inspectlog.go reads; here is what comes of it.
//
// Of a full segment the footer and the entries that count are looked at, not the frames: they are needed only if the footer is lost.

// InspectConfig says what to look at.
type InspectConfig struct {
	Dir   string
	Group string // the only log that is looked at; "": all
	// Entry is called for each entry of the logs that is whole, log by log, in order; nil: never.
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
	before := map[foundAt]bool{}
	for range maxReadings {
		report, err := inspectOnce(ctx, cfg, before)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, errDisturbed):
			continue // a segment was let go of meanwhile
		case err != nil:
			return nil, fmt.Errorf("inspect %s: %w", cfg.Dir, err)
		case report.confirmed(before):
			return report, nil
		}
		clear(before)
		for i := range report.Findings {
			before[at(&report.Findings[i])] = true
		}
	}
	return nil, fmt.Errorf("inspect %s: %w: something else was wrong with it %d times", cfg.Dir, vfs.ErrUnsteady, maxReadings)
}

// foundAt tells findings apart from one reading to the next. What is said of them may have changed meanwhile.
type foundAt struct {
	kind, path, volume string
	offset             int64
}

func at(f *block.Finding) foundAt { return foundAt{f.Kind, f.Path, f.Volume, f.Offset} }

// confirmed says that the reading before has found everything, too.
func (r *Inspected) confirmed(before map[foundAt]bool) bool {
	return !slices.ContainsFunc(r.Findings, func(f block.Finding) bool { return !before[at(&f)] })
}
