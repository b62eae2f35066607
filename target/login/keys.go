package login

import (
	"slices"
	"strconv"
	"strings"

	"sanctuary/target/pdu"
)

// key is one text key of RFC 7143 §13 and how it is negotiated. negotiate stores the outcome in m.params and returns the
// answer, empty for none.
type key struct {
	normalOnly bool // answered with Irrelevant in a discovery session
	declared   bool // declarative: repeating the same value is harmless
	negotiate  func(m *Machine, value string) (string, error)
}

// keys is every key known. Each entry names its function in RFC 7143 §13; a value that is out of range is answered with
// Reject and leaves the default in force (§6.2.2).
var keys = map[string]key{
	// §13.1: the first of the initiator's list that we accept.
	"HeaderDigest": {negotiate: func(m *Machine, v string) (string, error) {
		return digest(v, m.cfg.Offer.HeaderDigest, &m.params.HeaderDigest)
	}},
	"DataDigest": {negotiate: func(m *Machine, v string) (string, error) {
		return digest(v, m.cfg.Offer.DataDigest, &m.params.DataDigest)
	}},
	// Minimum of both.
	"MaxConnections": number(true, 1, 65535, smaller, func(p *Params) *int { return &p.MaxConnections }),
	"MaxBurstLength": number(true, 512, pdu.MaxDataLength, smaller, func(p *Params) *int { return &p.MaxBurst }),
	"FirstBurstLength": number(true, 512, pdu.MaxDataLength, smaller,
		func(p *Params) *int { return &p.FirstBurst }),
	"MaxOutstandingR2T":  number(true, 1, 65535, smaller, func(p *Params) *int { return &p.MaxOutstandingR2T }),
	"DefaultTime2Retain": number(false, 0, 3600, smaller, func(p *Params) *int { return &p.Time2Retain }),
	"ErrorRecoveryLevel": number(false, 0, 2, smaller, func(p *Params) *int { return &p.ErrorRecoveryLevel }),
	// RFC 7144: level 1 is RFC 7143 itself.
	"iSCSIProtocolLevel": {negotiate: func(_ *Machine, v string) (string, error) {
		n, ok := ParseNumber(v)
		if !ok || n > 31 {
			return "Reject", nil
		}
		return strconv.Itoa(min(n, 1)), nil
	}},
	// Maximum of both.
	"DefaultTime2Wait": number(false, 0, 3600, larger, func(p *Params) *int { return &p.Time2Wait }),
	// OR, AND.
	"InitialR2T":    boolean(true, or, func(p *Params) *bool { return &p.InitialR2T }),
	"ImmediateData": boolean(true, and, func(p *Params) *bool { return &p.ImmediateData }),
	// We neither send nor take data out of order, so OR with Yes.
	"DataPDUInOrder":      fixed(true, "Yes", "Yes", "No"),
	"DataSequenceInOrder": fixed(true, "Yes", "Yes", "No"),
	// §13.25: obsolete, but old initiators still ask.
	"IFMarker":       fixed(false, "No", "Yes", "No"),
	"OFMarker":       fixed(false, "No", "Yes", "No"),
	"IFMarkInt":      fixed(false, "Reject"),
	"OFMarkInt":      fixed(false, "Reject"),
	"RDMAExtensions": fixed(false, "No", "Yes", "No"),
	"TaskReporting": {normalOnly: true, negotiate: func(_ *Machine, v string) (string, error) {
		if slices.Contains(strings.Split(v, ","), "RFC3720") {
			return "RFC3720", nil
		}
		return "Reject", nil
	}},
	// Declarations.
	"MaxRecvDataSegmentLength": {declared: true, negotiate: func(m *Machine, v string) (string, error) {
		n, ok := ParseNumber(v)
		if !ok || n < 512 || n > pdu.MaxDataLength {
			return "", refuse(InitiatorError, "MaxRecvDataSegmentLength=%s", v)
		}
		m.params.MaxSendData = n
		return "", nil
	}},
	"InitiatorName": taken,
	"TargetName":    taken,
	"SessionType":   taken,
	"InitiatorAlias": {declared: true, negotiate: func(m *Machine, v string) (string, error) {
		m.params.InitiatorAlias = v[:min(len(v), 255)]
		return "", nil
	}},
	// Only a target sends these, or only in full feature phase.
	"TargetAlias":          fixed(false, "Reject"),
	"TargetAddress":        fixed(false, "Reject"),
	"TargetPortalGroupTag": fixed(false, "Reject"),
	"SendTargets":          fixed(false, "Reject"),
	// §13.1 of RFC 7143, §12.1: security.
	"AuthMethod": {negotiate: negotiateAuth},
}

// taken: Machine.names has read the key before the others, because what the others mean depends on it.
var taken = key{declared: true, negotiate: func(*Machine, string) (string, error) { return "", nil }}

func negotiateAuth(m *Machine, v string) (string, error) {
	if m.stage != pdu.StageSecurity {
		return "", refuse(InitiatorError, "AuthMethod outside the security stage")
	}
	method := "None"
	if m.auth != nil {
		method = "CHAP" // and nothing less, whatever else the initiator offers
	}
	if !slices.Contains(strings.Split(v, ","), method) {
		return "", refuse(AuthenticationFailed, "the initiator offers AuthMethod=%s, %s is needed", v, method)
	}
	m.authOn = true
	return method, nil
}

// names reads the keys that say who wants what.
func (m *Machine) names(pairs []pdu.Pair) error {
	if m.identified {
		return nil
	}
	for _, p := range pairs {
		switch p.Key {
		case "InitiatorName", "TargetName":
			name, err := ParseName(p.Value)
			if err != nil {
				return refuse(InitiatorError, "%s: %v", p.Key, err)
			}
			if p.Key == "InitiatorName" {
				m.params.Initiator = name
			} else {
				m.params.Target = name
			}
		case "SessionType":
			switch p.Value {
			case "Normal":
				m.params.Discovery = false
			case "Discovery":
				m.params.Discovery = true
			default:
				return refuse(SessionTypeUnknown, "SessionType=%s", p.Value)
			}
		}
	}
	if m.params.Discovery {
		m.params.Target = ""
	}
	return nil
}

func digest(v string, accept bool, out *bool) (string, error) {
	for _, d := range strings.Split(v, ",") {
		switch {
		case d == "None":
			*out = false
			return d, nil
		case d == "CRC32C" && accept:
			*out = true
			return d, nil
		}
	}
	return "Reject", nil
}

func smaller(a, b int) int { return min(a, b) }
func larger(a, b int) int  { return max(a, b) }
func or(a, b bool) bool    { return a || b }
func and(a, b bool) bool   { return a && b }
func yesNo(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}

func number(normalOnly bool, least, most int, combine func(a, b int) int, field func(*Params) *int) key {
	return key{normalOnly: normalOnly, negotiate: func(m *Machine, v string) (string, error) {
		n, ok := ParseNumber(v)
		if !ok || n < least || n > most {
			return "Reject", nil
		}
		n = combine(n, *field(&m.cfg.Offer))
		*field(&m.params) = n
		return strconv.Itoa(n), nil
	}}
}

func boolean(normalOnly bool, combine func(a, b bool) bool, field func(*Params) *bool) key {
	return key{normalOnly: normalOnly, negotiate: func(m *Machine, v string) (string, error) {
		if v != "Yes" && v != "No" {
			return "Reject", nil
		}
		b := combine(v == "Yes", *field(&m.cfg.Offer))
		*field(&m.params) = b
		return yesNo(b), nil
	}}
}

// fixed answers the same whatever is offered, as long as the offer is one of valid (any, if none are given).
func fixed(normalOnly bool, answer string, valid ...string) key {
	return key{normalOnly: normalOnly, negotiate: func(_ *Machine, v string) (string, error) {
		if len(valid) > 0 && !slices.Contains(valid, v) {
			return "Reject", nil
		}
		return answer, nil
	}}
}

// ParseNumber reads a decimal or hexadecimal (0x) constant of RFC 7143 §6.1, from 0 to 2^31-1; false if it is none.
func ParseNumber(v string) (int, bool) {
	base := 10
	if len(v) > 2 && v[0] == '0' && (v[1] == 'x' || v[1] == 'X') {
		base, v = 16, v[2:]
	}
	n, err := strconv.ParseUint(v, base, 31)
	return int(n), err == nil && v[0] != '+'
}
