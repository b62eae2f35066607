// Package login negotiates an iSCSI login from the target's side (RFC 7143 §6, §7 and §13).
//
// Invariant: full feature phase is reached only after every key has been negotiated by its own function, the portal has
// admitted the initiator to the target, and authentication, where asked for, is done. What has not been negotiated has
// the value the RFC gives it.
// It does no I/O, starts no goroutine and keeps at most Config.MaxTextBytes: target/session moves the PDUs.
package login

import (
	"errors"
	"fmt"

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
	Address string // MovedTemporarily and MovedPermanently: where to go, host:port[,tag]
	Reason  string // for our own log; the initiator sees only the status
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("login refused with status %04Xh: %s", uint16(r.Status), r.Reason)
}

func refuse(s Status, format string, args ...any) error {
	return &Refusal{Status: s, Reason: fmt.Sprintf(format, args...)}
}

// Authenticator proves who the initiator is within the security stage. One is used for one login.
type Authenticator interface {
	// Method is the AuthMethod value, for example "CHAP".
	Method() string
	// Step takes the security keys of one request that are not AuthMethod, and returns the answer to them. done means
	// that the initiator has proved itself; an error refuses the login with AuthenticationFailed.
	Step(keys []pdu.Pair) (answer []pdu.Pair, done bool, err error)
}

// Config is what this side offers and who decides. All lengths are in bytes.
type Config struct {
	Offer Params // the values we would like; see DefaultOffer

	// GroupTag is the target portal group tag of the portal logged in through, 1..65535.
	GroupTag uint16
	// MaxTextBytes bounds the text of one negotiation step over all its continuations; 0 means 16 KiB.
	MaxTextBytes int
	// Admit is called once, when the names are known. It returns a *Refusal (or redirects) or nil.
	Admit func(p *Params) error
	// Authenticate returns what must be passed before p may leave the security stage, nil for AuthMethod=None.
	// It may be nil itself.
	Authenticate func(p *Params) Authenticator
	// Establish is called once, before the last response: session reinstatement happens here. It returns the TSIH of
	// the session (never 0), or a *Refusal.
	Establish func(p *Params) (tsih uint16, err error)
}

// Params is a session's parameters: asked for in Config.Offer, negotiated in Machine.Params.
type Params struct {
	Initiator      string // InitiatorName, in lower case (RFC 3722 folds it)
	InitiatorAlias string
	Target         string // TargetName in lower case, empty in a discovery session
	Discovery      bool
	ISID           [6]byte
	TSIH           uint16
	CID            uint16

	HeaderDigest, DataDigest bool // CRC32C; in an offer: accepted if the initiator wants it
	InitialR2T               bool
	ImmediateData            bool
	MaxRecvData              int // the longest data segment we take: 512..2^24-1
	MaxSendData              int // the longest data segment the initiator takes (its MaxRecvDataSegmentLength)
	MaxBurst                 int // 512..2^24-1
	FirstBurst               int // 512..2^24-1
	MaxOutstandingR2T        int // 1..65535
	Time2Wait                int // seconds, 0..3600
	Time2Retain              int // seconds, 0..3600
	MaxConnections           int
	ErrorRecoveryLevel       int
}

// DefaultOffer is what suits a storage network: one round trip less for writes up to FirstBurst, long bursts, no
// connection or error recovery beyond a new login.
func DefaultOffer() Params {
	return Params{
		HeaderDigest: true, DataDigest: true, InitialR2T: false, ImmediateData: true,
		MaxRecvData: 256 << 10, MaxBurst: 1 << 20, FirstBurst: 256 << 10, MaxOutstandingR2T: 8,
		Time2Wait: 0, Time2Retain: 0, MaxConnections: 1, ErrorRecoveryLevel: 0,
	}
}

// defaults are the values of keys that were not negotiated (RFC 7143 §13).
func defaults() Params {
	return Params{
		InitialR2T: true, ImmediateData: true, MaxRecvData: 8192, MaxSendData: 8192, MaxBurst: 262144, FirstBurst: 65536,
		MaxOutstandingR2T: 1, Time2Wait: 2, Time2Retain: 20, MaxConnections: 1,
	}
}

const defaultMaxText = 16 << 10

// Validate names the field that is out of range.
func (c *Config) Validate() error {
	o := &c.Offer
	for _, f := range []struct {
		name          string
		v, least, top int
	}{
		{"MaxRecvData", o.MaxRecvData, 512, pdu.MaxDataLength},
		{"MaxBurst", o.MaxBurst, 512, pdu.MaxDataLength},
		{"FirstBurst", o.FirstBurst, 512, o.MaxBurst},
		{"MaxOutstandingR2T", o.MaxOutstandingR2T, 1, 65535},
		{"Time2Wait", o.Time2Wait, 0, 3600},
		{"Time2Retain", o.Time2Retain, 0, 3600},
		{"MaxConnections", o.MaxConnections, 1, 1},
		{"ErrorRecoveryLevel", o.ErrorRecoveryLevel, 0, 0},
		{"GroupTag", int(c.GroupTag), 1, 65535},
	} {
		if f.v < f.least || f.v > f.top {
			return fmt.Errorf("login: %s is %d, use %d..%d", f.name, f.v, f.least, f.top)
		}
	}
	if c.Establish == nil || c.Admit == nil {
		return errors.New("login: Admit and Establish are needed")
	}
	return nil
}

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
	begun    bool // the first request has been seen
	admitted bool
	finished bool
	tag      uint32
	text     []byte            // gathered from requests with the C bit
	seen     map[string]string // keys negotiated so far: none may be negotiated twice
	declared bool              // our own MaxRecvDataSegmentLength has been sent
	auth     Authenticator
	authOn   bool // AuthMethod has been agreed on
	authDone bool
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
		r.Response.ISID = h.ISID()
		r.Response.Status = uint16(ref.Status)
		if ref.Address != "" {
			r.Text = pdu.AppendText(nil, "TargetAddress", ref.Address)
		}
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
	if m.stage == pdu.StageSecurity && !m.mayLeaveSecurity() {
		return text, false, nil // the answer without T: the initiator goes on proving itself
	}
	if _, next := h.Stages(); next == pdu.StageFullFeature {
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
	if !m.begun {
		m.begun = true
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

func (m *Machine) mayLeaveSecurity() bool { return m.auth == nil || m.authDone }

// negotiate answers the keys of one complete step.
func (m *Machine) negotiate(pairs []pdu.Pair) ([]byte, error) {
	var security []pdu.Pair
	answer := answers{}
	if err := m.names(pairs); err != nil {
		return nil, err
	}
	if !m.admitted {
		if err := m.admit(&answer); err != nil {
			return nil, err
		}
	}
	for _, p := range pairs {
		k, known := keys[p.Key]
		switch {
		case !known:
			if m.auth != nil && m.authOn && m.stage == pdu.StageSecurity {
				security = append(security, p)
				continue
			}
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

func (m *Machine) authenticate(keys []pdu.Pair, answer *answers) error {
	out, done, err := m.auth.Step(keys)
	if err != nil {
		return refuse(AuthenticationFailed, "%v", err)
	}
	for _, p := range out {
		answer.add(p.Key, p.Value)
	}
	m.authDone = done
	return nil
}

// admit runs once, on the first complete step, which must carry the names (RFC 7143 §6.3.1).
func (m *Machine) admit(answer *answers) error {
	p := &m.params
	switch {
	case p.Initiator == "":
		return refuse(MissingParameter, "no InitiatorName")
	case !p.Discovery && p.Target == "":
		return refuse(MissingParameter, "no TargetName in a normal session")
	}
	if err := m.cfg.Admit(p); err != nil {
		return err
	}
	if m.cfg.Authenticate != nil {
		m.auth = m.cfg.Authenticate(p)
	}
	if m.auth != nil && m.stage != pdu.StageSecurity {
		return refuse(AuthenticationFailed, "the initiator skipped the security stage")
	}
	m.admitted = true
	if !p.Discovery {
		answer.add("TargetPortalGroupTag", fmt.Sprint(m.cfg.GroupTag))
	}
	return nil
}

// answers gathers the text of one response. A step has at most pdu.MaxKeys keys of at most pdu.MaxKeyBytes, and no answer
// of ours is long, so the whole fits the 8192 bytes every initiator takes during login.
type answers struct{ text []byte }

func (a *answers) add(key, value string) { a.text = pdu.AppendText(a.text, key, value) }

func isReply(value string) bool {
	return value == "NotUnderstood" || value == "Irrelevant" || value == "Reject"
}
