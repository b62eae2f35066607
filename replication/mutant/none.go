//go:build !mutant_g && !mutant_w && !mutant_f && !mutant_l && !mutant_vote && !mutant_ack && !mutant_vouch

package mutant

const on = ""
