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
