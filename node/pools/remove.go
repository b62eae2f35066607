package pools

import (
	"fmt"
	"slices"
	"strings"
)

// Removal says how to remove a pool.
type Removal struct {
	// Wipe deletes the pool's files, or its header on a device. Without it the medium stays as it is.
	Wipe bool
	// InUse returns what is in the pool, for the message. It is asked when nothing new can come to be in it.
	InUse func() ([]string, error)
}

// Remove forgets a pool that nothing is in. A *Refusal changes nothing.
func (s *Set) Remove(name string, r Removal) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	p, ok := s.Get(name)
	if !ok {
		return &Refusal{Missing: true, What: fmt.Sprintf("node %s has no pool %q", s.cfg.Node, name), Next: "List what there is: sanctuary pool list."}
	}
	if p.Configured {
		return conflict("Remove it there, once nothing is in it, and restart the node.", "pool %q is set in the configuration file of node %s", name, s.cfg.Node)
	}
	if err := s.empty(p, r.InUse); err != nil {
		s.mu.Lock()
		p.removing = false
		s.mu.Unlock()
		return err
	}
	rest := slices.DeleteFunc(s.List(), func(x *Pool) bool { return x == p })
	if err := writeList(s.cfg.Dir, rest); err != nil {
		s.mu.Lock()
		p.removing = false
		s.mu.Unlock()
		return fmt.Errorf("pool %q stays: %w", name, err)
	}
	s.mu.Lock()
	delete(s.list, name)
	s.mu.Unlock()
	s.cfg.Logger.Info("pool removed", "pool", name, "on", p.Where(), "wiped", r.Wipe)
	if p.store != nil {
		if err := p.store.Close(); err != nil {
			return fmt.Errorf("pool %q is removed, but did not end in order, and was not wiped: %w", name, err)
		}
	}
	if !r.Wipe {
		return nil
	}
	err := p.isThere() // what has taken its place is not ours to wipe
	if err == nil {
		err = erased(p)
	}
	if err != nil {
		return fmt.Errorf("pool %q is removed, but %s was not wiped: %w", name, p.Where(), err)
	}
	return nil
}

// empty lets nothing new into the pool, and refuses if there is something in it.
func (s *Set) empty(p *Pool, inUse func() ([]string, error)) error {
	s.mu.Lock()
	p.removing = true
	users := p.users
	s.mu.Unlock()
	if users > 0 {
		return conflict("Repeat it in a moment.", "a replica is being made in pool %q", p.Name)
	}
	used, err := inUse()
	if err != nil {
		return err
	}
	if len(used) > 0 {
		return conflict("Delete the LUNs, or leave the pool.", "pool %q of node %s holds %d replicas: %s", p.Name, s.cfg.Node, len(used), strings.Join(used, ", "))
	}
	return nil
}
