//go:build mutant_l

package mutant

const on = "l"
