package initiator

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"sanctuary/target/pdu"
)

// params is what a login agreed on; RFC 7143 §13 defaults until then.
type params struct {
	headerDigest, dataDigest bool
	initialR2T, immediate    bool
	maxSend                  int // the target's MaxRecvDataSegmentLength
	firstBurst, maxBurst     int
}

func defaultParams() params {
	return params{initialR2T: true, immediate: true, maxSend: 8192, firstBurst: 65536, maxBurst: 262144}
}

// take applies one key of the target's answer.
func (p *params) take(key, value string) error {
	number := func(dst *int) error {
		n, err := strconv.ParseUint(value, 0, 32)
		if err != nil || n < 512 || n > 1<<24-1 {
			return fmt.Errorf("%w: %s=%.40s", ErrProtocol, key, value)
		}
		*dst = int(n)
		return nil
	}
	boolean := func(dst *bool, yes string) error { *dst = value == yes; return nil }
	switch key {
	case "HeaderDigest":
		return boolean(&p.headerDigest, "CRC32C")
	case "DataDigest":
		return boolean(&p.dataDigest, "CRC32C")
	case "InitialR2T":
		return boolean(&p.initialR2T, "Yes")
	case "ImmediateData":
		return boolean(&p.immediate, "Yes")
	case "MaxRecvDataSegmentLength":
		return number(&p.maxSend)
	case "FirstBurstLength":
		return number(&p.firstBurst)
	case "MaxBurstLength":
		return number(&p.maxBurst)
	}
	return nil
}

func yesNo(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}

func digestOffer(on bool) string {
	if on {
		return "CRC32C"
	}
	return "None"
}

// names returns the keys of the first login request, whatever its stage.
func (c *Config) names() []pdu.Pair {
	keys := []pdu.Pair{{Key: "InitiatorName", Value: c.InitiatorName}}
	if c.Target == "" {
		return append(keys, pdu.Pair{Key: "SessionType", Value: "Discovery"})
	}
	return append(keys, pdu.Pair{Key: "SessionType", Value: "Normal"}, pdu.Pair{Key: "TargetName", Value: c.Target})
}

// offer returns the keys of the operational stage.
func (c *Config) offer() []pdu.Pair {
	keys := []pdu.Pair{
		{Key: "HeaderDigest", Value: digestOffer(c.HeaderDigest)},
		{Key: "DataDigest", Value: digestOffer(c.DataDigest)},
		{Key: "MaxRecvDataSegmentLength", Value: strconv.Itoa(c.MaxRecvData)},
		{Key: "DefaultTime2Wait", Value: "0"},
		{Key: "DefaultTime2Retain", Value: "0"},
		{Key: "ErrorRecoveryLevel", Value: "0"},
	}
	if c.Target == "" {
		return keys
	}
	return append(keys,
		pdu.Pair{Key: "InitialR2T", Value: yesNo(c.InitialR2T)},
		pdu.Pair{Key: "ImmediateData", Value: yesNo(!c.NoImmediateData)},
		pdu.Pair{Key: "FirstBurstLength", Value: strconv.Itoa(c.FirstBurst)},
		pdu.Pair{Key: "MaxBurstLength", Value: strconv.Itoa(c.MaxBurst)},
		pdu.Pair{Key: "MaxOutstandingR2T", Value: strconv.Itoa(maxR2T)},
		pdu.Pair{Key: "MaxConnections", Value: "1"},
		pdu.Pair{Key: "DataPDUInOrder", Value: "Yes"},
		pdu.Pair{Key: "DataSequenceInOrder", Value: "Yes"})
}

const (
	maxR2T        = 8  // outstanding per command
	maxRedirects  = 3  // of one login
	maxLoginSteps = 32 // request and response pairs
)

// Dial connects and logs in. It follows redirections; they are for this session, so the next Dial begins at
// Config.Address again. Errors are a *LoginError, ErrNotProved, ErrProtocol, or the network's.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, cfg.LoginTimeout)
	defer cancel()
	address := withPort(cfg.Address)
	for range maxRedirects + 1 {
		s, redirect, err := dialOnce(limited, cfg, address)
		if redirect == "" {
			if err != nil {
				return nil, fmt.Errorf("log in to %s at %s: %w", cfg.Target, address, err)
			}
			return s, nil
		}
		address = redirect
	}
	return nil, fmt.Errorf("log in to %s at %s: %w: redirected more than %d times", cfg.Target, cfg.Address, ErrProtocol, maxRedirects)
}

func dialOnce(ctx context.Context, cfg Config, address string) (*Session, string, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, "", err
	}
	// A cancelled ctx ends whatever the login waits for.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	s := newSession(cfg, conn)
	redirect, err := s.login()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil || redirect != "" {
		_ = conn.Close() // nothing was sent that could be lost
		if ctx.Err() != nil && err != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return nil, redirect, err
	}
	s.start()
	return s, "", nil
}

// login negotiates in the operational stage, after the security stage if there is something to prove; targets that insist
// on proof refuse it otherwise.
func (s *Session) login() (redirect string, err error) {
	n := &negotiation{s: s, request: pdu.LoginRequest{ISID: s.cfg.ISID, Tag: 1, CmdSN: s.cmdSN}}
	keys := append(s.cfg.names(), s.cfg.offer()...)
	if s.cfg.CHAP.User != "" {
		if redirect, err = n.authenticate(&s.cfg.CHAP, s.cfg.names()); err != nil || redirect != "" {
			return redirect, err
		}
		keys = s.cfg.offer()
	}
	n.request.Current, n.request.Next, n.request.Transit = pdu.StageOperational, pdu.StageFullFeature, true
	for {
		got, redirect, err := n.exchange(keys)
		if err != nil || redirect != "" {
			return redirect, err
		}
		keys = nil
		for k, v := range got {
			if err := s.params.take(k, v); err != nil {
				return "", err
			}
		}
		if n.transit {
			s.r.HeaderDigest, s.w.HeaderDigest = s.params.headerDigest, s.params.headerDigest
			s.r.DataDigest, s.w.DataDigest = s.params.dataDigest, s.params.dataDigest
			return "", nil
		}
	}
}

// negotiation is a login in progress.
type negotiation struct {
	s       *Session
	request pdu.LoginRequest // of the next request
	steps   int
	transit bool // the target has agreed to the transition asked for last
}

// exchange sends the keys and returns the target's whole answer, or where it sends us. If a key comes twice, the last one counts.
func (n *negotiation) exchange(keys []pdu.Pair) (got map[string]string, redirect string, err error) {
	var (
		h      pdu.Header
		answer []byte
		s      = n.s
		text   = pdu.FormatText(keys)
	)
	for request := n.request; ; {
		if n.steps++; n.steps > maxLoginSteps {
			return nil, "", fmt.Errorf("%w: login took more than %d steps", ErrProtocol, maxLoginSteps)
		}
		request.ExpStatSN, request.TSIH = n.request.ExpStatSN, n.request.TSIH
		request.Put(&h)
		if err := s.w.Append(&h, text); err != nil {
			return nil, "", err
		}
		if err := s.w.Flush(); err != nil {
			return nil, "", err
		}
		if err := s.r.ReadHeader(&h); err != nil {
			return nil, "", err
		}
		data := make([]byte, h.DataLength())
		if err := s.r.ReadData(data); err != nil {
			return nil, "", err
		}
		if h.Opcode() != pdu.OpLoginResponse {
			return nil, "", fmt.Errorf("%w: %s in answer to a login", ErrProtocol, h.Opcode())
		}
		if answer = append(answer, data...); len(answer) > 64<<10 {
			return nil, "", fmt.Errorf("%w: more than 64 KiB of login keys", ErrProtocol)
		}
		s.expStatSN = h.StatSN() + 1
		n.request.ExpStatSN, n.request.TSIH = s.expStatSN, h.TSIH()
		if !h.Has(pdu.FlagContinue) {
			break
		}
		text, request.Transit = nil, false // an empty request asks for the rest
	}
	pairs, err := pdu.ParseText(answer)
	if err != nil {
		return nil, "", err
	}
	if status := h.LoginStatus(); status>>8 == 1 {
		redirect, err = redirection(pairs)
		return nil, redirect, err
	} else if status != 0 {
		return nil, "", &LoginError{Status: status}
	}
	got = make(map[string]string, len(pairs))
	for _, p := range pairs {
		got[p.Key] = p.Value
	}
	current, next := h.Stages()
	n.transit = h.Final()
	if current != n.request.Current || n.transit && (!n.request.Transit || next != n.request.Next) {
		return nil, "", fmt.Errorf("%w: the target goes from stage %d to %d unasked", ErrProtocol, current, next)
	}
	s.expCmdSN, s.maxCmdSN = h.ExpCmdSN(), h.MaxCmdSN()
	return got, "", nil
}

func redirection(pairs []pdu.Pair) (string, error) {
	for _, p := range pairs {
		if p.Key == "TargetAddress" && p.Value != "" {
			address, _, _ := strings.Cut(p.Value, ",")
			return parseAddress(address)
		}
	}
	return "", fmt.Errorf("%w: redirected without an address", ErrProtocol)
}

// withPort adds the port of iSCSI to an address that has none (RFC 7143 §13.8).
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), "3260")
}

// parseAddress reads an address a target has sent: host[:port], IPv6 in brackets or without a port.
func parseAddress(address string) (string, error) {
	address = withPort(address)
	host, port, err := net.SplitHostPort(address)
	_, bad := strconv.ParseUint(port, 10, 16)
	ip, notIP := netip.ParseAddr(host)
	if err != nil || bad != nil || host == "" || notIP != nil && strings.ContainsAny(host, "[]: /") {
		return "", fmt.Errorf("%w: TargetAddress=%.80q", ErrProtocol, address)
	}
	if notIP == nil {
		host = ip.String()
	}
	return net.JoinHostPort(host, port), nil
}

// Portal is where a target can be reached.
type Portal struct {
	Address  string // host:port
	GroupTag uint16 // target portal group tag
}

// Target is one answer to SendTargets.
type Target struct {
	Name    string
	Portals []Portal
}

// Discover asks a portal for its targets (SendTargets=All) as DefaultInitiatorName.
func Discover(ctx context.Context, address string) ([]Target, error) {
	return DiscoverAs(ctx, Config{Address: address})
}

// DiscoverAs is Discover with a Config, whose Target is ignored.
func DiscoverAs(ctx context.Context, cfg Config) ([]Target, error) {
	cfg.Target = ""
	s, err := Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	answer, err := s.text(ctx, []pdu.Pair{{Key: "SendTargets", Value: "All"}})
	if err != nil {
		return nil, err
	}
	targets, err := parseTargets(answer)
	if err != nil {
		return nil, err
	}
	return targets, s.Logout(ctx)
}

// parseTargets reads the answer to SendTargets (RFC 7143 appendix C), of any number of keys.
func parseTargets(answer []byte) ([]Target, error) {
	var targets []Target
	for item := range bytes.SplitSeq(answer, []byte{0}) {
		pairs, err := pdu.ParseText(item)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs { // one, or none between NULs
			switch {
			case p.Key == "TargetName":
				targets = append(targets, Target{Name: p.Value})
			case p.Key == "TargetAddress" && len(targets) > 0:
				address, tag, _ := strings.Cut(p.Value, ",")
				n, err := strconv.ParseUint(tag, 10, 16)
				if tag != "" && err != nil {
					return nil, fmt.Errorf("%w: TargetAddress=%.80s", ErrProtocol, p.Value)
				}
				if address, err = parseAddress(address); err != nil {
					return nil, err
				}
				t := &targets[len(targets)-1]
				t.Portals = append(t.Portals, Portal{Address: address, GroupTag: uint16(n)})
			}
		}
	}
	return targets, nil
}
