package prove

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/blockstore/block"
)

// TestProveBlackoutDamage cuts the power of all machines at once, and not all of them return as they were: one late, one never (until the
// others have served without it), one with a bit of its journal flipped, one with half a write behind the journal's end, one
// with an empty disk but for the node's name and the catalog. The LUN must come back by itself with everything that was
// acknowledged, and nobody but the one with the empty disk may be sent more than what its log lacks.
func TestProveBlackoutDamage(t *testing.T) {
	rng := prove(t)
	cl := startCluster(t, clusterSpec{media: "file", sizeBytes: 128 << 20, power: true})
	w := startLoad(t, cl, cl.healthy(), rng)
	var back []time.Duration
	kinds := []string{"never", "flipped", "torn", "empty"}
	for i := range max(2*len(kinds), kills(t)) {
		kind := kinds[i%len(kinds)]
		wait(t, time.Duration(500+rng.IntN(1500))*time.Millisecond)
		l := cl.healthy()
		hit := l.Owner // alternately the owner and the copy
		if i/len(kinds)%2 == 1 {
			hit = other(hit)
		}
		losses := cl.cut(rng, allNodes...)
		logs := map[string]int64{alpha: cl.logSize(alpha), beta: cl.logSize(beta)}
		what := kind
		switch kind {
		case "flipped":
			what = cl.flipJournal(rng, hit)
		case "torn":
			what = cl.tearJournal(rng, hit)
		case "empty":
			cl.emptyDisk(hit)
		}
		// The undamaged copy and the witness are a quorum. What was being written when the power went is the one thing whose damage
		// looks like its absence (journal/recover.go): who has that is not to be first.
		first := []string{other(hit), witness}
		rng.Shuffle(2, func(i, j int) { first[i], first[j] = first[j], first[i] })
		for _, n := range first {
			cl.start(n)
			wait(t, time.Duration(rng.IntN(600))*time.Millisecond)
		}
		if kind != "never" && kind != "empty" && rng.IntN(2) == 0 {
			cl.start(hit) // at about the same time
		}
		started := time.Now()
		served := w.answered(started)
		back = append(back, served.Sub(started))
		if cl.process(hit) == nil {
			cl.start(hit)
		}
		cl.healthy()
		t.Logf("blackout %d, %s of %s: %q; served after %v, in sync after %v", i, what, hit, losses, back[i].Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
		for n, from := range logs {
			if fetched, err := rebuiltBytes(cl.logAfter(n, from)); err == nil && (kind != "empty" || n != hit) {
				t.Errorf("%s was rebuilt, %d bytes, though the log had what it lacked", n, fetched)
			}
		}
		w.heat(rng)
	}
	w.finish(cl)
	stalls(t, "returns from a blackout", back, 15*time.Second)
}

// journals are the files of a node's journals with their contents, those that were written to last first.
func (c *cluster) journals(node string) (names []string, contents [][]byte) {
	c.t.Helper()
	ages := map[string]time.Time{}
	err := filepath.WalkDir(c.configs[node].DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, string(filepath.Separator)+"journal"+string(filepath.Separator)) {
			return err
		}
		info, err := d.Info()
		if err == nil {
			ages[path] = info.ModTime()
			names = append(names, path)
		}
		return err
	})
	if err != nil || len(names) == 0 {
		c.t.Fatalf("no journal of %s: %v", node, err)
	}
	slices.SortFunc(names, func(a, b string) int { return ages[b].Compare(ages[a]) })
	for _, n := range names {
		raw, err := os.ReadFile(n)
		if err != nil {
			c.t.Fatal(err)
		}
		contents = append(contents, raw)
	}
	return names, contents
}

// flipJournal flips one bit of what the journal holds: among its newest 256 KiB half of the time.
func (c *cluster) flipJournal(rng *rand.Rand, node string) string {
	c.t.Helper()
	names, contents := c.journals(node)
	for i, raw := range contents {
		end := len(bytes.TrimRight(raw, "\x00"))
		if end <= 2*block.Size { // what says what the file is, and little more
			continue
		}
		from := block.Size
		if rng.IntN(2) == 0 {
			from = max(from, end-256<<10)
		}
		at := from + rng.IntN(end-from)
		c.put(names[i], []byte{raw[at] ^ 1<<rng.IntN(8)}, int64(at))
		return "a flipped bit in the journal"
	}
	return "nothing to flip in the journal"
}

// tearJournal leaves half of something behind the end of the journal.
func (c *cluster) tearJournal(rng *rand.Rand, node string) string {
	c.t.Helper()
	names, contents := c.journals(node)
	for i, raw := range contents {
		end := (len(bytes.TrimRight(raw, "\x00")) + block.Size - 1) / block.Size * block.Size
		if end <= 2*block.Size || end+4*block.Size > len(raw) {
			continue
		}
		torn := slices.Clone(raw[end-block.Size : end])
		clear(torn[512*(1+rng.IntN(6)):])
		noise := make([]byte, 512*(1+rng.IntN(16)))
		for n := range noise {
			noise[n] = byte(rng.Uint32())
		}
		c.put(names[i], append(torn, noise...), int64(end))
		return "half a write behind the end of the journal"
	}
	return "no room behind the end of the journal"
}

// emptyDisk removes what a new disk would not have: everything but the node's identity and the catalog.
func (c *cluster) emptyDisk(node string) {
	c.t.Helper()
	dir := c.configs[node].DataDir
	for _, n := range []string{"luns", "pool", "journal"} {
		if err := os.RemoveAll(filepath.Join(dir, n)); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) put(name string, b []byte, off int64) {
	c.t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	_, err = f.WriteAt(b, off)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		c.t.Fatal(err)
	}
}
