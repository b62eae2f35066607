package reconcile

import (
	"cmp"
	"slices"
	"time"
)

// Status is what is under way or in the way for one LUN on this node.
type Status struct {
	LUN      string    `json:"lun"` // ID
	Name     string    `json:"name"`
	Doing    string    `json:"doing,omitempty"`
	Failures int       `json:"failures,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Retry    time.Time `json:"retry,omitzero"`
}

// Status returns the LUNs for which something is under way or has failed, by name, and storage that is left alone. The error says why
// the node cannot tell what it has.
func (r *Reconciler) Status() ([]Status, []Orphan, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Status
	for id, w := range r.luns {
		s := Status{LUN: id, Name: w.name, Doing: w.doing}
		if w.reason != nil {
			s.Failures, s.Reason, s.Retry = w.failures, w.reason.Error(), w.retry
		}
		if w.busy || w.reason != nil {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.LUN, b.LUN)) })
	return out, slices.Clone(r.orphans), r.blind
}
