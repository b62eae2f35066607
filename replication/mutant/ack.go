//go:build mutant_ack

package mutant

const on = "ack"
