// Package login negotiates an iSCSI login from the target's side (RFC 7143 §6, §7 and §13).
//
// Invariant: full feature phase is reached only after every key has been negotiated by its own function, the initiator
// has proved who it is where Config.Credentials asks for that (CHAP, in this order), and the portal has admitted it to
// the target. What has not been negotiated has the value the RFC gives it.
// It does no I/O, starts no goroutine and keeps at most Config.MaxTextBytes: target/session moves the PDUs. It neither logs
// nor returns a secret, or anything computed from one.
package login

import (
	"errors"
	"fmt"
	"strings"

	"sanctuary/target/pdu"
)

// Status is the class and detail of a Login Response (RFC 7143 §11.13.5).
type Status uint16

// Login statuses.
const (
	Success              Status = 0x0000
	MovedTemporarily     Status = 0x0101
	MovedPermanently     Status = 0x0102
	InitiatorError       Status = 0x0200
	AuthenticationFailed Status = 0x0201
	NotAuthorized        Status = 0x0202
	TargetNotFound       Status = 0x0203
	TargetRemoved        Status = 0x0204
	VersionNotSupported  Status = 0x0205
	TooManyConnections   Status = 0x0206
	MissingParameter     Status = 0x0207
	CannotInclude        Status = 0x0208
	SessionTypeUnknown   Status = 0x0209
	NoSuchSession        Status = 0x020A
	InvalidDuringLogin   Status = 0x020B
	TargetError          Status = 0x0300
	ServiceUnavailable   Status = 0x0301
	OutOfResources       Status = 0x0302
)

// Refusal ends a login; the hooks of Config return it to choose the status, any other error becomes TargetError.
type Refusal struct {
	Status  Status
	Address string // MovedTemporarily and MovedPermanently: where to go, host:port; IPv6 hosts in brackets
	Reason  string // for our own log; the initiator sees only the status
	Cause   error  // for our own books, nil as a rule; errors.Is finds it
}

// Unwrap returns the Cause.
func (r *Refusal) Unwrap() error { return r.Cause }

func (r *Refusal) Error() string {
	return fmt.Sprintf("login refused with status %04Xh: %s", uint16(r.Status), r.Reason)
}

func refuse(s Status, format string, args ...any) error {
	return &Refusal{Status: s, Reason: fmt.Sprintf(format, args...)}
}

// Config is what this side offers and who decides. All lengths are in bytes.
type Config struct {
	Offer Params // the values we would like; see DefaultOffer

	// GroupTag is the target portal group tag of the portal logged in through, 1..65535.
	GroupTag uint16
	// MaxTextBytes bounds the text of one negotiation step over all its continuations; 0 means 16 KiB.
	MaxTextBytes int
	// Credentials is called once, when the names are known: what p.Initiator must prove before anything else happens. An
	// error (a *Refusal chooses the status) refuses the login. It may be nil: nobody has to prove anything.
	Credentials func(p *Params) (Credentials, error)
	// Admit is called once, when the initiator has proved who it is. It returns a *Refusal (or redirects) or nil.
	Admit func(p *Params) error
	// Establish is called once, before the last response: session reinstatement happens here. It returns the TSIH of
	// the session (never 0), or a *Refusal.
	Establish func(p *Params) (tsih uint16, err error)
}

const (
	defaultMaxText = 16 << 10
	// maxRequests bounds a login. Initiators need 2 to 6; continuations count too.
	maxRequests = 128
)

// Reply is the answer to one Login Request.
type Reply struct {
	Response pdu.LoginResponse
	Text     []byte
	Done     bool // full feature phase begins after this response
}

// Machine is one login in progress. Its methods are for one goroutine.
type Machine struct {
	cfg      Config
	params   Params
	stage    pdu.Stage
	requests int // seen so far
	// identified: the names are known, and what must be proved. They do not change any more.
	identified bool
	admitted   bool
	finished   bool
	tag        uint32
	text       []byte            // gathered from requests with the C bit
	seen       map[string]string // keys negotiated so far: none may be negotiated twice
	declared   bool              // our own MaxRecvDataSegmentLength has been sent
	auth       *chap             // nil: nothing to prove
	authOn     bool              // AuthMethod has been agreed on
}

// New returns a machine that waits for the first Login Request.
func New(cfg Config) *Machine {
	if cfg.MaxTextBytes == 0 {
		cfg.MaxTextBytes = defaultMaxText
	}
	return &Machine{cfg: cfg, params: defaults(), seen: make(map[string]string)}
}

// Params returns what has been negotiated so far.
func (m *Machine) Params() Params { return m.params }

// Step answers one request, whose data segment is data. If the error is not nil (always a *Refusal), the reply carries
// its status and the connection is to be closed after it has been sent.
func (m *Machine) Step(h *pdu.Header, data []byte) (Reply, error) {
	text, done, err := m.step(h, data)
	current, next := h.Stages()
	r := Reply{Response: pdu.LoginResponse{
		Current: current, ISID: m.params.ISID, TSIH: m.params.TSIH, Tag: h.Tag(),
	}}
	if err != nil {
		m.finished = true
		var ref *Refusal
		if !errors.As(err, &ref) {
			ref = &Refusal{Status: TargetError, Reason: err.Error()}
		}
		if moved := ref.Status>>8 == 1; moved && ref.Address == "" {
			ref = &Refusal{Status: ServiceUnavailable, Reason: ref.Reason + " (moved, but nobody knows where to)"}
		} else if moved {
			// RFC 7143 §13.8: without the portal group tag in a redirection.
			address, _, _ := strings.Cut(ref.Address, ",")
			r.Text = pdu.AppendText(nil, "TargetAddress", address)
		}
		r.Response.ISID = h.ISID()
		r.Response.Status = uint16(ref.Status)
		return r, ref
	}
	r.Text = text
	if done {
		r.Response.Transit, r.Response.Next = true, next
		m.stage = next
		r.Done = next == pdu.StageFullFeature
		m.finished = r.Done
	}
	return r, nil
}

// step returns the answer's text and whether the stage asked for is entered.
func (m *Machine) step(h *pdu.Header, data []byte) (text []byte, transit bool, err error) {
	if err := m.check(h); err != nil {
		return nil, false, err
	}
	if len(m.text)+len(data) > m.cfg.MaxTextBytes {
		return nil, false, refuse(OutOfResources, "login text of more than %d bytes", m.cfg.MaxTextBytes)
	}
	m.text = append(m.text, data...)
	if h.Has(pdu.FlagContinue) {
		return nil, false, nil
	}
	pairs, err := pdu.ParseText(m.text)
	m.text = m.text[:0]
	if err != nil {
		return nil, false, refuse(InitiatorError, "%v", err)
	}
	if text, err = m.negotiate(pairs); err != nil {
		return nil, false, err
	}
	if !h.Final() {
		return text, false, nil
	}
	if m.stage == pdu.StageSecurity && !m.proved() {
		if !m.authOn {
			return nil, false, refuse(AuthenticationFailed, "the initiator offers no AuthMethod, CHAP is needed")
		}
		return text, false, nil // the answer without T: the initiator goes on proving itself
	}
	if _, next := h.Stages(); next == pdu.StageFullFeature {
		if err := m.admit(); err != nil {
			return nil, false, err
		}
		if m.params.TSIH, err = m.cfg.Establish(&m.params); err != nil {
			return nil, false, err
		}
	}
	return text, true, nil
}

// check holds a request against the stage table (RFC 7143 §7.3, §11.12).
func (m *Machine) check(h *pdu.Header) error {
	current, next := h.Stages()
	maximum, minimum := h.Versions()
	switch {
	case h.Opcode() != pdu.OpLoginRequest:
		return refuse(InvalidDuringLogin, "%s before the login was finished", h.Opcode())
	case m.finished:
		return refuse(InitiatorError, "login request after the login was over")
	case minimum > 0:
		return refuse(VersionNotSupported, "versions %d..%d, this is version 0", minimum, maximum)
	case h.Has(pdu.FlagFinal | pdu.FlagContinue):
		return refuse(InitiatorError, "T and C bits together")
	case current != pdu.StageSecurity && current != pdu.StageOperational:
		return refuse(InitiatorError, "current stage %d", current)
	case h.Final() && (next <= current || next == 2):
		return refuse(InitiatorError, "transition from stage %d to %d", current, next)
	}
	if m.requests++; m.requests > maxRequests {
		return refuse(InitiatorError, "more than %d login requests", maxRequests)
	}
	if m.requests == 1 {
		m.stage, m.tag = current, h.Tag()
		m.params.ISID, m.params.TSIH, m.params.CID = h.ISID(), h.TSIH(), h.CID()
		if m.params.TSIH != 0 {
			// MaxConnections is 1, so there is no session a further connection could join.
			return refuse(NoSuchSession, "connection for session %d, but sessions here have one connection", h.TSIH())
		}
		return nil
	}
	switch {
	case current != m.stage:
		return refuse(InitiatorError, "stage %d in the middle of stage %d", current, m.stage)
	case h.Tag() != m.tag || h.ISID() != m.params.ISID || h.TSIH() != 0 || h.CID() != m.params.CID:
		return refuse(InitiatorError, "tag, ISID, TSIH or CID changed during login")
	}
	return nil
}

// proved says whether the initiator is who it says it is, as far as anybody wants to know.
func (m *Machine) proved() bool { return m.auth == nil || m.auth.stage == chapPassed }

// negotiate answers the keys of one complete step.
func (m *Machine) negotiate(pairs []pdu.Pair) ([]byte, error) {
	var security []pdu.Pair
	answer := answers{}
	if err := m.names(pairs); err != nil {
		return nil, err
	}
	if err := m.identify(&answer); err != nil {
		return nil, err
	}
	// Not with the request that ends the proof, unless that ends the login: if the initiator wants one of us as well, it
	// gets it before it is sent elsewhere.
	if m.proved() {
		if err := m.admit(); err != nil {
			return nil, err
		}
	}
	for _, p := range pairs {
		k, known := keys[p.Key]
		switch {
		case m.auth != nil && isCHAPKey(p.Key):
			if _, again := m.seen[p.Key]; again {
				return nil, refuse(AuthenticationFailed, "%s twice", p.Key)
			}
			m.seen[p.Key] = ""
			security = append(security, p)
			continue
		case !known:
			if !isReply(p.Value) {
				answer.add(p.Key, "NotUnderstood")
			}
			continue
		case isReply(p.Value): // the initiator answers our declaration; nothing follows from it
			continue
		}
		if old, again := m.seen[p.Key]; again {
			if k.declared && old == p.Value {
				continue // some initiators repeat their names with every request
			}
			return nil, refuse(InitiatorError, "%s negotiated twice", p.Key)
		}
		m.seen[p.Key] = p.Value
		if m.params.Discovery && k.normalOnly {
			answer.add(p.Key, "Irrelevant")
			continue
		}
		value, err := k.negotiate(m, p.Value)
		if err != nil {
			return nil, err
		}
		if value != "" {
			answer.add(p.Key, value)
		}
	}
	if m.stage == pdu.StageOperational && !m.declared {
		m.declared = true
		m.params.MaxRecvData = m.cfg.Offer.MaxRecvData
		answer.add("MaxRecvDataSegmentLength", fmt.Sprint(m.params.MaxRecvData))
	}
	if len(security) > 0 {
		if err := m.authenticate(security, &answer); err != nil {
			return nil, err
		}
	}
	return answer.text, nil
}

// authenticate takes the CHAP keys of one request.
func (m *Machine) authenticate(keys []pdu.Pair, answer *answers) error {
	if !m.authOn || m.stage != pdu.StageSecurity {
		return refuse(AuthenticationFailed, "%s before AuthMethod was agreed on", keys[0].Key)
	}
	out, err := m.auth.step(keys)
	if err != nil {
		return refuse(AuthenticationFailed, "%v", err)
	}
	for _, p := range out {
		answer.add(p.Key, p.Value)
	}
	if m.proved() {
		m.params.User, m.params.Algorithm, m.params.Mutual = m.auth.credentials.User, m.auth.algorithm, m.auth.mutual
	}
	return nil
}

// identify runs once, on the first complete step, which must carry the names (RFC 7143 §6.3.1).
func (m *Machine) identify(answer *answers) error {
	p := &m.params
	switch {
	case m.identified:
		return nil
	case p.Initiator == "":
		return refuse(MissingParameter, "no InitiatorName")
	case !p.Discovery && p.Target == "":
		return refuse(MissingParameter, "no TargetName in a normal session")
	}
	m.identified = true
	if m.cfg.Credentials != nil {
		c, err := m.cfg.Credentials(p)
		if err != nil {
			return err
		}
		if c.User != "" {
			if err := c.Validate(); err != nil {
				return refuse(TargetError, "credentials of %s: %v", p.Initiator, err)
			}
			m.auth = &chap{credentials: c}
		}
	}
	if m.auth != nil && m.stage != pdu.StageSecurity {
		return refuse(AuthenticationFailed, "the initiator skipped the security stage, CHAP is needed")
	}
	if !p.Discovery {
		answer.add("TargetPortalGroupTag", fmt.Sprint(m.cfg.GroupTag))
	}
	return nil
}

// admit asks, once, whether the initiator may use the target.
func (m *Machine) admit() error {
	if m.admitted {
		return nil
	}
	m.admitted = true
	return m.cfg.Admit(&m.params)
}

// answers gathers the text of one response. A step has at most pdu.MaxKeys keys of at most pdu.MaxKeyBytes, and no answer
// of ours is long, so the whole fits the 8192 bytes every initiator takes during login.
type answers struct{ text []byte }

func (a *answers) add(key, value string) { a.text = pdu.AppendText(a.text, key, value) }

func isReply(value string) bool {
	return value == "NotUnderstood" || value == "Irrelevant" || value == "Reject"
}
