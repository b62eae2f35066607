package catalog

import (
	"cmp"
	"slices"
)

func (c *SetHost) apply(m *Model, r *Result) error {
	h := c.Host
	if err := checkName("host", h.Name); err != nil {
		return err
	}
	old, known := m.Hosts[h.Name]
	if !known && len(m.Hosts) >= MaxHosts {
		return refuse(CodeFull, "the cluster has %d hosts, the largest number supported: delete one first", MaxHosts)
	}
	if err := h.normalize(); err != nil {
		return err
	}
	for _, o := range m.Hosts {
		for _, i := range h.Initiators {
			if _, ok := slices.BinarySearch(o.Initiators, i); ok && o.Name != h.Name {
				return refuse(CodeExists, "initiator %s belongs to host %q: an initiator has one LUN map. Take it out of that host first, "+
					"or grant the LUNs to that host", i, o.Name)
			}
		}
	}
	if h.CHAP != nil {
		chap := *h.CHAP
		if old.CHAP != nil {
			chap.Secret = cmp.Or(chap.Secret, old.CHAP.Secret)
			if chap.MutualUser != "" {
				chap.MutualSecret = cmp.Or(chap.MutualSecret, old.CHAP.MutualSecret)
			}
		}
		if err := chap.check(h.Name); err != nil {
			return err
		}
		h.CHAP = &chap
	}
	h.Past = old.Past
	same := known && h.equal(old)
	if known && c.Create && !same {
		return refuse(CodeExists, "there is a host %q already: choose another name, or change that one", h.Name)
	}
	r.Changed = !same
	if !same {
		m.setHost(h)
	}
	shown := h.Redacted()
	r.Host = &shown
	return nil
}

// normalize brings a host's initiators into the form they are stored in.
func (h *Host) normalize() error {
	if len(h.Initiators) > MaxInitiators {
		return refuse(CodeInvalid, "host %q has %d initiators, at most %d are possible: make a second host", h.Name, len(h.Initiators), MaxInitiators)
	}
	names := make([]string, 0, len(h.Initiators))
	for _, i := range h.Initiators {
		n, err := InitiatorName(i)
		if err != nil {
			return err
		}
		names = append(names, n)
	}
	slices.Sort(names)
	h.Initiators = slices.Compact(names)
	return nil
}

func (h Host) equal(o Host) bool {
	if (h.CHAP == nil) != (o.CHAP == nil) || h.CHAP != nil && *h.CHAP != *o.CHAP {
		return false
	}
	return h.Name == o.Name && h.SinglePath == o.SinglePath && slices.Equal(h.Initiators, o.Initiators)
}

func (c *RemoveHost) apply(m *Model, r *Result) error {
	if _, ok := m.Hosts[c.Name]; !ok {
		r.Changed = false
		return nil
	}
	granted := m.LUNMap(c.Name)
	if len(granted) > 0 && !c.Force {
		return refuse(CodeInUse, "host %q may use %d LUNs, %s among them: take them away first, or remove it with force", c.Name, len(granted), granted[0].LUN.Name)
	}
	for _, g := range granted {
		m.revoke(g.LUN, c.Name)
	}
	delete(m.Hosts, c.Name)
	return nil
}

func (c *GrantLUN) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	h, ok := m.Hosts[c.Host]
	if !ok {
		return refuse(CodeNotFound, "there is no host %q: create it first", c.Host)
	}
	r.LUN = &l
	if g, ok := l.GrantTo(h.Name); ok {
		if c.Number != nil && *c.Number != g.Number {
			return refuse(CodeExists, "host %q has LUN %q under number %d: a device that changes its number is another one to the initiator. "+
				"Log it out and revoke the grant first", h.Name, l.Name, g.Number)
		}
		r.Changed = false
		return nil
	}
	var number uint16
	if c.Number != nil {
		number = *c.Number
		if number > MaxNumber {
			return refuse(CodeInvalid, "LUN number %d: use 0 to %d", number, MaxNumber)
		}
		for _, g := range m.LUNMap(h.Name) {
			if g.Number == number {
				return refuse(CodeExists, "host %q has LUN %q under number %d: choose another number", h.Name, g.LUN.Name, number)
			}
		}
	} else {
		var err error
		if number, err = m.chooseNumber(h, l.ID); err != nil {
			return err
		}
	}
	a := l.access()
	a.Grants = append(a.Grants, Grant{Host: h.Name, Number: number})
	slices.SortFunc(a.Grants, func(a, b Grant) int { return cmp.Compare(a.Host, b.Host) })
	l.Access = &a
	m.LUNs[l.ID] = l
	h.Past = slices.DeleteFunc(slices.Clone(h.Past), func(p PastGrant) bool { return p.Number == number })
	m.setHost(h)
	return nil
}

// access returns a copy of the LUN's access that may be changed.
func (l LUN) access() Access {
	if l.Access == nil {
		return Access{Open: true}
	}
	a := *l.Access
	a.Grants = slices.Clone(a.Grants)
	return a
}

// revoke takes a host's grant away; there must be one.
func (m *Model) revoke(l LUN, host string) LUN {
	g, _ := l.GrantTo(host)
	a := l.access()
	a.Grants = slices.DeleteFunc(a.Grants, func(g Grant) bool { return g.Host == host })
	l.Access = &a
	m.LUNs[l.ID] = l
	m.free(l.ID, g)
	return l
}

func (c *RevokeLUN) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	if _, granted := l.GrantTo(c.Host); !granted {
		r.Changed, r.LUN = false, &l
		return nil
	}
	l = m.revoke(l, c.Host)
	r.LUN = &l
	return nil
}

func (c *SetOpen) apply(m *Model, r *Result) error {
	l, err := m.lun(c.LUN)
	if err != nil {
		return err
	}
	a := l.access()
	a.Open, a.SinglePath = c.Open, c.SinglePath && c.Open
	r.Changed = l.Access == nil || l.Access.Open != a.Open || l.Access.SinglePath != a.SinglePath
	l.Access = &a
	m.LUNs[l.ID] = l
	m.needs(versionAccess)
	r.LUN = &l
	return nil
}

func (c *SetNonOptimized) apply(m *Model, r *Result) error {
	return m.set(r, c.LUN, versionAccess, func(l *LUN) *bool { return &l.NonOptimized }, c.On)
}

func (c *SetZeroDetection) apply(m *Model, r *Result) error {
	return m.set(r, c.LUN, versionZeros, func(l *LUN) *bool { return &l.ZeroDetection }, c.On)
}

// set switches an attribute of a LUN on or off. It came with that version of the model.
func (m *Model) set(r *Result, lun string, version uint64, attribute func(*LUN) *bool, on bool) error {
	l, err := m.lun(lun)
	if err != nil {
		return err
	}
	a := attribute(&l)
	r.Changed = *a != on
	*a = on
	m.LUNs[l.ID] = l
	m.needs(version)
	r.LUN = &l
	return nil
}

// grant gives a new LUN, which is in the model already, its access.
func (c *CreateLUN) grant(m *Model) error {
	if c.Access == nil {
		return nil
	}
	l := m.LUNs[c.ID]
	l.Access = &Access{Open: c.Access.Open, SinglePath: c.Access.SinglePath && c.Access.Open}
	m.LUNs[l.ID] = l
	m.needs(versionAccess)
	for _, h := range c.Access.Hosts {
		var r Result
		if err := (&GrantLUN{LUN: l.ID, Host: h}).apply(m, &r); err != nil {
			return err
		}
	}
	return nil
}
