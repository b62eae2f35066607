package catalog

import (
	"testing"
	"time"
)

func TestScrubSettingsAreCheckedAndReadPerLUN(t *testing.T) {
	for key, values := range map[string]map[string]bool{
		SettingScrubRate:     {"1": true, "65536": true, "0": false, "65537": false, "32MiB": false, "-1": false},
		SettingScrubInterval: {"1h": true, "168h": true, "59m": false, "9000h": false, "week": false},
		SettingScrubPaused:   {"vm1, vm2": true, "*": true},
	} {
		for value, right := range values {
			if err := CheckSetting(key, value); (err == nil) != right {
				t.Errorf("%s = %q: %v", key, value, err)
			}
		}
	}
	m := NewModel("lab")
	if s := m.ScrubOf("vm1"); s != (Scrub{32 << 20, 168 * time.Hour, false}) {
		t.Errorf("by default %+v", s)
	}
	m.Settings[SettingScrubRate], m.Settings[SettingScrubInterval], m.Settings[SettingScrubPaused] = "5", "2h", " vm1 ,vm3"
	if s := m.ScrubOf("vm1"); s != (Scrub{5 << 20, 2 * time.Hour, true}) {
		t.Errorf("of a LUN that is paused: %+v", s)
	}
	if m.ScrubOf("vm2").Paused {
		t.Error("another LUN is paused as well")
	}
	m.Settings[SettingScrubRate], m.Settings[SettingScrubPaused] = "much", "*"
	if s := m.ScrubOf("vm2"); s.BytesPerSecond != 32<<20 || !s.Paused {
		t.Errorf("with a value from before it was checked, and all paused: %+v", s)
	}
}
