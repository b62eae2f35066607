//go:build mutant_w

package mutant

const on = "w"
