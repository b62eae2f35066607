package catalog

import (
	"errors"
	"fmt"
)

// Code says why a change was refused. The values travel between nodes and in the API; they never change meaning.
type Code string

// Codes of refusals.
const (
	CodeInvalid  Code = "invalid"   // the change itself is wrong: a name, a size, a placement
	CodeExists   Code = "exists"    // the name is taken
	CodeNotFound Code = "not_found" // it speaks of something the catalog does not have
	CodeIdentity Code = "identity"  // the name is known under another ID: a blank or exchanged disk
	CodeInUse    Code = "in_use"    // something still depends on what it would remove
	CodeStale    Code = "stale"     // the proposer looked at an older catalog; look again
	CodeFull     Code = "full"      // a number space or a limit is used up
)

// Refusal is the answer to a change that was understood and not made. It is the same on every node, and nothing was
// changed. Text is for an operator: what happened, what it means, what to do next.
type Refusal struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

func (r *Refusal) Error() string { return r.Text }

// Is makes errors.Is(err, ErrNotFound) true for every refusal with that code.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Text == "" && t.Code == r.Code
}

// Sentinels for errors.Is: they match every Refusal of their code.
var (
	ErrInvalid  error = &Refusal{Code: CodeInvalid}
	ErrExists   error = &Refusal{Code: CodeExists}
	ErrNotFound error = &Refusal{Code: CodeNotFound}
	ErrIdentity error = &Refusal{Code: CodeIdentity}
	ErrInUse    error = &Refusal{Code: CodeInUse}
	ErrStale    error = &Refusal{Code: CodeStale}
	ErrFull     error = &Refusal{Code: CodeFull}
)

func refuse(code Code, format string, args ...any) error {
	return &Refusal{Code: code, Text: fmt.Sprintf(format, args...)}
}

// Errors of the group rather than of a change.
var (
	// ErrUnknown: leadership was lost, or the caller's time ended, after the change had been handed to Raft. It may
	// or may not be made. Every change may be proposed again unaltered: doing it twice is doing it once.
	ErrUnknown = errors.New("the outcome of the catalog change is unknown; propose it again")
	// ErrClosed: the catalog on this node has been closed.
	ErrClosed = errors.New("the catalog is closed")
	// ErrCorrupt: stored state does not match its checksum, or cannot be understood. Nothing after it was applied.
	ErrCorrupt = errors.New("the catalog's stored state is damaged")
)

// ErrNotLeader matches every *NotLeaderError with errors.Is.
var ErrNotLeader = errors.New("this node does not lead the catalog")

// NotLeaderError says that only the leader can do this, and who that is as far as this node knows. Nothing was done.
type NotLeaderError struct {
	Leader string // node name; empty when there is none at present
}

// Is makes errors.Is(err, ErrNotLeader) true.
func (*NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return "the catalog has no leader at present: more than half of its members must be up and reach one another"
	}
	return fmt.Sprintf("node %q leads the catalog", e.Leader)
}
