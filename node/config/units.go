package config

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// Size is a number of bytes. In text it is a number with a unit: B, KiB, MiB, GiB, TiB (powers of 1024), KB, MB, GB, TB
// (powers of 1000). A number without a unit is bytes. Fractions are allowed if they give whole bytes.
type Size int64

var units = []struct {
	name  string
	bytes int64
}{
	// Longest names first, so that "KiB" is not taken for a "B".
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// ParseSize reads a size as a Size's text. Units are matched without regard to case.
func ParseSize(s string) (Size, error) {
	bad := fmt.Errorf("size %q: write a number and a unit, such as 512MiB, 10GiB or 1.5TiB", s)
	text, unit := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if len(text) > len(u.name) && strings.EqualFold(text[len(text)-len(u.name):], u.name) {
			text, unit = strings.TrimSpace(text[:len(text)-len(u.name)]), u.bytes
			break
		}
	}
	if text == "" || len(text) > 24 || strings.Trim(text, "0123456789.") != "" {
		return 0, bad
	}
	n, ok := new(big.Rat).SetString(text)
	if !ok {
		return 0, bad
	}
	n.Mul(n, new(big.Rat).SetInt64(unit))
	if !n.IsInt() {
		return 0, fmt.Errorf("size %q is not a whole number of bytes", s)
	}
	if !n.Num().IsInt64() {
		return 0, fmt.Errorf("size %q is larger than anything that can be stored", s)
	}
	return Size(n.Num().Int64()), nil
}

// String returns the size in the largest binary unit that divides it.
func (s Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := units[i]; s != 0 && int64(s)%u.bytes == 0 {
			return fmt.Sprintf("%d%s", int64(s)/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	v, err := ParseSize(string(b))
	if err == nil {
		*s = v
	}
	return err
}

// Set implements pflag.Value.
func (s *Size) Set(text string) error { return s.UnmarshalText([]byte(text)) }

// Type implements pflag.Value.
func (*Size) Type() string { return "size" }

// MarshalJSON writes the number of bytes: a program reads it.
func (s Size) MarshalJSON() ([]byte, error) { return json.Marshal(int64(s)) }

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Size) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, (*int64)(s)) }

// Duration is a time.Duration that is written "500ms" or "1m30s".
type Duration time.Duration

// Std returns the duration as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration %q: write a number and a unit, such as 250ms or 2s", b)
	}
	*d = Duration(v)
	return nil
}

// Set implements pflag.Value.
func (d *Duration) Set(text string) error { return d.UnmarshalText([]byte(text)) }

// Type implements pflag.Value.
func (*Duration) Type() string { return "duration" }
