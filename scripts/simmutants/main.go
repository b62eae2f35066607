// Command simmutants takes one rule after the other out of the product, and shows that the simulation notices.
//
// A mutant is a piece of source that is replaced while the simulation is built (scripts/sim, in an overlay: the tree is not touched), so the
// product needs no hooks for it. It must be found: a rule whose removal nothing notices is not tested. A mutant whose source is not there any
// more, once, is an error too.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// mutant replaces old by its own text, in one file.
type mutant struct {
	name     string
	file     string
	old, new string
}

var mutants = []mutant{
	{
		"G: the journal answers before its sync", "replication/journal/commit.go",
		"	if err := s.dev.WriteAt(h.buf, start); err != nil {\n		return err\n	}\n	if err := s.dev.Sync(); err != nil {\n		return err\n	}\n	h.batch++",
		"	if err := s.dev.WriteAt(h.buf, start); err != nil {\n		return err\n	}\n	h.batch++",
	},
	{
		"G: peers' answers count before the owner's log is durable", "replication/openlog.go",
		"if index <= g.cfg.Journal.Durable() {", "if true {",
	},
	{
		"G: a vote is not stored", "replication/journal/log.go",
		"	if string(key) == keyVoteTerm {\n", "	if string(key) == keyVoteTerm || string(key) == keyVoteCandidate {\n",
	},
	{
		"W: the witness hears everything at once", "replication/peers.go",
		"limit, degraded, moved := g.gate.Limit(), g.gate.Degraded(), g.gateMove", "limit, degraded, moved := ^uint64(0), g.gate.Degraded(), g.gateMove",
	},
	{
		"F: an entry takes effect in whatever term it is committed", "replication/machine.go",
		"if e.Fence != l.Term {", "if e.Fence > l.Term {",
	},
	{
		"F: a command counts though another owner has served since it was accepted", "replication/backend.go",
		"if !t.before.Before(f) {", "if f == (block.Fence{}) {",
	},
	{
		"L: reads without asking for the lease", "replication/backend.go",
		"if g.lease.valid(t.term, time.Now()) {", "if g.lease.valid(t.term, time.Now()) || true {",
	},
	{
		"L: voters do not keep their promise", "replication/lease.go",
		"return now.Before(p.until) && candidate != p.leader", "return now.Before(p.until) && candidate == p.leader && candidate != p.leader",
	},
	{
		"a new owner serves before it has applied what came before", "replication/tenure.go",
		"go func() { done <- barrier.Error() }()", "done <- nil; _ = barrier",
	},
	{
		"a blank disk comes back under the old identity", "replication/sim/machine_test.go",
		"m.joining.Store(m.life.Add(1) > 1)", "m.life.Store(1)",
	},
}

func main() {
	seeds := flag.Int("seeds", 200, "seeds for each mutant")
	only := flag.String("run", "", "regular expression: only mutants whose name matches")
	flag.Parse()
	if err := run(*seeds, *only); err != nil {
		fmt.Fprintln(os.Stderr, "simmutants:", err)
		os.Exit(1)
	}
}

func run(seeds int, only string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	missed := 0
	for _, m := range mutants {
		if !match.MatchString(m.name) {
			continue
		}
		found, err := m.try(dir, seeds)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Printf("%4d of %d seeds  %s\n", found, seeds, m.name)
		if found == 0 {
			missed++
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d mutants were not found", missed)
	}
	return nil
}

var verdict = regexp.MustCompile(`sim: (\d+) seeds held, (\d+) failed`)

// try returns how many seeds failed.
func (m mutant) try(dir string, seeds int) (found int, err error) {
	path, err := filepath.Abs(m.file)
	if err != nil {
		return 0, err
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		return 0, fmt.Errorf("%s has what is to be replaced %d times, not once", m.file, n)
	}
	changed := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(changed, []byte(strings.Replace(string(source), m.old, m.new, 1)), 0o600); err != nil {
		return 0, err
	}
	cmd := exec.Command("scripts/sim")
	cmd.Env = append(os.Environ(), "SIM_KEEP=1", "SIM_SEEDS="+strconv.Itoa(seeds), "SIM_OVERLAY="+path+"\t"+changed)
	out, err := cmd.CombinedOutput() // an error is what is hoped for
	counts := verdict.FindSubmatch(out)
	if counts == nil {
		return 0, fmt.Errorf("the simulation did not run: %w\n%s", err, out)
	}
	return strconv.Atoi(string(counts[2]))
}
