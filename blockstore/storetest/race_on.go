//go:build race

package storetest

// RaceEnabled says that the race detector is on. It makes sync.Pool drop things at random, so allocations cannot be
// counted, and everything ten times slower.
const RaceEnabled = true
