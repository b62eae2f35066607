package api

import (
	"strings"

	"sanctuary/node/catalog"
)

// checkSettings refuses settings this program does not know, and values that make no sense, before anything is changed.
func checkSettings(change map[string]string) error {
	for key, value := range change {
		known := false
		var names []string
		for _, s := range catalog.KnownSettings() {
			known = known || s.Key == key
			names = append(names, s.Key)
		}
		// One that an older or newer program has left may still be removed.
		if !known && value != "" {
			return Invalid("Use one of: "+strings.Join(names, ", ")+".", "there is no setting %q", key)
		}
		if err := catalog.CheckSetting(key, value); err != nil {
			return Invalid("Correct it and repeat.", "%v", err)
		}
	}
	return nil
}
