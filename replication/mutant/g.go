//go:build mutant_g

package mutant

const on = "g"
