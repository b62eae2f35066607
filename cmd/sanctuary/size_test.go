package main

import "testing"

func TestSizesAreReadStrictly(t *testing.T) {
	for text, want := range map[string]int64{
		"4096": 4096, "4KiB": 4096, "512MiB": 512 << 20, "10GiB": 10 << 30, "1TiB": 1 << 40, "16TiB": 16 << 40, "17592186044416": 16 << 40,
	} {
		got, err := parseSize(text)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
		if back, err := parseSize(formatSize(got)); err != nil || back != got {
			t.Errorf("%q is shown as %q, which reads as %d", text, formatSize(got), back)
		}
	}
	for _, text := range []string{
		"", "GiB", "0", "0GiB", "-1GiB", "+1GiB", "1.5GiB", "10GB", "10G", "10 GiB", " 10GiB", "10gib", "10GiBs", "0x10", "1e9", "1_000KiB",
		"4097", "1", "512", "17TiB", "16385GiB", "9223372036854775807", "99999999999999999999GiB", "8388608TiB", "９GiB",
	} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("%q is accepted as %d", text, n)
		}
	}
}

func FuzzSize(f *testing.F) {
	f.Add("10GiB")
	f.Add("99999999999TiB")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseSize(text)
		if err == nil && (n < 4096 || n > 16<<40 || n%4096 != 0) {
			t.Errorf("%q is accepted as %d", text, n)
		}
	})
}
