package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/node/inspect"
)

// usageError is a command line that makes no sense. Exit code 2.
type usageError struct {
	command string // for "see … --help"
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// failure is an error with its meaning for the data and the way out.
type failure struct {
	what error
	data string
	next string
}

func (e *failure) Error() string { return e.what.Error() }
func (e *failure) Unwrap() error { return e.what }

// brokenPromise says that the drill found data lost or stale. Exit code 3.
type brokenPromise struct{ err error }

func (e *brokenPromise) Error() string { return e.err.Error() }
func (e *brokenPromise) Unwrap() error { return e.err }

// explain returns what to print about an error (what happened, what it means for the data, what to do next) and the exit
// code.
func explain(err error) (text string, code int) {
	var (
		usage       *usageError
		fail        *failure
		broken      *brokenPromise
		problem     *api.Problem
		unreachable *client.UnreachableError
		unsound     *notSound
		unreadable  *inspect.UnreadableError
	)
	switch {
	case errors.As(err, &usage):
		return fmt.Sprintf("sanctuary: %v\n  next: see %s --help\n", err, usage.command), exitUsage
	case errors.As(err, &broken):
		return paragraph(err.Error(), "An acknowledged write is not what the LUN returns. This must not happen.",
			"Keep the drill's --dir with its logs, and report it."), exitBroken
	case errors.As(err, &unsound):
		return paragraph(err.Error(), "", ""), exitFailure
	case errors.As(err, &unreadable):
		return paragraph(err.Error(), "Nothing was changed, and nothing was found out: this does not say whether it is sound.",
			"Check the path, and that you may read it (root may). See sanctuary inspect --help."), exitUsage
	case errors.As(err, &fail):
		return paragraph(err.Error(), fail.data, fail.next), exitFailure
	case errors.As(err, &problem):
		return paragraph(err.Error(), problem.Data, problem.Next), exitFailure
	case errors.As(err, &unreachable) && unreachable.MaybeDone:
		return paragraph(err.Error(), "The change may or may not have been made: the connection broke before the answer came.",
			"Look before you repeat it, with sanctuary status; repeating it does no harm."), exitFailure
	case errors.As(err, &unreachable):
		return paragraph(err.Error(), "Nothing was changed. That the API does not answer says nothing about the LUNs: initiators may be served.",
			"Check that a node runs (sanctuary run) and that --api or SANCTUARY_API names its API address."), exitFailure
	case errors.Is(err, context.Canceled):
		return "sanctuary: interrupted\n", exitFailure
	}
	return paragraph(err.Error(), "", ""), exitFailure
}

func paragraph(what, data, next string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "sanctuary: %s\n", what)
	if data != "" {
		fmt.Fprintf(&b, "  data: %s\n", data)
	}
	if next != "" {
		fmt.Fprintf(&b, "  next: %s\n", next)
	}
	return b.String()
}
