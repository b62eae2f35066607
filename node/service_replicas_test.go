package node

import (
	"testing"

	"sanctuary/node/catalog"
)

func TestReplicaThatTakesAnothersPlaceIsTold(t *testing.T) {
	l := catalog.LUN{Replicas: []catalog.Replica{{Node: "a"}, {Node: "b", Pool: "file"}, {Node: "w", Witness: true}}}
	for want, places := range map[string][]catalog.Placement{
		"":  {{Node: "a"}, {Node: "b"}, {Node: "c"}},
		"w": {{Node: "a"}, {Node: "b"}, {Node: "w"}},
		"b": {{Node: "a"}, {Node: "b", Pool: "ssd"}, {Node: "w", Witness: true}},
		"a": {{Node: "a", Witness: true}, {Node: "b", Pool: "file"}, {Node: "c"}},
	} {
		if got := replacedInPlace(l, places); got != want {
			t.Errorf("%+v: %q, want %q", places, got, want)
		}
	}
}
