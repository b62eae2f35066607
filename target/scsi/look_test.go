package scsi

import (
	"bytes"
	"testing"
)

// ForgetLook has the next command look at the space there is, as if spaceEvery had passed.
func (u *Unit) ForgetLook() { u.space.next.Store(0) }

func TestModeParametersSurviveEncoding(t *testing.T) {
	for _, p := range []modeParameters{
		{},
		{current: modeValues{descriptorSense: true}},
		{current: modeValues{writeProtected: true}, saved: modeValues{quietSpace: true}},
		{saved: modeValues{thresholds: [spaceThresholds]spaceThreshold{{chosen: true, enabled: true, count: 1}, {chosen: true, count: 1<<32 - 1}}}},
	} {
		b := p.appendTo([]byte{7})
		got, err := decodeModeParameters(b[1:])
		if err != nil || got != p || b[0] != 7 {
			t.Errorf("%+v became %+v, %v", p, got, err)
		}
		if got.reset().current != p.saved || got.reset().saved != p.saved {
			t.Errorf("reset of %+v: %+v", p, got.reset())
		}
	}
}

func FuzzModeParameters(f *testing.F) {
	p := modeParameters{current: modeValues{descriptorSense: true, thresholds: [spaceThresholds]spaceThreshold{{chosen: true, count: 9}}}}
	f.Add(p.appendTo(nil))
	f.Add(modeParameters{}.appendTo(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodeModeParameters(b)
		if err == nil && !bytes.Equal(p.appendTo(nil), b) {
			t.Errorf("%x decodes to %+v, which encodes to %x", b, p, p.appendTo(nil))
		}
		if err != nil && p != (modeParameters{}) {
			t.Errorf("%v with %+v", err, p)
		}
	})
}
