package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"sanctuary/blockstore/block"
	"sanctuary/replication/transport"
	"sanctuary/target/scsi"
)

// methodAsk carries what a LUN's unit on one node asks its unit on the owner: LUN ID, newline, the request as package scsi
// encodes it. What this node answers initiators in the owner's name goes this way.
const methodAsk = "scsi.ask"

// codeNothingDone is the code of a transport.HandlerError: the owner was not the owner (any more) and did nothing.
const codeNothingDone = 1

// bulkAskBytes is from where on a request or the longest answer to it goes over the connection for bulk.
const bulkAskBytes = 64 << 10

// askOwner implements scsi.UnitConfig.AskOwner for a replica.
func (n *Node) askOwner(run *running) func(ctx context.Context, request []byte) ([]byte, error) {
	return func(ctx context.Context, request []byte) ([]byte, error) {
		owner := run.group.Status().Owner.Node
		if owner == "" || owner == n.cfg.Node {
			return nil, fmt.Errorf("%w: no other node owns the LUN", block.ErrUnavailable)
		}
		call := n.mux.Call
		if len(request) > bulkAskBytes || scsi.AnswerBytes(request) > bulkAskBytes {
			call = n.mux.CallBulk
		}
		answer, err := call(ctx, owner, methodAsk, append([]byte(run.lun.ID+"\n"), request...))
		var remote *transport.RemoteError
		switch {
		case err == nil:
			return answer, nil
		case errors.Is(err, transport.ErrBusy), errors.Is(err, transport.ErrUnknownMethod),
			errors.As(err, &remote) && remote.Detail == codeNothingDone:
			return nil, fmt.Errorf("%w: %w", block.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("%w: %w", block.ErrUnknown, err) // it may have run all the same
	}
}

// serveAsk is the owner's side.
func (n *Node) serveAsk(ctx context.Context, from string, req []byte) ([]byte, error) {
	lun, request, ok := bytes.Cut(req, []byte("\n"))
	if !ok {
		return nil, errors.New("a request names its LUN")
	}
	run := n.replicas.get(string(lun))
	if run == nil || run.unit == nil {
		return nil, &transport.HandlerError{Code: codeNothingDone, Text: "no data replica of this LUN runs here"}
	}
	answer, err := run.unit.ServePeer(ctx, from, request)
	if errors.Is(err, block.ErrNotOwner) || errors.Is(err, block.ErrUnavailable) {
		return nil, &transport.HandlerError{Code: codeNothingDone, Text: err.Error()}
	}
	return answer, err
}

// methodHolder asks a node whether a session that uses a LUN is there: LUN ID, newline, 8 bytes session, big endian. The answer is one
// byte, 1 or 0.
const methodHolder = "scsi.holder"

// holderLives implements scsi.UnitConfig.HolderLives for a replica.
func (n *Node) holderLives(run *running) func(ctx context.Context, port uint16, session uint64) (bool, error) {
	return func(ctx context.Context, port uint16, session uint64) (bool, error) {
		for name, node := range n.catalog.Model().Nodes {
			if !slices.Contains(targetPorts(node), port) {
				continue
			}
			if name == n.cfg.Node {
				return n.hasSession(run.lun.ID, session), nil
			}
			answer, err := n.mux.Call(ctx, name, methodHolder, binary.BigEndian.AppendUint64([]byte(run.lun.ID+"\n"), session))
			switch {
			case errors.Is(err, transport.ErrUnknownMethod), errors.Is(err, transport.ErrBusy):
				return true, nil // an older program, or one that has no time: its initiators are there
			case err != nil:
				return false, err
			}
			return !bytes.Equal(answer, []byte{0}), nil
		}
		return false, nil // the node has left, with its port
	}
}

// serveHolder is that node's side.
func (n *Node) serveHolder(_ context.Context, _ string, req []byte) ([]byte, error) {
	lun, session, ok := bytes.Cut(req, []byte("\n"))
	if !ok || len(session) != 8 {
		return nil, errors.New("a question for a session names its LUN")
	}
	if n.hasSession(string(lun), binary.BigEndian.Uint64(session)) {
		return []byte{1}, nil
	}
	return []byte{0}, nil
}

// hasSession says whether a session is here that may use a LUN.
func (n *Node) hasSession(lun string, session uint64) bool {
	if n.hostTargets.hasSession(n.catalog.Model(), lun, session) {
		return true
	}
	run := n.replicas.get(lun)
	return run != nil && run.unit != nil && run.unit.HasSession(session)
}
