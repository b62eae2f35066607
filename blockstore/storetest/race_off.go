//go:build !race

package storetest

// RaceEnabled says that the race detector is on.
const RaceEnabled = false
