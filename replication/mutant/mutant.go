// Package mutant takes one rule of replication away, to show which test misses it: a rule whose removal nothing notices is not
// tested. Which one, a build tag says (mutant_w and so on); scripts/mutants builds each and expects its tests to fail.
//
// Invariant: in a build without such a tag every constant is false, and what depends on one is not compiled. Two tags at once
// do not build. It does not say what a rule is: that is argued where the rule is kept.
package mutant

// What is taken away.
const (
	G    = on == "g"    // rule G: a commit counts the owner's own copy before its journal has it on disk
	W    = on == "w"    // rule W: the witness is sent what the copy in sync does not have
	F    = on == "f"    // rule F: an entry of another term than it was accepted in takes effect
	L    = on == "l"    // rule L: a lease does not lapse
	Vote = on == "vote" // a vote is given before it is on disk
	Ack  = on == "ack"  // a replica acknowledges entries before they are on disk
	// rule L: a vouch is answered for a quiet LUN whose replica has voted for another
	Vouch = on == "vouch"
)
