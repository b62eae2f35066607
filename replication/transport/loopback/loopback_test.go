package loopback

import (
	"net"
	"strconv"
	"testing"
)

func TestNobodyListensThereAndNoneIsGivenTwice(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 5 {
		addresses, err := Addresses(20)
		if err != nil || len(addresses) != 20 {
			t.Fatalf("%d addresses, %v", len(addresses), err)
		}
		for _, a := range addresses {
			_, text, err := net.SplitHostPort(a)
			port, perr := strconv.Atoi(text)
			if err != nil || perr != nil || port < lowest || port >= highest || seen[a] {
				t.Errorf("%s: given before %v; %v, %v", a, seen[a], err, perr)
			}
			seen[a] = true
			l, err := net.Listen("tcp", a)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close() // what is taken is not given
		}
	}
}
