package catalog

import (
	"slices"
	"strconv"
	"strings"
)

// Settings of the cluster that this program uses.
const (
	// SettingPortalGroups divides portals by subnet: prefixes separated by commas, see ParsePortalGroups. A node takes
	// the groups of its portals from it when it starts.
	SettingPortalGroups = "portal_groups"
	// SettingCHAPAlgorithms are the CHAP algorithms initiators may use, separated by commas; all if it is not set.
	SettingCHAPAlgorithms = "chap.algorithms"
)

// Algorithms of CHAP, the strongest first: the names of the setting.
const (
	AlgorithmSHA3 = "sha3-256" // CHAP_A 8
	AlgorithmSHA2 = "sha-256"  // CHAP_A 7
	AlgorithmSHA1 = "sha-1"    // CHAP_A 6
	AlgorithmMD5  = "md5"      // CHAP_A 5
)

// Algorithms returns all CHAP algorithms, the strongest first.
func Algorithms() []string {
	return []string{AlgorithmSHA3, AlgorithmSHA2, AlgorithmSHA1, AlgorithmMD5}
}

// SettingInfo describes a setting to an operator.
type SettingInfo struct {
	Key     string
	Default string // what it means that it is not set
	About   string
}

// KnownSettings returns the settings this program uses, by key.
func KnownSettings() []SettingInfo {
	return []SettingInfo{
		{SettingCHAPAlgorithms, strings.Join(Algorithms(), ","), "CHAP algorithms initiators may use, separated by commas; the strongest that both sides know is used"},
		{
			SettingPortalGroups, "", "Subnets of the storage networks, separated by commas: discovery through one lists only portals in the same one; " +
				"a node takes them over when it is restarted",
		},
		{SettingScrubInterval, "168h", "Time from the beginning of one scrub of a LUN to that of the next"},
		{SettingScrubPaused, "", "LUNs that are not scrubbed for the time being: names separated by commas, or * for all; see sanctuary lun scrub"},
		{SettingScrubRate, strconv.Itoa(DefaultScrubRate), "What the scrubs of one node may read, in MiB per second; a quarter of it from a LUN that is used"},
	}
}

// CheckSetting says what is wrong with the value of a setting this program uses; an empty value (the default) and settings
// it does not use are right.
func CheckSetting(key, value string) error {
	if value == "" {
		return nil
	}
	switch key {
	case SettingPortalGroups:
		_, err := ParsePortalGroups(value)
		return err
	case SettingCHAPAlgorithms:
		_, err := ParseAlgorithms(value)
		return err
	case SettingScrubRate:
		_, err := parseScrubRate(value)
		return err
	case SettingScrubInterval:
		_, err := parseScrubInterval(value)
		return err
	}
	return nil
}

// ParseAlgorithms reads the setting chap.algorithms and returns them, the strongest first. An empty text is all of them.
func ParseAlgorithms(text string) ([]string, error) {
	all := Algorithms()
	if strings.TrimSpace(text) == "" {
		return all, nil
	}
	chosen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if !slices.Contains(all, part) {
			return nil, refuse(CodeInvalid, "setting %s: there is no algorithm %q: use some of %s", SettingCHAPAlgorithms, part, strings.Join(all, ","))
		}
		chosen[part] = true
	}
	return slices.DeleteFunc(all, func(a string) bool { return !chosen[a] }), nil
}

// CHAPAlgorithms returns the CHAP algorithms initiators may use, the strongest first. Never none.
func (m *Model) CHAPAlgorithms() []string {
	chosen, err := ParseAlgorithms(m.Settings[SettingCHAPAlgorithms])
	if err != nil {
		return Algorithms() // it was stored before this program checked it
	}
	return chosen
}

func (c *SetSetting) apply(m *Model, r *Result) error {
	if !settingKey.MatchString(c.Key) {
		return refuse(CodeInvalid, "setting %q: a name has 1 to 64 of a-z, 0-9, '.', '_', '-'", c.Key)
	}
	if len(c.Value) > MaxSettingBytes {
		return refuse(CodeInvalid, "setting %q: a value of %d bytes, at most %d are allowed", c.Key, len(c.Value), MaxSettingBytes)
	}
	if err := CheckSetting(c.Key, c.Value); err != nil {
		return err
	}
	old, ok := m.Settings[c.Key]
	switch {
	case c.Value == "":
		r.Changed = ok
		delete(m.Settings, c.Key)
	case !ok && len(m.Settings) >= MaxSettings:
		return refuse(CodeFull, "there are %d settings, the largest number supported", MaxSettings)
	default:
		r.Changed = !ok || old != c.Value
		m.Settings[c.Key] = c.Value
	}
	return nil
}
