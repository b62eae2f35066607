// Package prove breaks a running cluster on purpose and judges what its initiators saw: real node processes on loopback,
// killed, stopped and restarted under load over real iSCSI sessions (TestProve…, which run with SANCTUARY_PROVE=1 only).
//
// Invariant: a campaign fails whenever the history of all commands, each retry counted by itself, has no linearization:
// a lost acknowledged write, a stale read and a write that lands after it was given up are all the same red. A history
// that could not be judged in time is a failure too.
// It looks at the product from outside: binary, API, iSCSI. It does not simulate faults of disks or networks.
package prove
