package interop

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sanctuary/scripts/rig"
)

// options names the LUN as QEMU's own options do, for what a URL cannot say.
func options(t *testing.T, url, more string) string {
	t.Helper()
	address, iqn, lun, err := rig.SplitURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("driver=iscsi,transport=tcp,portal=%s,target=%s,lun=%s,initiator-name=%s%s", address, iqn, lun, initiatorName, more)
}

// checkPatterns writes, zeroes and discards at random with QEMU's initiator, at any multiple of 512 bytes, and reads back what
// must be there, each time in a new process; with CRC32C over the headers, and without.
func checkPatterns(t *testing.T, url string) {
	const (
		cell  = 512
		cells = 4096 // 2 MiB: eight chunks of the store
		base  = 96 << 20
	)
	model := make([]byte, cells) // the byte each cell is filled with
	random := rand.New(rand.NewPCG(7, 9))
	quiet(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -z %d %d", base, cells*cell), url)
	for round := range 6 {
		image := options(t, url, [2]string{"", ",header-digest=crc32c"}[round%2])
		args := []string{"--image-opts", image}
		for i := range 40 {
			first := random.IntN(cells)
			n := 1 + random.IntN(min(cells-first, [4]int{3, 16, 200, 1500}[i%4]))
			fill := byte(1 + random.IntN(254))
			command := fmt.Sprintf("write -P %d", fill)
			switch i % 5 {
			case 3:
				fill, command = 0, "write -z"
			case 4:
				fill, command = 0, "write -z -u" // may unmap
			}
			for c := range n {
				model[first+c] = fill
			}
			args = append(args, "-c", fmt.Sprintf("%s %d %d", command, base+first*cell, n*cell))
		}
		quiet(t, "qemu-io", args...)
		verify := []string{"-r", "--image-opts", image}
		for first := 0; first < cells; {
			n := 1
			for first+n < cells && model[first+n] == model[first] {
				n++
			}
			verify = append(verify, "-c", fmt.Sprintf("read -P %d %d %d", model[first], base+first*cell, n*cell))
			first += n
		}
		if out, errs := outputs(t, "qemu-io", verify...); errs != "" || strings.Contains(out, "verification failed") || strings.Count(out, "read ") != (len(verify)-3)/2 {
			t.Fatalf("round %d: the LUN is not what was written:\n%s%s", round, out, errs)
		}
	}
}

// checkLoad is qemu-img bench: many requests in flight, small ones and large ones, and a flush now and then.
func checkLoad(t *testing.T, url string) {
	for _, args := range []string{
		"-w -c 4000 -d 64 -s 4096", "-c 4000 -d 64 -s 4096", "-w -c 400 -d 1 -s 512 --flush-interval=1", "-w -c 100 -d 8 -s 1M -S 1M", "-c 100 -d 8 -s 1M -S 1M",
		"-w -c 500 -d 32 -s 3584 -S 7680", // straddles blocks of 4 KiB
	} {
		all := append([]string{"bench", "-t", "none", "-f", "raw"}, strings.Fields(args)...)
		if out, errs := outputs(t, "qemu-img", append(all, url)...); errs != "" || !strings.Contains(out, "Run completed") {
			t.Errorf("qemu-img bench %s:\n%s%s", args, out, errs)
		}
	}
}
