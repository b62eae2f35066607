package mutant

import "testing"

// Tests, and the product, are built with the same tags: no rule is missing there.
func TestNoRuleIsTakenAway(t *testing.T) {
	if G || W || F || L || Vote || Ack || Vouch {
		t.Fatalf("this is the mutant without rule %q", on)
	}
}
