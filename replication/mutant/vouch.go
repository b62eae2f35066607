//go:build mutant_vouch

package mutant

const on = "vouch"
