// Package client talks to the management API of a cluster.
//
// Invariant: every request is made so that doing it twice changes no more than doing it once (a LUN is created under an ID
// the client has chosen, deleted by its ID, a change of the catalog names what it is about): so each may be repeated, on the
// same node or another, whatever has become of the attempt before. The one that cannot be, a rollback, is sent again only if it
// has certainly not been carried out. It keeps no state but the address that answered last.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"sanctuary/node/api"
)

const (
	// maxAnswerBytes bounds an answer; a longer one is an error.
	maxAnswerBytes = 64 << 20
	// retryPause is the pause before the addresses are tried again when all of them said "not now".
	retryPause = 250 * time.Millisecond
)

// Config says where the API is.
type Config struct {
	// Addresses are host:port of one or more nodes, tried in order, beginning with the one that answered last. Required.
	Addresses []string
	// Timeout bounds each attempt, beyond any time the request asks the server to wait. Default 10 s.
	Timeout time.Duration
	// RetryFor is how long to go on while every node answers "nothing was changed, try again" (no leader yet). Default 10 s;
	// negative: do not. It ends with the context in any case.
	RetryFor time.Duration
	// ForwardedBy, if set, names the node this client acts for: nodes asked will not pass its requests on.
	ForwardedBy string
	// TLS, if set, makes it https.
	TLS *tls.Config
}

// Client is safe for concurrent use.
type Client struct {
	cfg   Config
	http  *http.Client
	first atomic.Int32 // index of the address that answered last
}

// New returns a client. It does not connect.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("client: no API address given")
	}
	cfg.Addresses = slices.Clone(cfg.Addresses)
	for _, a := range cfg.Addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" {
			return nil, fmt.Errorf("API address %q: use host:port, for example 127.0.0.1:%d", a, api.DefaultPort)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("API address %q: the port is a number from 1 to 65535", a)
		}
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.RetryFor == 0 {
		cfg.RetryFor = 10 * time.Second
	}
	return &Client{
		cfg: cfg,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
				TLSClientConfig:     cfg.TLS,
				MaxIdleConnsPerHost: 4,
				IdleConnTimeout:     30 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Attempt is what became of asking one node.
type Attempt struct {
	Address string
	Err     error
}

// UnreachableError says that no node answered.
type UnreachableError struct {
	Attempts []Attempt
	// MaybeDone: a node may have got a request that changes something, and have carried it out.
	MaybeDone bool
}

// Error names every address and what went wrong there.
func (e *UnreachableError) Error() string {
	parts := make([]string, 0, len(e.Attempts))
	for _, a := range e.Attempts {
		parts = append(parts, fmt.Sprintf("%s: %v", a.Address, a.Err))
	}
	return "no node answered (" + strings.Join(parts, "; ") + ")"
}

// Unwrap returns the causes.
func (e *UnreachableError) Unwrap() []error {
	errs := make([]error, 0, len(e.Attempts))
	for _, a := range e.Attempts {
		errs = append(errs, a.Err)
	}
	return errs
}

// call is one request of the API.
type call struct {
	method, path string
	query        url.Values
	body         any
	wait         time.Duration // that the server is asked to wait
	once         bool          // not sent again when an attempt may have been carried out
}

// do sends the request to one node after another until one answers, and decodes the answer into out unless that is nil.
// A *api.Problem is a node's refusal; *UnreachableError means that no node answered; any other error is of the context
// or of an answer that made no sense. maybeDone tells that an earlier attempt may have been carried out.
func (c *Client) do(ctx context.Context, r call, out any) (maybeDone bool, err error) {
	var body []byte
	if r.body != nil {
		if body, err = json.Marshal(r.body); err != nil {
			return false, fmt.Errorf("encode request: %w", err)
		}
	}
	giveUp := time.Now().Add(c.cfg.RetryFor)
	for {
		var attempts []Attempt
		var notNow *api.Problem
		first := int(c.first.Load())
		for i := range c.cfg.Addresses {
			n := (first + i) % len(c.cfg.Addresses)
			addr := c.cfg.Addresses[n]
			err := c.try(ctx, addr, r, body, out)
			var p *api.Problem
			switch {
			case err == nil:
				c.first.Store(int32(n))
				return maybeDone, nil
			case errors.As(err, &p) && p.RetryAfterSeconds > 0:
				notNow = p
			case errors.As(err, &p) && p.Code == api.CodeUnknown:
				maybeDone, notNow = true, p
			case errors.As(err, &p):
				c.first.Store(int32(n))
				return maybeDone, err
			case ctx.Err() != nil:
				return maybeDone, fmt.Errorf("ask %s: %w", addr, err)
			default:
				attempts = append(attempts, Attempt{addr, err})
				maybeDone = maybeDone || r.method != http.MethodGet && !neverSent(err)
			}
			switch {
			case !r.once || !maybeDone:
			case notNow != nil:
				return true, notNow
			default:
				return true, &UnreachableError{attempts, true}
			}
		}
		if notNow == nil {
			return maybeDone, &UnreachableError{attempts, maybeDone}
		}
		if time.Now().Add(retryPause).After(giveUp) {
			return maybeDone, notNow
		}
		select {
		case <-ctx.Done():
			return maybeDone, notNow
		case <-time.After(retryPause):
		}
	}
}

// neverSent says whether the request certainly did not reach the node.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func (c *Client) try(ctx context.Context, addr string, r call, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+r.wait)
	defer cancel()
	scheme := "http"
	if c.cfg.TLS != nil {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, r.method, scheme+"://"+addr+r.path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	req.URL.RawQuery = r.query.Encode()
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.cfg.ForwardedBy != "" {
		req.Header.Set(api.HeaderForwardedBy, c.cfg.ForwardedBy)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err //nolint:wrapcheck // do names the address
	}
	defer func() { _ = resp.Body.Close() }() // read-only: nothing to lose
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if len(answer) > maxAnswerBytes {
		return fmt.Errorf("answer of more than %d bytes", maxAnswerBytes)
	}
	if resp.StatusCode/100 == 2 {
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(answer, out); err != nil {
			return fmt.Errorf("answer does not look like this API: %w", err)
		}
		return nil
	}
	var p api.Problem
	if json.Unmarshal(answer, &p) != nil || p.Status == 0 {
		return fmt.Errorf("answer %s does not look like this API: is this the API's address?", resp.Status)
	}
	return &p
}
