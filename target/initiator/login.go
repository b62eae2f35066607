package initiator

import (
	"context"
	"fmt"
	"net"
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

// offer returns the keys of the first login request.
func (c *Config) offer() []pdu.Pair {
	keys := []pdu.Pair{{Key: "InitiatorName", Value: c.InitiatorName}}
	if c.Target == "" {
		keys = append(keys, pdu.Pair{Key: "SessionType", Value: "Discovery"})
	} else {
		keys = append(keys, pdu.Pair{Key: "SessionType", Value: "Normal"}, pdu.Pair{Key: "TargetName", Value: c.Target})
	}
	keys = append(keys,
		pdu.Pair{Key: "HeaderDigest", Value: digestOffer(c.HeaderDigest)},
		pdu.Pair{Key: "DataDigest", Value: digestOffer(c.DataDigest)},
		pdu.Pair{Key: "MaxRecvDataSegmentLength", Value: strconv.Itoa(c.MaxRecvData)},
		pdu.Pair{Key: "DefaultTime2Wait", Value: "0"},
		pdu.Pair{Key: "DefaultTime2Retain", Value: "0"},
		pdu.Pair{Key: "ErrorRecoveryLevel", Value: "0"})
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
	maxLoginSteps = 16 // request and response pairs
)

// Dial connects and logs in. It follows redirections. Errors are a *LoginError, ErrProtocol, or the network's.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, cfg.LoginTimeout)
	defer cancel()
	address := cfg.Address
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

// login negotiates in the operational stage; targets that insist on authentication refuse that.
func (s *Session) login() (redirect string, err error) {
	text, answer := pdu.FormatText(s.cfg.offer()), []byte(nil)
	request := pdu.LoginRequest{
		Transit: true, Current: pdu.StageOperational, Next: pdu.StageFullFeature,
		ISID: s.cfg.ISID, Tag: 1, CmdSN: s.cmdSN,
	}
	var h pdu.Header
	for range maxLoginSteps {
		request.Put(&h)
		if err := s.w.Append(&h, text); err != nil {
			return "", err
		}
		if err := s.w.Flush(); err != nil {
			return "", err
		}
		text = nil
		if err := s.r.ReadHeader(&h); err != nil {
			return "", err
		}
		data := make([]byte, h.DataLength())
		if err := s.r.ReadData(data); err != nil {
			return "", err
		}
		if h.Opcode() != pdu.OpLoginResponse {
			return "", fmt.Errorf("%w: %s in answer to a login", ErrProtocol, h.Opcode())
		}
		if answer = append(answer, data...); len(answer) > 64<<10 {
			return "", fmt.Errorf("%w: more than 64 KiB of login keys", ErrProtocol)
		}
		s.expStatSN = h.StatSN() + 1
		request.ExpStatSN, request.TSIH = s.expStatSN, h.TSIH()
		if h.Has(pdu.FlagContinue) {
			request.Transit = false // an empty request asks for the rest
			continue
		}
		pairs, err := pdu.ParseText(answer)
		if err != nil {
			return "", err
		}
		answer, request.Transit = nil, true
		if status := h.LoginStatus(); status>>8 == 1 {
			return redirection(pairs)
		} else if status != 0 {
			return "", &LoginError{Status: status}
		}
		for _, p := range pairs {
			if err := s.params.take(p.Key, p.Value); err != nil {
				return "", err
			}
		}
		if _, next := h.Stages(); h.Final() && next == pdu.StageFullFeature {
			s.expCmdSN, s.maxCmdSN = h.ExpCmdSN(), h.MaxCmdSN()
			s.r.HeaderDigest, s.w.HeaderDigest = s.params.headerDigest, s.params.headerDigest
			s.r.DataDigest, s.w.DataDigest = s.params.dataDigest, s.params.dataDigest
			return "", nil
		}
	}
	return "", fmt.Errorf("%w: login took more than %d steps", ErrProtocol, maxLoginSteps)
}

func redirection(pairs []pdu.Pair) (string, error) {
	for _, p := range pairs {
		if p.Key == "TargetAddress" {
			address, _, _ := strings.Cut(p.Value, ",")
			return address, nil
		}
	}
	return "", fmt.Errorf("%w: redirected without an address", ErrProtocol)
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
	pairs, err := s.text(ctx, []pdu.Pair{{Key: "SendTargets", Value: "All"}})
	if err != nil {
		return nil, err
	}
	var targets []Target
	for _, p := range pairs {
		switch {
		case p.Key == "TargetName":
			targets = append(targets, Target{Name: p.Value})
		case p.Key == "TargetAddress" && len(targets) > 0:
			address, tag, _ := strings.Cut(p.Value, ",")
			n, err := strconv.ParseUint(tag, 10, 16)
			if tag != "" && err != nil {
				return nil, fmt.Errorf("%w: TargetAddress=%.80s", ErrProtocol, p.Value)
			}
			t := &targets[len(targets)-1]
			t.Portals = append(t.Portals, Portal{Address: address, GroupTag: uint16(n)})
		}
	}
	return targets, s.Logout(ctx)
}
