package catalog

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Settings of the scrub, which reads every copy from time to time and repairs what is bad.
const (
	// SettingScrubRate is how much each node's scrub may read, in MiB per second.
	SettingScrubRate = "scrub.rate"
	// SettingScrubInterval is the time from the beginning of one pass over a LUN to that of the next, as a Go duration.
	SettingScrubInterval = "scrub.interval"
	// SettingScrubPaused are the names of LUNs that are not scrubbed for the time being, separated by commas; "*" is all.
	SettingScrubPaused = "scrub.paused"
)

// Defaults and limits of the scrub's settings.
const (
	DefaultScrubRate     = 32
	MaxScrubRate         = 65536
	DefaultScrubInterval = 7 * 24 * time.Hour
	MinScrubInterval     = time.Hour
	MaxScrubInterval     = 366 * 24 * time.Hour
)

// Scrub is how a LUN is to be scrubbed.
type Scrub struct {
	BytesPerSecond int64
	Interval       time.Duration
	Paused         bool
}

// ScrubOf returns how the LUN of that name is to be scrubbed. What was stored before this program checked it counts as not set.
func (m *Model) ScrubOf(name string) Scrub {
	s := Scrub{BytesPerSecond: DefaultScrubRate << 20, Interval: DefaultScrubInterval}
	if mib, err := parseScrubRate(m.Settings[SettingScrubRate]); err == nil {
		s.BytesPerSecond = int64(mib) << 20
	}
	if d, err := parseScrubInterval(m.Settings[SettingScrubInterval]); err == nil {
		s.Interval = d
	}
	paused := m.PausedScrubs()
	s.Paused = slices.Contains(paused, "*") || slices.Contains(paused, name)
	return s
}

// PausedScrubs returns the names in scrub.paused.
func (m *Model) PausedScrubs() (names []string) {
	for part := range strings.SplitSeq(m.Settings[SettingScrubPaused], ",") {
		if part = strings.TrimSpace(part); part != "" {
			names = append(names, part)
		}
	}
	return names
}

func parseScrubRate(text string) (mib uint64, err error) {
	mib, err = strconv.ParseUint(text, 10, 32)
	if err != nil || mib < 1 || mib > MaxScrubRate {
		return 0, refuse(CodeInvalid, "setting %s: %q: use a whole number of MiB per second, 1 to %d", SettingScrubRate, text, MaxScrubRate)
	}
	return mib, nil
}

func parseScrubInterval(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < MinScrubInterval || d > MaxScrubInterval {
		return 0, refuse(CodeInvalid, "setting %s: %q: use a time from %v to %v, for example 168h", SettingScrubInterval, text, MinScrubInterval, MaxScrubInterval)
	}
	return d, nil
}
