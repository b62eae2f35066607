//go:build race

package storetest

// raceEnabled: the race detector makes sync.Pool drop things at random, so allocations cannot be counted.
const raceEnabled = true
