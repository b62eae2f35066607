package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Config says what a Server serves and to whom.
type Config struct {
	Service Service      // required
	Logger  *slog.Logger // default: slog.Default
	Version string       // of the program; shown in the OpenAPI document

	// TLS, if set, is used for listening and for asking other nodes. Without it everything is plain HTTP, which is why the
	// default address is on loopback: beyond that, put it only on a network that only the nodes and operators are on.
	TLS *tls.Config
	// Authorize, if set, is asked before anything else about a request; an error refuses it with 403. It is the one place
	// for tokens, client certificates and the root-only socket. Requests between nodes pass here too.
	Authorize func(*http.Request) error

	// AskTimeout bounds a question to another node (a LUN's owner, its sessions). Default 500 ms: an operator waits for
	// an answer, and an answer that says "the owner does not reply" is one.
	AskTimeout time.Duration
	// PollInterval is how often a waiting request looks again. Default 100 ms.
	PollInterval time.Duration
	// ShutdownTimeout bounds how long Serve waits for requests when it is told to stop. Default 5 s.
	ShutdownTimeout time.Duration
}

// Server is the management API of one node.
type Server struct {
	cfg     Config
	svc     Service
	log     *slog.Logger
	api     huma.API
	handler http.Handler
	peers   *http.Client // asks and forwards; never follows redirects, never uses a proxy
	slots   chan struct{}

	draining  chan struct{} // closed when Serve is told to stop: waiting requests answer with what they have
	drainOnce sync.Once
}

// New returns a Server that is not listening yet.
func New(cfg Config) (*Server, error) {
	if cfg.Service == nil {
		return nil, errors.New("api: Config.Service is required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	orDefault(&cfg.AskTimeout, 500*time.Millisecond)
	orDefault(&cfg.PollInterval, 100*time.Millisecond)
	orDefault(&cfg.ShutdownTimeout, 5*time.Second)

	s := &Server{
		cfg: cfg, svc: cfg.Service, log: cfg.Logger,
		slots:    make(chan struct{}, maxInFlight),
		draining: make(chan struct{}),
		peers: &http.Client{
			Transport: &http.Transport{
				DialContext:           (&net.Dialer{Timeout: time.Second}).DialContext,
				TLSClientConfig:       cfg.TLS,
				MaxIdleConnsPerHost:   8,
				IdleConnTimeout:       30 * time.Second,
				ResponseHeaderTimeout: maxWait + 10*time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	mux := http.NewServeMux()
	s.api = humago.New(mux, s.openAPI())
	s.register()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, NotFound("there is no %s %s in this API; its description is at /openapi.json", r.Method, r.URL.Path))
	})
	s.handler = s.guard(mux)
	return s, nil
}

func orDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

func (s *Server) openAPI() huma.Config {
	c := huma.DefaultConfig("Sanctuary management API", "1")
	c.Info.Description = "Every node serves this API. Reads say whose knowledge they are (view); changes are forwarded to " +
		"the node that can make them. Errors are application/problem+json (RFC 9457) with what it means for the data and what to " +
		"do next. Where an answer has retry_after_seconds, nothing was changed. Program version: " + s.cfg.Version
	// The documentation page and the schema links would load or point to things outside; the document itself is enough.
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	c.RejectUnknownQueryParameters = true
	return c
}

// Handler returns the API as a handler, with all limits but those of the connection.
func (s *Server) Handler() http.Handler { return s.handler }

// OpenAPI returns the OpenAPI 3.1 document as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().MarshalJSON() }

// Serve answers requests on l, which it closes, until ctx ends; then it lets running requests finish for ShutdownTimeout
// and returns nil. Any other end is an error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		TLSConfig:         s.cfg.TLS,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      maxWait + 30*time.Second, // a waiting request is answered within maxWait
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	defer s.peers.CloseIdleConnections()
	select {
	case err := <-done:
		return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.drainOnce.Do(func() { close(s.draining) })
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		s.log.Warn("API requests cut off at shutdown", "after", s.cfg.ShutdownTimeout, "cause", err)
		if err := srv.Close(); err != nil {
			s.log.Debug("close API server", "cause", err)
		}
	}
	<-done
	return nil
}

// guard is what every request passes first. Order: who may ask at all, then how much.
func (s *Server) guard(next http.Handler) http.Handler {
	// A web page must not steer a node through the browser of an operator: not by a form or script of another origin …
	origin := http.NewCrossOriginProtection()
	origin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, forbidden("a web page of another origin sent this request"))
	}))
	limited := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := rebound(r); err != nil { // … nor by a name of its own that resolves to loopback.
			writeProblem(w, forbidden(err.Error()))
			return
		}
		if s.cfg.Authorize != nil {
			if err := s.cfg.Authorize(r); err != nil {
				writeProblem(w, forbidden(err.Error()))
				return
			}
		}
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			writeProblem(w, Unavailable("node %s already works on %d requests", s.svc.Name(), maxInFlight))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
	return origin.Handler(limited)
}

func forbidden(detail string) *Problem {
	return (&Problem{
		Status: http.StatusForbidden, Code: CodeForbidden, Detail: "refused: " + detail, Data: "Nothing was changed.",
		Next: "Use the sanctuary command, or a client that is allowed here.",
	}).complete()
}

// rebound refuses a request that came over loopback under a name other than localhost (DNS rebinding).
func rebound(r *http.Request) error {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return nil
	}
	ap, err := netip.ParseAddrPort(local.String())
	if err != nil || !ap.Addr().Unmap().IsLoopback() {
		return nil
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return nil
	}
	if _, err := netip.ParseAddr(trimBrackets(host)); err == nil {
		return nil
	}
	return fmt.Errorf("the request came over loopback under the name %q; use localhost or an address", host)
}

func trimBrackets(host string) string {
	if n := len(host); n > 1 && host[0] == '[' && host[n-1] == ']' {
		return host[1 : n-1]
	}
	return host
}
