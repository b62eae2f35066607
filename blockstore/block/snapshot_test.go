package block

import (
	"strings"
	"testing"
)

func TestSnapshotIDIsReadAsItWasWritten(t *testing.T) {
	id := SnapshotID{0: 1, 15: 255}
	if got, err := ParseSnapshotID(id.String()); err != nil || got != id {
		t.Errorf("%s became %s, %v", id, got, err)
	}
	for _, s := range []string{"", "0", "00", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("0", 34), strings.Repeat("0g", 16)} {
		if got, err := ParseSnapshotID(s); err == nil {
			t.Errorf("%q passes as %s", s, got)
		}
	}
}
