package session

import (
	"time"

	"sanctuary/target/pdu"
)

// dropGrace is how long the initiator has to take in why its session ends.
const dropGrace = time.Second

// AskForLogout sends asynchronous message 1 (RFC 7143 §11.9): the initiator is to end its commands and log out within the
// given time, 1 s to 65535 s in whole seconds, and to come back by whatever path there is; the answer to its logout has
// Time2Wait 0. A session that still stands then ends with ErrOverdue. Only the first call counts.
func (s *Session) AskForLogout(within time.Duration) {
	seconds := min(max((within+time.Second-1)/time.Second, 1), 65535)
	if !s.leaveIn(seconds*time.Second, ErrOverdue) {
		return
	}
	var h pdu.Header
	(&pdu.Async{Event: pdu.AsyncLogoutRequest, Parameters: [3]uint16{0, 0, uint16(seconds)}}).Put(&h)
	s.out.post(item{header: h, numbered: true})
}

// Drop ends the session from this side and tells the initiator so (asynchronous message 3, RFC 7143 §11.9: all connections
// of the session are dropped): it may come back after wait, in whole seconds. Tasks end as with Close; Run returns cause. It
// does not wait. An initiator that does not read is cut off after a second.
func (s *Session) Drop(cause error, wait time.Duration) {
	seconds := min(max((wait+time.Second-1)/time.Second, 0), 65535)
	var h pdu.Header
	(&pdu.Async{Event: pdu.AsyncDropSession, Parameters: [3]uint16{0, uint16(seconds), 0}}).Put(&h)
	s.leaveIn(dropGrace, cause)
	s.out.post(item{header: h, numbered: true, end: cause})
}

// leaveIn ends the session with cause when the time is over, unless that has been arranged sooner. It says whether nobody
// had asked the session to go before.
func (s *Session) leaveIn(d time.Duration, cause error) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, s.asked = !s.asked, true
	if s.closing || !first && cause == ErrOverdue {
		return first
	}
	if s.leaving != nil {
		s.leaving.Stop()
	}
	s.leaving = time.AfterFunc(d, func() { s.Close(cause) })
	return first
}

func (s *Session) stopLeaving() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving != nil {
		s.leaving.Stop()
	}
}
