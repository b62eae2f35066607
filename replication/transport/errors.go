package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sanctuary/proto/peerpb"
)

// What a request can fail with. All but ErrUnreachable and ErrClosed may have been said by the other node; they arrive
// wrapped in a *RemoteError then, and errors.Is finds them all the same.
var (
	// ErrUnreachable: there is no connection to the node, or it broke before the answer. The request may have been
	// carried out all the same.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrClosed: this Mux, group or pipeline has been closed; or the peer's has, which reads as ErrUnreachable, too.
	ErrClosed = errors.New("transport closed")
	// ErrTimeout: no answer in time. The request may still be carried out.
	ErrTimeout = errors.New("no answer in time")
	// ErrBusy: a bounded queue is full; the request was not carried out.
	ErrBusy = errors.New("too many requests waiting")
	// ErrTooLarge: the request or its answer is beyond a limit; it was not sent.
	ErrTooLarge = errors.New("message too large")
	// ErrWrongCluster: the other node belongs to another cluster.
	ErrWrongCluster = errors.New("wrong cluster")
	// ErrWrongNode: the address leads to a node of another name.
	ErrWrongNode = errors.New("wrong node")
	// ErrWrongVersion: the two nodes have no protocol version in common.
	ErrWrongVersion = errors.New("no common protocol version")
	// ErrUnknownGroup: the node has no replica of this group (yet).
	ErrUnknownGroup = errors.New("unknown group")
	// ErrWrongEpoch: the group has been recovered by force since, or was not yet.
	ErrWrongEpoch = errors.New("wrong epoch")
	// ErrWrongServer: the replica on that node is another incarnation than the one addressed.
	ErrWrongServer = errors.New("wrong server id")
	// ErrSnapshotRefused: this group never takes data by InstallSnapshot (GroupConfig.AllowSnapshot).
	ErrSnapshotRefused = errors.New("snapshot refused: this group is rebuilt another way")
	// ErrRefused: the receiving replica's Incoming hook answered with an error.
	ErrRefused = errors.New("refused by the replica")
	// ErrRaft: Raft on the other node answered with an error.
	ErrRaft = errors.New("raft error on the peer")
	// ErrUnknownMethod: nobody on the other node handles this method.
	ErrUnknownMethod = errors.New("unknown method")
	// ErrHandler: the handler on the other node answered with an error; errors.As a *RemoteError for its text and code.
	ErrHandler = errors.New("handler error on the peer")
	// ErrBadRequest: the other node could not parse what we sent.
	ErrBadRequest = errors.New("malformed request")
	// ErrInternal: none of the others.
	ErrInternal = errors.New("internal error on the peer")
	// ErrExists: a group or method of this name is registered already.
	ErrExists = errors.New("already registered")
)

// sentinels is the whole mapping between codes and errors; a code without an entry reads as ErrInternal.
var sentinels = map[peerpb.Code]error{
	peerpb.Code_CODE_INTERNAL:         ErrInternal,
	peerpb.Code_CODE_WRONG_CLUSTER:    ErrWrongCluster,
	peerpb.Code_CODE_WRONG_NODE:       ErrWrongNode,
	peerpb.Code_CODE_WRONG_VERSION:    ErrWrongVersion,
	peerpb.Code_CODE_UNKNOWN_GROUP:    ErrUnknownGroup,
	peerpb.Code_CODE_WRONG_EPOCH:      ErrWrongEpoch,
	peerpb.Code_CODE_WRONG_SERVER:     ErrWrongServer,
	peerpb.Code_CODE_SNAPSHOT_REFUSED: ErrSnapshotRefused,
	peerpb.Code_CODE_BUSY:             ErrBusy,
	peerpb.Code_CODE_TIMEOUT:          ErrTimeout,
	peerpb.Code_CODE_TOO_LARGE:        ErrTooLarge,
	peerpb.Code_CODE_SHUTDOWN:         ErrClosed,
	peerpb.Code_CODE_REFUSED:          ErrRefused,
	peerpb.Code_CODE_RAFT:             ErrRaft,
	peerpb.Code_CODE_UNKNOWN_METHOD:   ErrUnknownMethod,
	peerpb.Code_CODE_HANDLER:          ErrHandler,
	peerpb.Code_CODE_BAD_REQUEST:      ErrBadRequest,
}

// RemoteError is an error another node answered with: it was reached.
type RemoteError struct {
	Node   string      // who said it
	Code   peerpb.Code // what errors.Is goes by
	Text   string      // for people
	Detail uint32      // with CODE_HANDLER: HandlerError.Code
}

func (e *RemoteError) Error() string {
	reason := e.Unwrap().Error()
	if e.Text == "" || e.Text == reason {
		return fmt.Sprintf("%s: %s", e.Node, reason)
	}
	return fmt.Sprintf("%s: %s: %s", e.Node, reason, e.Text)
}

// Unwrap gives the sentinel of the code.
func (e *RemoteError) Unwrap() error {
	if err, ok := sentinels[e.Code]; ok {
		return err
	}
	return ErrInternal
}

// Is makes a peer that is closing count as unreachable as well: to its callers it is.
func (e *RemoteError) Is(target error) bool {
	return target == ErrUnreachable && e.Code == peerpb.Code_CODE_SHUTDOWN
}

// HandlerError is what a handler (Mux.Handle) returns to give its caller a code to choose by. The caller finds it as
// RemoteError.Detail; the meaning of the number is the method's.
type HandlerError struct {
	Code uint32
	Text string
}

func (e *HandlerError) Error() string { return e.Text }

// maxErrorText bounds error texts on the wire, in bytes.
const maxErrorText = 4 << 10

// preVoteTrap is the text by which hashicorp/raft v1.8.0 recognises a peer too old for pre-votes (raft.go:2107), and counts
// its error as a granted vote. No error of ours may contain it.
const preVoteTrap = "unexpected command"

func safeText(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), preVoteTrap, "command not expected")
}

// statusOf turns err into what travels; otherwise is the code of an error that is none of ours. nil gives nil.
func statusOf(err error, otherwise peerpb.Code) *peerpb.Status {
	if err == nil {
		return nil
	}
	st := &peerpb.Status{Code: otherwise, Text: safeText(err.Error())}
	if otherwise == peerpb.Code_CODE_HANDLER {
		// A handler's errors stay its own: that it was itself refused elsewhere says nothing about this call.
		var handler *HandlerError
		if errors.As(err, &handler) {
			st.Detail = handler.Code
		}
		return st
	}
	if code, ok := codeOf(err); ok {
		st.Code = code
	}
	return st
}

// codeOf finds the outermost of our errors in err: the one our code has put in front of what a hook or Raft said. It walks
// the chain itself since errors.Is does not tell which of two it met first.
func codeOf(err error) (peerpb.Code, bool) {
	for code, sentinel := range sentinels {
		if err == sentinel {
			return code, true
		}
	}
	if err == context.DeadlineExceeded {
		return peerpb.Code_CODE_TIMEOUT, true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return codeOf(inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			if code, ok := codeOf(inner); ok {
				return code, true
			}
		}
	}
	return 0, false
}

// errorOf is the other direction: nil for no status or CODE_OK.
func errorOf(node string, st *peerpb.Status) error {
	if st == nil || st.GetCode() == peerpb.Code_CODE_OK {
		return nil
	}
	return &RemoteError{Node: node, Code: st.GetCode(), Text: safeText(st.GetText()), Detail: st.GetDetail()}
}
