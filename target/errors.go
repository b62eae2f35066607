package target

import "errors"

var (
	// ErrNoTarget: no target of that name on this node (login status 0203h, NOT FOUND).
	ErrNoTarget = errors.New("no such target")
	// ErrNotServed: the target belongs here, and is not served at the moment (login status 0301h, SERVICE UNAVAILABLE).
	ErrNotServed = errors.New("the target is not served here at the moment")
	// ErrNotAllowed: the initiator may not use this target. It is told the same as with ErrNoTarget.
	ErrNotAllowed = errors.New("initiator is not allowed to use this target")
)
