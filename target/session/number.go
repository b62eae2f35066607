package session

import (
	"slices"

	"sanctuary/target/pdu"
)

// number takes in the CmdSN of a command that is not immediate. Outside the window, which may be closed, a command is
// silently ignored (RFC 7143 §4.2.2.1); unsolicited data that follows names a task we do not have, and is ignored too.
func (s *Session) number(sn uint32) (ignore bool, err error) {
	exp := s.expCmdSN.Load()
	switch {
	case pdu.SerialLess(sn, exp) || pdu.SerialLess(s.maxCmdSN.Load(), sn):
		return true, nil
	case slices.Contains(s.skipped, sn):
		return true, nil // aborted before it came
	case sn != exp:
		// On the only connection, in order, a number that was left out will never come.
		return false, protocolError("CmdSN %d, expected %d", sn, exp)
	}
	s.expCmdSN.Store(exp + 1)
	s.skipOn()
	return false, nil
}

// skip says whether ABORT TASK is about a command that has not come and now never may: then its CmdSN counts as received,
// and the function is complete (RFC 7143 §11.5.1). Otherwise the task does not exist.
func (s *Session) skip(ref, ofRequest uint32) bool {
	if pdu.SerialLess(ref, s.expCmdSN.Load()) || pdu.SerialLess(s.maxCmdSN.Load(), ref) || !pdu.SerialLess(ref, ofRequest) {
		return false
	}
	if !slices.Contains(s.skipped, ref) { // at most as many as the window has numbers
		s.skipped = append(s.skipped, ref)
		s.skipOn()
	}
	return true
}

// skipOn passes over the numbers that count as received.
func (s *Session) skipOn() {
	for len(s.skipped) > 0 {
		i := slices.Index(s.skipped, s.expCmdSN.Load())
		if i < 0 {
			return
		}
		s.skipped = slices.Delete(s.skipped, i, i+1)
		s.expCmdSN.Add(1)
		s.retire(false)
	}
}
