package reconcile

import (
	"maps"
	"slices"
)

// Tried returns a channel that is closed when every replica whose storage this process has found runs, or could not be started at the
// first attempt.
func (r *Reconciler) Tried() <-chan struct{} { return r.tried }

// noteTried looks whether that is so. It is called with mu held.
func (r *Reconciler) noteTried(plans map[string][]Action, busy map[string]bool) {
	select {
	case <-r.tried:
		return
	default:
	}
	starts := func(id string) bool {
		return slices.ContainsFunc(plans[id], func(s Action) bool { return s.Kind == Start })
	}
	if r.untried == nil {
		r.untried = map[string]bool{}
		for id := range plans {
			r.untried[id] = true
		}
	}
	maps.DeleteFunc(r.untried, func(id string, _ bool) bool {
		w := r.luns[id]
		return !busy[id] && (!starts(id) || w != nil && w.reason != nil)
	})
	if len(r.untried) == 0 {
		close(r.tried)
	}
}
