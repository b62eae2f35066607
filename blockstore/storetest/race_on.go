//go:build race

package storetest

import (
	"flag"

	_ "pgregory.net/rapid" // its flags are there before init runs
)

// RaceEnabled says that the race detector is on. It makes sync.Pool drop things at random, so allocations cannot be
// counted, and everything ten times slower.
const RaceEnabled = true

// Random sequences of one goroutine have no races to be found: a third of them will do, unless -rapid.checks says otherwise. The
// run without the detector plays them all.
func init() {
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
}
