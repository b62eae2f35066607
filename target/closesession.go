package target

import "errors"

// CloseSession ends the session with that handle and says whether there was one. It does not wait for its tasks to end.
func (p *Portal) CloseSession(tsih uint16) bool {
	p.mu.Lock()
	e := p.entries[tsih]
	p.mu.Unlock()
	if e == nil || e.running() == nil {
		return false
	}
	e.close(errByOperator)
	return true
}

var errByOperator = errors.New("an operator has ended the session")
