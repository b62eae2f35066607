package target

import "errors"

var (
	// ErrNoTarget: no target of that name on this node (login status 0203h, NOT FOUND).
	ErrNoTarget = errors.New("no such target")
	// ErrNotAllowed: the initiator may not use this target. It is told the same as with ErrNoTarget.
	ErrNotAllowed = errors.New("initiator is not allowed to use this target")
)
