package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sanctuary/node/catalog"
	"sanctuary/node/client"
	"sanctuary/replication/transport"
)

// methodPropose carries a change of the catalog to its leader over the peer transport.
const methodPropose = "catalog.propose"

// Codes of transport.HandlerError for methodPropose.
const (
	codeRefused   = 1 // Text is a catalog.Refusal as JSON
	codeNotLeader = 2 // Text is the leader's name, or empty
	codeUnknown   = 3
)

// proposer makes changes of the catalog wherever its leader is.
type proposer struct{ n *Node }

// Propose finds the leader, also through an election, as long as ctx allows. Errors are those of catalog.Propose.
func (p proposer) Propose(ctx context.Context, c catalog.Change) (catalog.Result, error) {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		result, err := p.try(ctx, c)
		var notLeader *catalog.NotLeaderError
		if !errors.As(err, &notLeader) && !errors.Is(err, transport.ErrUnreachable) {
			return result, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return catalog.Result{}, err
		}
	}
}

func (p proposer) try(ctx context.Context, c catalog.Change) (catalog.Result, error) {
	leader, _ := p.n.catalog.Leader()
	switch {
	case p.n.catalog.IsLeader():
		return p.n.catalog.Propose(ctx, c)
	case leader != "":
		return p.ask(ctx, leader, c)
	case len(p.n.cfg.Join.API) > 0:
		return p.join(ctx, c)
	}
	return catalog.Result{}, &catalog.NotLeaderError{}
}

func (p proposer) ask(ctx context.Context, leader string, c catalog.Change) (result catalog.Result, err error) {
	req, err := catalog.EncodeChange(c)
	if err != nil {
		return result, err
	}
	answer, err := p.n.mux.Call(ctx, leader, methodPropose, req)
	if err != nil {
		return result, proposeError(err)
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return result, fmt.Errorf("answer of the catalog's leader %s: %w", leader, err)
	}
	return result, nil
}

func proposeError(err error) error {
	var remote *transport.RemoteError
	if !errors.As(err, &remote) {
		return err
	}
	switch remote.Detail {
	case codeRefused:
		refusal := &catalog.Refusal{}
		if json.Unmarshal([]byte(remote.Text), refusal) == nil {
			return refusal
		}
	case codeNotLeader:
		return &catalog.NotLeaderError{Leader: remote.Text}
	case codeUnknown:
		return catalog.ErrUnknown
	}
	return err
}

// join reaches the catalog through the API of a node that is in the cluster: this one has no peers yet.
func (p proposer) join(ctx context.Context, c catalog.Change) (result catalog.Result, err error) {
	cl, err := client.New(client.Config{Addresses: p.n.cfg.Join.API})
	if err != nil {
		return result, err
	}
	defer cl.Close()
	req, err := catalog.EncodeChange(c)
	if err != nil {
		return result, err
	}
	answer, err := cl.Propose(ctx, req)
	if err != nil {
		return result, err
	}
	return result, json.Unmarshal(answer, &result)
}

// servePropose is the leader's side.
func (n *Node) servePropose(ctx context.Context, _ string, req []byte) ([]byte, error) {
	c, err := catalog.DecodeChange(req)
	if err != nil {
		return nil, err
	}
	result, err := n.catalog.Propose(ctx, c)
	var refusal *catalog.Refusal
	var notLeader *catalog.NotLeaderError
	switch {
	case err == nil:
		return json.Marshal(result)
	case errors.As(err, &refusal):
		text, merr := json.Marshal(refusal)
		if merr != nil {
			return nil, merr
		}
		return nil, &transport.HandlerError{Code: codeRefused, Text: string(text)}
	case errors.As(err, &notLeader):
		return nil, &transport.HandlerError{Code: codeNotLeader, Text: notLeader.Leader}
	case errors.Is(err, catalog.ErrUnknown):
		return nil, &transport.HandlerError{Code: codeUnknown, Text: err.Error()}
	}
	return nil, err
}
