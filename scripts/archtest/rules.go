// Package archtest keeps the shape of the source tree: who may import whom, one comment per package, names that answer a
// question, files one can read in one go.
//
// Invariant: imports point down only, cmd → node → replication ⟂ target → blockstore → blockstore/block, and a package
// without a line in the table is an error, so every new package is placed on purpose. It reads source text, not builds: code
// behind any build tag is held to the same rules. It does not judge style: that is the linter's work.
package archtest

// A rule says what one package, or every package below a folder, may import.
//
// Package and the entries of May are paths inside the module. "x" is the package x alone; "x/..." is every package below x
// and not x itself: a leaf of target may use its neighbours and never the root that wires them. Of several rules that match a
// package, the longest wins, and an exact one before a folder's.
type rule struct {
	Package string
	May     []string // packages of this module; all others are refused
	Not     []string // import path prefixes outside of this module that would break the layer's promise
}

// Libraries a layer must not know. target speaks to a Backend and must not learn how it is replicated; blockstore applies
// what it is given and must not learn who gave it.
var (
	consensus = []string{"github.com/hashicorp/raft", "github.com/hashicorp/memberlist", "google.golang.org/grpc"}
	gossip    = []string{"github.com/hashicorp/memberlist"}
	surface   = []string{"github.com/spf13/cobra", "github.com/danielgtaylor/huma"}
)

// rules is the architecture. Test files are freer: see allowed.
var rules = []rule{
	// The vocabulary: no I/O, nothing of ours.
	{Package: "blockstore/block", Not: join(consensus, surface)},
	{Package: "blockstore/vfs", May: []string{"blockstore/block"}, Not: join(consensus, surface)},
	{Package: "blockstore/vfs/...", May: []string{"blockstore/block", "blockstore/vfs"}, Not: join(consensus, surface)},
	{Package: "blockstore/storetest", May: []string{"blockstore", "blockstore/..."}, Not: join(consensus, surface)},
	{Package: "blockstore/lincheck", Not: join(consensus, surface)}, // for tests
	{Package: "blockstore/...", May: []string{"blockstore/block", "blockstore/vfs", "blockstore/vfs/..."}, Not: join(consensus, surface)},
	{Package: "blockstore", May: []string{"blockstore/..."}, Not: join(consensus, surface)},

	// iSCSI and SCSI: no Raft, no disk format.
	{Package: "target/pdu", May: []string{"blockstore/block"}, Not: join(consensus, surface)},
	{Package: "target/reserve", May: []string{"blockstore/block"}, Not: join(consensus, surface)},
	{Package: "target/scsi", May: []string{"blockstore/block", "target/reserve"}, Not: join(consensus, surface)},
	{Package: "target/...", May: []string{"blockstore/block", "target/..."}, Not: join(consensus, surface)},
	{Package: "target", May: []string{"blockstore/block", "target/..."}, Not: join(consensus, surface)},

	// What travels between peers.
	{Package: "proto", Not: surface},
	{Package: "proto/...", Not: surface},

	// One Raft group per LUN: no iSCSI, no gossip.
	{Package: "replication/mutant", Not: join(consensus, surface)},
	{Package: "replication/command", May: []string{"blockstore/block"}, Not: join(gossip, surface)},
	{Package: "replication/journal", May: []string{"blockstore/block", "blockstore/vfs", "replication/command", "replication/journal/walv1", "replication/mutant"}, Not: join(gossip, surface)},
	{Package: "replication/transport", May: []string{"blockstore/block", "replication/command", "replication/mutant", "proto", "proto/..."}, Not: join(gossip, surface)},
	{Package: "replication/sim", May: []string{"blockstore", "blockstore/...", "replication", "replication/..."}, Not: join(gossip, surface)},
	{Package: "replication/...", May: []string{"blockstore", "blockstore/...", "proto", "proto/...", "replication/..."}, Not: join(gossip, surface)},
	{Package: "replication", May: []string{"blockstore", "blockstore/...", "proto", "proto/...", "replication/..."}, Not: join(gossip, surface)},

	// The node: pure decisions first, then what acts on them, then the root that sees everything.
	{Package: "node/config", May: []string{"blockstore/block"}, Not: surface},
	{Package: "node/catalog", May: []string{"blockstore/block", "blockstore/vfs"}, Not: join(gossip, surface)},
	{Package: "node/placement", May: []string{"blockstore/block", "node/catalog"}, Not: join(consensus, surface)},
	{Package: "node/client", May: []string{"blockstore/block", "node/api"}, Not: consensus},
	{Package: "node/api", May: []string{"blockstore/block", "node/catalog", "node/config"}, Not: consensus},
	{Package: "node/pools", May: []string{"blockstore", "blockstore/...", "node/catalog"}, Not: join(consensus, surface)},
	{Package: "node/inspect", May: []string{"blockstore", "blockstore/...", "node", "node/...", "replication", "replication/command", "replication/journal"}, Not: join(consensus, surface)},
	{Package: "node/...", May: []string{"blockstore/block", "node/..."}},
	{Package: "node", May: []string{"blockstore", "blockstore/...", "node/...", "proto", "proto/...", "replication", "replication/...", "target", "target/..."}},

	// The program: steers a node through the node's own surface; the drill writes through a real initiator.
	{Package: "cmd/...", May: []string{"blockstore/block", "cmd/...", "node", "node/...", "target/initiator"}, Not: consensus},

	// Programs around the product. They see it from outside: through its binary, its API and iSCSI (target/scsi for the names
	// of statuses and sense keys that target/initiator returns).
	// The benchmarks also load the store alone, beside its medium.
	{Package: "scripts/bench", May: []string{"blockstore", "blockstore/...", "node/api", "node/client", "target/initiator", "scripts/..."}},
	{Package: "scripts/...", May: []string{"blockstore/block", "node/api", "node/client", "target/initiator", "target/scsi", "scripts/..."}},
}

// layers orders the top folders, lowest first, for test files: a test may import any package of its own folder or of a lower
// layer. replication and target share a layer and still must not see each other.
var layers = map[string]int{"blockstore": 0, "proto": 0, "replication": 1, "target": 1, "node": 2, "cmd": 3, "scripts": 4}

// vagueNames are package names that answer no question.
var vagueNames = map[string]bool{
	"base": true, "common": true, "core": true, "helper": true, "helpers": true, "lib": true, "manager": true,
	"misc": true, "shared": true, "types": true, "util": true, "utils": true,
}

// maxLines is the length beyond which a file usually hides a second idea. Tests and generated files are exempt.
const maxLines = 450

// longFiles may be longer than maxLines, each for the reason given. A file that is short again must leave the list.
var longFiles = map[string]string{}

// wallClockFree is the folder whose code must not go by the wall clock; wallClock are files in it that may, each for the reason given: nothing is decided by what they take from it.
const wallClockFree = "replication"

var wallClock = map[string]string{
	"replication/openlog.go":           "when entries were stored, for whoever recovers a LUN by force",
	"replication/survey.go":            "the same, as it is shown",
	"replication/rebuild_before.go":    "when a rebuild began, as it is shown",
	"replication/transport/entries.go": "the library's stamp of an entry, on the wire",
	"replication/journal/log.go":       "the same, in the journal",
}

// unfinished are marks of work that was put off. They belong in an issue, where someone will see them.
var unfinished = []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"}

// foreignPaths are beginnings of paths that exist on one machine only, or outside of the repository.
var foreignPaths = []string{"/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/", "../sha" + "red"}

func join(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}
