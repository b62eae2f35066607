package prove

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// steadily is longer than any timer of a connection that might be read off the wrong clock.
	steadily = 30 * time.Second
	// jumpSource makes every process's wall clock jump ten times a second, each on its own, by up to a day either way, and by two seconds every other time. It goes into the
	// standard library's time.Now, through which every Go program reads it; the monotonic reading beside it stays. That is what a clock being set looks like from inside.
	jumpSource = `	sec, nsec, mono := runtimeNow()
	if mono != 0 {
		step := uint64(mono)/100_000_000 + uint64(startNano)
		step *= 0x9E3779B97F4A7C15
		step ^= step >> 29
		span := uint64(2 * 86400)
		if step>>1&1 == 0 {
			span = 4
		}
		sec += int64(step>>8%span) - int64(span/2)
	}
`
	nowSource = "	sec, nsec, mono := runtimeNow()\n"
)

// TestProveWallClockJumps runs the cluster with wall clocks that jump all the time. Nothing of what is promised may depend on them: nobody is given up or elected for it, and while
// owners are stopped, so that leases lapse and others take over, no read is stale.
func TestProveWallClockJumps(t *testing.T) {
	rng := prove(t)
	t.Setenv("PROVE_BINARY", jumpingBinary(t))
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 256 << 20})
	l := cl.healthy()
	w := startLoad(t, cl, l, rng)
	size := map[string]int64{}
	for _, n := range allNodes {
		size[n] = cl.logSize(n)
	}
	began := time.Now()
	wait(t, steadily)
	if longest := w.longest(began, w.answered(time.Now())); longest > stallLimit(t) {
		t.Errorf("an I/O was held up for %v", longest)
	}
	for _, n := range allNodes {
		for line := range strings.Lines(cl.logAfter(n, size[n])) {
			if strings.Contains(line, "peer connection lost") || strings.Contains(line, "standing has changed") {
				t.Errorf("%s, while nothing was wrong but the clocks: %s", n, line)
			}
		}
	}
	if now := cl.healthy(); now.Term != l.Term {
		t.Errorf("the owner of term %d was followed by one of term %d", l.Term, now.Term)
	}
	pauses := pauses{c: cl, w: w, rng: rng}
	for range count(t, "PROVE_PAUSES", max(2, kills(t)/20)) {
		l = pauses.stop(l, shortPause, false)
	}
	w.finish(cl)
	pauses.judge()
	for _, n := range allNodes {
		cl.jumped(n)
	}
}

// jumpingBinary builds the product with a standard library whose wall clock jumps.
func jumpingBinary(t *testing.T) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	path, dir := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go"), t.TempDir()
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), nowSource); n != 1 {
		t.Fatalf("%s reads the clock in %d places that are known here, want one: look at jumpSource again", path, n)
	}
	changed, overlay, binary := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "sanctuary")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{changed: []byte(strings.Replace(string(source), nowSource, jumpSource, 1)), overlay: replace} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-tags", env("TAGS", "hashicorpmetrics"), "-overlay", overlay, "-o", binary, "./cmd/sanctuary")
	build.Dir, build.Env = filepath.Join("..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return binary
}

// jumped fails the test unless a node's log shows that its clock went to and fro.
func (c *cluster) jumped(node string) {
	c.t.Helper()
	var first, last, before time.Time
	back := 0
	lines := bufio.NewScanner(strings.NewReader(c.logAfter(node, 0)))
	for lines.Scan() {
		text, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "time="), " ")
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			continue // not a line of the log
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
		if at.Before(before) {
			back++
		}
		before = at
	}
	if err := lines.Err(); err != nil {
		c.t.Fatal(err)
	}
	if back == 0 || last.Sub(first) < time.Hour {
		c.t.Errorf("the clock of %s went back %d times, over %v: it did not jump", node, back, last.Sub(first))
	}
}
