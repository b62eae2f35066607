//go:build race

package witness

// raceDetector makes what is explored a sample: it is ten times slower with it, and there is nothing in it that could race.
const raceDetector = true
