package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"sanctuary/blockstore/block"
)

// units by suffix. Only powers of two, written as such: "10GB" means 7 % less to some and is refused.
var units = []struct {
	suffix string
	bytes  int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// parseSize returns the bytes in a text like 10GiB or 512MiB: a whole number and KiB, MiB, GiB or TiB, or a plain number of
// bytes. It must be a multiple of 4 KiB, at least that and at most 16 TiB.
func parseSize(text string) (int64, error) {
	digits, unit := text, int64(1)
	for _, u := range units {
		if d, ok := strings.CutSuffix(text, u.suffix); ok {
			digits, unit = d, u.bytes
			break
		}
	}
	for _, r := range digits {
		if r < '0' || r > '9' {
			return 0, fmt.Errorf("size %q: use a whole number with KiB, MiB, GiB or TiB, for example 10GiB", text)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case digits == "":
		return 0, fmt.Errorf("size %q: use a whole number with KiB, MiB, GiB or TiB, for example 10GiB", text)
	case err != nil || n > math.MaxInt64/unit || n*unit > block.MaxVolumeBytes:
		return 0, fmt.Errorf("size %q: the largest LUN is 16TiB", text)
	}
	n *= unit
	if n == 0 || n%block.Size != 0 {
		return 0, fmt.Errorf("size %q: use a multiple of 4KiB, at least 4KiB", text)
	}
	return n, nil
}

// formatSize is the inverse of parseSize: exact, in the largest unit that is.
func formatSize(n int64) string {
	for _, u := range units {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

// sizeFlag is a flag that parseSize reads (pflag.Value).
type sizeFlag int64

func (s *sizeFlag) String() string { return formatSize(int64(*s)) }
func (s *sizeFlag) Type() string   { return "size" }

func (s *sizeFlag) Set(text string) error {
	n, err := parseSize(text)
	*s = sizeFlag(n)
	return err
}
