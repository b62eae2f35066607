package session

import (
	"strings"

	"sanctuary/target/login"
	"sanctuary/target/pdu"
)

// textExchange is a text negotiation in progress (RFC 7143 §7.4, §11.10): one at a time, continued under one tag.
type textExchange struct {
	open   bool
	tag    uint32 // initiator task tag
	handle uint32 // target transfer tag the initiator continues under
	in     []byte
	out    []byte // what is left of the answer
}

// textRequest handles a Text Request: SendTargets, and MaxRecvDataSegmentLength declared anew.
func (s *Session) textRequest(h *pdu.Header) error {
	s.retire(h.Immediate())
	n := h.DataLength()
	x := &s.text
	tag, handle, lun := h.Tag(), h.TransferTag(), h.LUN()
	final, cont := h.Final(), h.Has(pdu.FlagContinue)
	switch {
	case tag == pdu.NoTag:
		return protocolError("text request with the reserved task tag")
	case final && cont:
		return protocolError("F and C bits together in a text request")
	case handle != pdu.NoTag && (!x.open || handle != x.handle || tag != x.tag):
		s.reject(pdu.RejectInvalidField)
		return s.reader.Discard(n)
	case handle == pdu.NoTag: // a new exchange ends the old one (§11.10.4)
		*x = textExchange{open: true, tag: tag, handle: x.handle + 1}
		if x.handle == pdu.NoTag {
			x.handle = 0
		}
	}
	if len(x.in)+n > maxText {
		*x = textExchange{handle: x.handle}
		s.reject(pdu.RejectProtocol)
		return s.reader.Discard(n)
	}
	at := len(x.in)
	x.in = append(x.in, make([]byte, n)...)
	if err := s.reader.ReadData(x.in[at:]); err != nil {
		return err
	}
	if !cont && len(x.out) == 0 && (len(x.in) > 0 || handle == pdu.NoTag) {
		answer, reason := s.answerText(x.in)
		x.in = nil
		if reason != 0 {
			*x = textExchange{handle: x.handle}
			s.reject(reason)
			return nil
		}
		x.out = answer
	}
	// The answer goes out in pieces the initiator takes; it fetches the next with an empty request.
	piece := x.out
	if cont {
		piece = nil
	} else {
		piece = piece[:min(len(piece), s.params.MaxSendData)]
		x.out = x.out[len(piece):]
	}
	r := pdu.TextResponse{LUN: lun, Tag: tag, TransferTag: pdu.NoTag, Continue: len(x.out) > 0}
	r.Final = !cont && final && !r.Continue
	if r.Final {
		*x = textExchange{handle: x.handle}
	} else {
		r.TransferTag = x.handle
	}
	var out pdu.Header
	r.Put(&out)
	s.out.postFromReader(item{header: out, data: piece, numbered: true})
	return nil
}

// answerText returns the answer to a complete request, or why it is rejected as a whole.
func (s *Session) answerText(in []byte) ([]byte, pdu.RejectReason) {
	pairs, err := pdu.ParseText(in)
	if err != nil {
		return nil, pdu.RejectProtocol
	}
	var out []byte
	listed := false
	for _, p := range pairs {
		switch {
		case p.Key == "SendTargets":
			// Once: a list of all targets is long, and whoever asks may have proved nothing.
			if listed || !s.validSendTargets(p.Value) {
				return nil, pdu.RejectProtocol
			}
			listed = true
			value := strings.ToLower(p.Value)
			if p.Value == "All" {
				value = p.Value
			}
			for _, a := range s.cfg.SendTargets(value) {
				out = pdu.AppendText(out, a.Key, a.Value)
			}
		case strings.EqualFold(p.Key, "SendTargets"):
			return nil, pdu.RejectProtocol // keys are case-sensitive; this one is a mistake worth telling
		case p.Key == "MaxRecvDataSegmentLength":
			n, ok := login.ParseNumber(p.Value)
			if !ok || n < 512 || n > pdu.MaxDataLength {
				return nil, pdu.RejectProtocol
			}
			// Taken note of, but used no further: the value of the login stays in force, which is allowed as long as
			// it is not the longer one; so a shorter one is refused.
			if n < s.params.MaxSendData {
				return nil, pdu.RejectNotSupported
			}
		case p.Key == "InitiatorAlias":
		default:
			out = pdu.AppendText(out, p.Key, "NotUnderstood")
		}
	}
	return out, 0
}

// validSendTargets says whether a value may be asked for in this kind of session (RFC 7143 appendix C).
func (s *Session) validSendTargets(value string) bool {
	switch {
	case value == "All":
		return true
	case value == "":
		return !s.params.Discovery
	}
	v := strings.ToLower(value)
	return strings.HasPrefix(v, "iqn.") || strings.HasPrefix(v, "eui.") || strings.HasPrefix(v, "naa.")
}
