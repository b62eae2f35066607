package session

// blank returns an empty command, one that was used before if there is one. For the reader.
func (s *Session) blank() *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.spares) - 1
	if last < 0 {
		return &command{}
	}
	c := s.spares[last]
	s.spares[last] = nil
	s.spares = s.spares[:last]
	return c
}

// recycle keeps commands that have been answered for blank, as many as can be outstanding.
func (s *Session) recycle(answered []*command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range answered {
		if c.shared || len(s.spares) >= s.cfg.Window {
			continue
		}
		*c = command{}
		s.spares = append(s.spares, c)
	}
}

// blankTransfer returns a transfer, one that was used before if there is one; mu is held.
func (s *Session) blankTransfer(c *command, offset, length int) *transfer {
	last := len(s.unused) - 1
	if last < 0 {
		return &transfer{c: c, offset: offset, length: length}
	}
	t := s.unused[last]
	s.unused = s.unused[:last]
	*t = transfer{c: c, offset: offset, length: length}
	return t
}

// answered takes a transfer whose data has come out of the table and keeps it for blankTransfer; mu is held. The caller, who is
// the reader, must not use it any more.
func (s *Session) answered(tag uint32, t *transfer) {
	delete(s.transfers, tag)
	if len(s.unused) < s.cfg.Window {
		t.c = nil
		s.unused = append(s.unused, t)
	}
}
