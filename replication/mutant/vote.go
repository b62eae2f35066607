//go:build mutant_vote

package mutant

const on = "vote"
