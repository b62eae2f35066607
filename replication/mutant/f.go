//go:build mutant_f

package mutant

const on = "f"
