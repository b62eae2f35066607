package catalog

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// A LUN says which class of pools it wants; one that says nothing is written as older programs know it.
func TestLUNWantsAClass(t *testing.T) {
	for name, test := range map[string]struct {
		media Media
		class Class
		want  Class
		fails bool
		since uint64 // version of the model afterwards
	}{
		"any":          {MediaFile, ClassAny, ClassAny, false, 1},
		"ram":          {MediaRAM, ClassAny, ClassRAM, false, 1},
		"ssd":          {MediaFile, ClassSSD, ClassSSD, false, 3},
		"hdd":          {MediaFile, ClassHDD, ClassHDD, false, 3},
		"ram as class": {MediaFile, ClassRAM, "", true, 0},
		"ssd in ram":   {MediaRAM, ClassSSD, "", true, 0},
		"tape":         {MediaFile, "tape", "", true, 0},
	} {
		m, _ := must(t, NewModel("lab"), &RegisterNode{Name: "a", ID: uid(1), Kind: KindData},
			&RegisterNode{Name: "b", ID: uid(2), Kind: KindData}, &RegisterNode{Name: "w", ID: uid(3), Kind: KindWitness})
		c := mirrored(9, "vm")
		c.Media, c.Class = test.media, test.class
		next, _, err := Apply(m, m.Index+1, c)
		if test.fails {
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Code != CodeInvalid {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || next.LUNs[uid(9)].WantedClass() != test.want || next.Version != test.since {
			t.Errorf("%s: %q, version %d, %v", name, next.LUNs[uid(9)].WantedClass(), next.Version, err)
			continue
		}
		snapshot, err := encodeSnapshot(next)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeSnapshot(bytes.NewReader(snapshot), "lab")
		if err != nil || asJSON(t, back) != asJSON(t, next) {
			t.Errorf("%s: %v", name, err)
		}
		change, err := EncodeChange(c)
		if err != nil || strings.Contains(string(change), "class") != (test.class != ClassAny) {
			t.Errorf("%s: an older program cannot read %s (%v)", name, change, err)
		}
		// The same again is the same LUN; of another class it is another one.
		if same, _, err := Apply(next, next.Index+1, c); err != nil || same != next {
			t.Errorf("%s, again: %v", name, err)
		}
		other := *c
		other.Media, other.Class = MediaFile, map[bool]Class{true: ClassHDD, false: ClassSSD}[test.class == ClassSSD]
		if _, _, err := Apply(next, next.Index+1, &other); err == nil {
			t.Errorf("%s: became a LUN of class %s", name, other.Class)
		}
	}
}
