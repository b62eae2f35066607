// Package prove breaks a running cluster on purpose and judges what its initiators saw: real node processes on loopback or in
// network namespaces of their own, killed, stopped, restarted and cut off from one another under load over real iSCSI sessions (TestProve…, which run
// with SANCTUARY_PROVE=1 only).
//
// Invariant: a campaign fails whenever the history of all commands, each retry counted by itself, has no linearization:
// a lost acknowledged write, a stale read and a write that lands after it was given up are all the same red. A history
// that could not be judged in time is a failure too.
// It looks at the product from outside: binary, API, iSCSI. It does not simulate: its networks are the kernel's, and what they lose
// nftables has dropped. Of disks there are those that lose what was not synced (cutdisk); they do not fail otherwise.
package prove
