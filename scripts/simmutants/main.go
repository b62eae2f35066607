// Command simmutants takes one rule after the other out of the product, and shows that the simulation notices.
//
// A mutant is a build tag (replication/mutant), or a piece of source that is replaced while the simulation is built (scripts/sim, in an overlay: the
// tree is not touched). It must be found: a rule whose removal nothing notices is not tested. One of which the table says why the simulation cannot see it
// is run all the same, and must not be found: then the reason has gone, and it counts like the others from then on. A mutant whose source is not there any
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

// mutant has a build tag (replication/mutant), or replaces old by new in one file.
type mutant struct {
	name     string
	tag      string
	file     string
	old, new string
	hidden   string // why the simulation cannot see it, and what does; empty: it can
}

var mutants = []mutant{
	{
		name: "G: the journal answers before its sync", file: "replication/journal/commit.go",
		old: "	if err := s.dev.WriteAt(h.buf, at); err != nil {\n		return err\n	}\n	if err := s.dev.Sync(); err != nil {\n		return err\n	}\n	h.batch++",
		new: "	if err := s.dev.WriteAt(h.buf, at); err != nil {\n		return err\n	}\n	h.batch++",
	},
	{name: "G: a commit counts the owner's own copy before its journal has it on disk", tag: "mutant_g"},
	{name: "G: a replica acknowledges entries before they are on disk", tag: "mutant_ack"},
	{name: "G: a vote is given before it is on disk", tag: "mutant_vote"},
	{name: "W: the witness is sent what the copy in sync does not have", tag: "mutant_w"},
	{
		name: "F: an entry of another term than it was accepted in takes effect", tag: "mutant_f",
		hidden: "as a follower and as a candidate the library refuses the proposals that it finds waiting, so an old one reaches a later term only if its goroutine stands still " +
			"between proposer.send's look at the tenure and ApplyLog: nothing there waits, and the simulation does not stop goroutines. " +
			"replication.TestEntryOfAnotherTermChangesNothing puts such an entry into the log",
	},
	{name: "L: a lease does not lapse", tag: "mutant_l"},
	{
		name: "L: a copy stands for a transfer that has failed", file: "replication/incoming.go",
		old: "n != 1 || err != nil {", new: "n >= 0 || err != nil {",
	},
	{
		name: "F: a command counts though another owner has served since it was accepted", file: "replication/backend.go",
		old: "if !t.before.Before(f) {", new: "if f == (block.Fence{}) {",
	},
	{
		name: "L: voters do not keep their promise", file: "replication/lease.go",
		old: "return now.Before(p.until) && candidate != p.leader", new: "return now.Before(p.until) && candidate == p.leader && candidate != p.leader",
	},
	{
		name: "L: a vouch is answered for a quiet LUN whose replica has voted for another", tag: "mutant_vouch",
		hidden: "an owner whose vouches were not answered for so long that somebody may vote has woken its LUNs itself, unless its process stood still meanwhile, and the " +
			"simulation stops none. replication.TestVouchedLeaseEndsBeforeAnyMajorityIsFree has one vote while it is quiet",
	},
	{
		name: "a new owner serves before it has applied what came before", file: "replication/tenure.go",
		old: "if err := g.barrier(ctx, inst); err != nil {", new: "if err := error(nil); err != nil {",
	},
	{
		name: "a copy votes before the catalog knows that it may hold the data", file: "replication/members.go",
		old: "return m.Joining && !m.Filled && !m.Witness", new: "return false",
	},
	{
		name: "a blank disk comes back under the old identity", file: "replication/sim/machine_test.go",
		old: "m.joining.Store(m.life.Add(1) > 1)", new: "m.life.Store(1)",
	},
}

func main() {
	seeds := flag.Int("seeds", 200, "seeds for each mutant")
	first := flag.Int("first", 1, "the first of them")
	only := flag.String("run", "", "regular expression: only mutants whose name matches")
	flag.Parse()
	if err := run(*seeds, *first, *only); err != nil {
		fmt.Fprintln(os.Stderr, "simmutants:", err)
		os.Exit(1)
	}
}

func run(seeds, first int, only string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	wrong := 0
	for _, m := range mutants {
		if !match.MatchString(m.name) {
			continue
		}
		found, err := m.try(dir, seeds, first)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Printf("%4d of %d seeds  %s\n", found, seeds, m.name)
		if m.hidden != "" {
			fmt.Printf("                    %s\n", m.hidden)
		}
		if (found == 0) == (m.hidden == "") {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d mutants were not found, or were though the table says that they cannot be", wrong)
	}
	return nil
}

var verdict = regexp.MustCompile(`sim: (\d+) seeds held, (\d+) failed`)

// try returns how many seeds failed.
func (m mutant) try(dir string, seeds, first int) (found int, err error) {
	cmd := exec.Command("scripts/sim")
	cmd.Env = append(os.Environ(), "SIM_KEEP=1", "SIM_SEEDS="+strconv.Itoa(seeds), "SIM_FIRST="+strconv.Itoa(first))
	if m.tag != "" {
		cmd.Env = append(cmd.Env, "TAGS=hashicorpmetrics,"+m.tag)
	} else {
		path, changed, err := m.write(dir)
		if err != nil {
			return 0, err
		}
		cmd.Env = append(cmd.Env, "SIM_OVERLAY="+path+"\t"+changed)
	}
	out, err := cmd.CombinedOutput() // an error is what is hoped for
	counts := verdict.FindSubmatch(out)
	if counts == nil {
		return 0, fmt.Errorf("the simulation did not run: %w\n%s", err, out)
	}
	return strconv.Atoi(string(counts[2]))
}

// write puts the changed file into dir.
func (m mutant) write(dir string) (path, changed string, err error) {
	if path, err = filepath.Abs(m.file); err != nil {
		return "", "", err
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		return "", "", fmt.Errorf("%s has what is to be replaced %d times, not once", m.file, n)
	}
	changed = filepath.Join(dir, filepath.Base(m.file))
	return path, changed, os.WriteFile(changed, []byte(strings.Replace(string(source), m.old, m.new, 1)), 0o600)
}
