package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"syscall"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// toLeader passes a change on to the catalog leader unless that is this node.
func (s *Server) toLeader(ctx huma.Context, next func(huma.Context)) {
	s.forward(ctx, next, func(*http.Request) (string, *Problem) {
		if leader := s.svc.Catalog().Leader; leader != "" {
			return leader, nil
		}
		return "", NoLeader("node %s knows no catalog leader", s.svc.Name())
	})
}

// toOwner passes a request about a LUN on to its owner unless that is this node.
func (s *Server) toOwner(ctx huma.Context, next func(huma.Context)) {
	s.forward(ctx, next, func(r *http.Request) (string, *Problem) {
		lun, err := s.lookup(r.Context(), r.PathValue("lun"), forwarded(r))
		switch {
		case err != nil:
			return "", asProblem(err)
		case lun.Owner == "":
			return "", NoOwner("LUN %s has no owner at the moment", lun.Name)
		}
		return lun.Owner, nil
	})
}

// toNode passes a request about a node, or about what it has, on to it.
func (s *Server) toNode(ctx huma.Context, next func(huma.Context)) {
	s.forward(ctx, next, func(r *http.Request) (string, *Problem) {
		name := r.PathValue("node")
		if _, known := s.svc.APIAddress(name); known || name == s.svc.Name() {
			return name, nil
		}
		nodes, err := s.svc.Nodes(r.Context())
		if err != nil {
			return "", asProblem(err)
		}
		if slices.ContainsFunc(nodes, func(n Node) bool { return n.Name == name }) {
			return "", Unavailable("node %s, which the request is about, does not answer", name)
		}
		return "", NotFound("there is no node %q", name)
	})
}

// forwarded says whether another node has passed this request on.
func forwarded(r *http.Request) bool { return r.Header.Get(HeaderForwardedBy) != "" }

// forward calls next if target names this node, and otherwise passes the request on to that node, once.
func (s *Server) forward(ctx huma.Context, next func(huma.Context), target func(*http.Request) (string, *Problem)) {
	r, w := humago.Unwrap(ctx)
	node, problem := target(r)
	switch {
	case problem != nil:
		writeProblem(w, problem)
		return
	case node == s.svc.Name():
		next(ctx)
		return
	case forwarded(r):
		// The node that sent it believes we are the one, we believe another is: one of us is behind. Nobody has done
		// anything yet, and a moment later both will agree.
		writeProblem(w, NoLeader("node %s passed this request to node %s, which would pass it on to %s: they do not agree yet on who decides",
			r.Header.Get(HeaderForwardedBy), s.svc.Name(), node))
		return
	}
	addr, ok := s.svc.APIAddress(node)
	if !ok {
		writeProblem(w, NoLeader("node %s should decide this, but its API address is not known on node %s", node, s.svc.Name()))
		return
	}
	s.proxy(node, addr).ServeHTTP(w, r)
}

func (s *Server) scheme() string {
	if s.cfg.TLS != nil {
		return "https"
	}
	return "http"
}

func (s *Server) proxy(node, addr string) http.Handler {
	return &httputil.ReverseProxy{
		Transport: s.peers.Transport,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: s.scheme(), Host: addr})
			pr.Out.Host = addr
			pr.Out.Header.Set(HeaderForwardedBy, s.svc.Name())
			// The answer is copied through as it is; who asked is the business of the first node.
			pr.Out.Header.Del("Origin")
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			s.log.Info("forward API request", "to", node, "address", addr, "path", r.URL.Path, "cause", err)
			writeProblem(w, forwardProblem(node, addr, err))
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// forwardProblem tells a connection that never came about (nothing was sent, nothing changed) from one that broke.
func forwardProblem(node, addr string, err error) *Problem {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || errors.Is(err, syscall.ECONNREFUSED) {
		return NoLeader("node %s should decide this, but does not answer at %s: %v", node, addr, err)
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return asProblem(newError(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than %d bytes", tooLarge.Limit)))
	}
	return OutcomeUnknown("the connection to node %s, which was to make the change, broke: %v", node, err)
}
