package block

import "testing"

func TestAllZeroSeesEveryByte(t *testing.T) {
	for _, n := range []int{0, 1, 8, 511, Size - 1, Size, Size + 1, 2 * Size, 3*Size + 7} {
		b := make([]byte, n)
		if !AllZero(b) {
			t.Errorf("%d zeros are something else", n)
		}
		for i := range b {
			if b[i] = 1; AllZero(b) {
				t.Fatalf("byte %d of %d is not looked at", i, n)
			}
			b[i] = 0
		}
	}
}
