// Package inspect answers: is what lies on this disk sound?
//
// It finds out what a path is (a pool, a journal, a node's whole data directory), has each part looked at by the package that owns its format, and
// puts together what they say: a pool's blocks that the log writes again are no damage, and a volume must not be older than its journal.
//
// Invariant: nothing is written and nothing is locked, and a running node that is sound is never called damaged. It repairs nothing: a node that runs does, from
// the other copies.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/node"
	"sanctuary/node/catalog"
	"sanctuary/replication"
	"sanctuary/replication/journal"
)

// Kind is what a path turned out to be.
type Kind string

// The kinds there are.
const (
	Auto    Kind = "" // find out
	Pool    Kind = "pool"
	Journal Kind = "journal"
	DataDir Kind = "data directory"
)

// Config says what to look at.
type Config struct {
	Paths []string
	Kind  Kind // of all of them
	// Data has every block in the pools compared with its checksum, at most BytesPerSecond; 0: no bound.
	Data           bool
	BytesPerSecond int64
	// Progress is told what is being looked at, and for data how far that is; nil: nobody is.
	Progress func(what string, done, total int64)
	// Chunk and Entry are called for the chunks of the pools and the entries of the journals; nil: never. Volume selects one volume or replica.
	Chunk  func(c Chunk)
	Entry  func(e Entry)
	Volume string
}

// Chunk is an entry of a volume's map, Entry one of a replica's log, Log such a log.
type (
	Chunk = blockstore.InspectedChunk
	Entry = journal.InspectedEntry
	Log   = journal.InspectedGroup
)

// Report is what was found.
type Report struct {
	Pools    []PoolReport    `json:"pools"`
	Journals []JournalReport `json:"journals"`
	Catalogs []CatalogReport `json:"catalogs"`
	Notes    []string        `json:"notes,omitempty"`
	Findings []block.Finding `json:"findings"` // of everything
	More     int64           `json:"more_findings,omitempty"`
	Sound    bool            `json:"sound"`
}

// PoolReport is a pool.
type PoolReport struct {
	Path  string `json:"path"`
	InUse int    `json:"in_use_by_pid,omitempty"`
	*blockstore.Inspected
}

// JournalReport is the journal of a disk.
type JournalReport struct {
	Path string `json:"path"`
	// Replicas are the IDs of the replicas whose logs are in it, by the names of these, if it lies in a data directory.
	Replicas map[string]string `json:"replicas,omitempty"`
	*journal.Inspected
}

func replicaNames(replicas []node.StoredReplica) map[string]string {
	out := map[string]string{}
	for _, r := range replicas {
		out[r.Log] = r.Replica
	}
	return out
}

// CatalogReport is the catalog of a node.
type CatalogReport struct {
	Path    string `json:"path"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	*catalog.Inspected
}

// UnreadableError says that something could not be looked at, which says nothing about whether it is sound.
type UnreadableError struct{ Err error }

func (e *UnreadableError) Error() string { return e.Err.Error() }
func (e *UnreadableError) Unwrap() error { return e.Err }

// Run looks at all paths. The error is *UnreadableError or ctx's.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	r := &run{cfg: cfg, report: &Report{Pools: []PoolReport{}, Journals: []JournalReport{}, Catalogs: []CatalogReport{}, Findings: []block.Finding{}}}
	err := r.all(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &UnreadableError{err}
	}
	r.report.Sound = len(r.report.Findings) == 0
	return r.report, nil
}

// Detect says what a path is.
func Detect(path string) (Kind, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Auto, err
	}
	if !info.IsDir() {
		return Pool, nil // a file, an image or a device; what else it may be shows when it is read
	}
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(path, name))
		return err == nil
	}
	switch {
	case has("node.json"):
		return DataDir, nil
	case has("data"):
		return Pool, nil
	case journal.HasJournal(path):
		return Journal, nil
	}
	return Auto, fmt.Errorf("%s holds no pool (it would have a file \"data\"), no journal (files *.journal) and no data directory of a node (\"node.json\")", path)
}

// run is one call of Run.
type run struct {
	cfg    Config
	report *Report
	pools  []node.StoredPool
	// journals by the name of the volume whose log is in them; "" if that was not looked at. logs says that they are all the journals there are: then a block that no log writes is damaged.
	journals map[string]string
	logs     bool
}

func (r *run) all(ctx context.Context) error {
	r.journals = map[string]string{}
	var single []string // journals outside of a data directory
	for _, path := range r.cfg.Paths {
		kind := r.cfg.Kind
		if kind == Auto {
			var err error
			if kind, err = Detect(path); err != nil {
				return err
			}
		}
		switch kind {
		case Pool:
			r.pools = append(r.pools, node.StoredPool{Path: path})
		case Journal:
			single = append(single, path)
		default:
			if err := r.dataDir(ctx, path); err != nil {
				return err
			}
		}
	}
	for _, path := range single {
		if err := r.journal(ctx, JournalReport{Path: path}); err != nil {
			return err
		}
	}
	// The pools after the journals: in a running node the volumes can only have gone on.
	for _, p := range r.pools {
		if err := r.pool(ctx, p); err != nil {
			return err
		}
	}
	r.compare()
	return nil
}

func (r *run) find(findings []block.Finding, more int64) {
	r.report.Findings = append(r.report.Findings, findings...)
	r.report.More += more
}

func (r *run) tell(what string) {
	if r.cfg.Progress != nil {
		r.cfg.Progress(what, 0, 0)
	}
}

// dataDir looks at a node's data directory, but for its pools.
func (r *run) dataDir(ctx context.Context, dir string) error {
	s, err := node.ReadStored(dir)
	if err == nil && len(s.Findings) > 0 { // a running node may just have been deleting a replica
		before := s
		if s, err = node.ReadStored(dir); err == nil {
			s.Findings = both(before.Findings, s.Findings)
		}
	}
	if err != nil {
		return err
	}
	r.find(s.Findings, 0)
	r.report.Notes = append(r.report.Notes, s.Notes...)
	if s.Catalog != "" && s.Cluster != "" {
		r.tell("catalog " + s.Catalog)
		c, err := catalog.Inspect(ctx, s.Catalog, s.Cluster)
		if err != nil {
			return err
		}
		r.report.Catalogs = append(r.report.Catalogs, CatalogReport{Path: s.Catalog, Cluster: s.Cluster, Node: s.Node, Inspected: c})
		r.find(c.Findings, 0)
	}
	r.logs = true
	pools := map[string]bool{}
	for _, p := range s.Pools {
		pools[p.Name] = true
	}
	for _, x := range s.Replicas {
		if x.Volume != "" && !pools[x.Pool] {
			pools[x.Pool] = true
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("where pool %s lies, which replica %s is in, is not known from %s alone: give its directory (pools.file.dir in the configuration) as a second path", x.Pool, x.Replica, dir))
		}
		switch {
		case x.Volume == "":
		case x.OldLog:
			r.journals[x.Volume] = ""
		default:
			r.journals[x.Volume] = s.Journal
		}
	}
	logs := map[string]bool{}
	switch err := r.journal(ctx, JournalReport{Path: s.Journal, Replicas: replicaNames(s.Replicas)}); {
	case err == nil:
		for _, g := range r.report.Journals[len(r.report.Journals)-1].Groups {
			logs[g.Name] = true
		}
	case !gone(err):
		return err
	}
	for _, x := range s.Replicas {
		if !x.Started || logs[x.Log] {
			continue
		}
		lost, err := logIsMissing(ctx, dir, x)
		if err != nil {
			return err
		}
		if lost {
			r.report.Findings = append(r.report.Findings, block.Finding{
				Kind: "replica", Path: s.Journal, Offset: -1, Volume: x.Log, What: fmt.Sprintf("the log of replica %s is missing, and with it what the replica has voted for and acknowledged", x.Replica),
				Data: "This replica cannot go on. The other copies are not touched by that.", Next: "Start the node: the replica is replaced by a new one, and rebuilt from the others.",
			})
		}
	}
	for _, p := range s.Pools {
		if _, err := os.Stat(p.Path); err != nil {
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("pool %s is not there and was not looked at: %v", p.Name, err))
			continue
		}
		r.pools = append(r.pools, p)
	}
	return nil
}

// logIsMissing looks again: a running node may just have been starting a replica, or deleting it.
func logIsMissing(ctx context.Context, dir string, x node.StoredReplica) (bool, error) {
	s, err := node.ReadStored(dir)
	if err != nil || !slices.Contains(s.Replicas, x) {
		return false, err
	}
	j, err := journal.Inspect(ctx, journal.InspectConfig{Dir: s.Journal, Group: x.Log})
	if gone(err) {
		return true, nil
	}
	return err == nil && len(j.Groups) == 0, err
}

// both returns the findings that are in both lists.
func both(a, b []block.Finding) (out []block.Finding) {
	for _, f := range b {
		for _, g := range a {
			if f == g {
				out = append(out, f)
				break
			}
		}
	}
	return out
}

// gone says that there is no journal.
func gone(err error) bool {
	return errors.Is(err, journal.ErrNoJournal) || errors.Is(err, os.ErrNotExist)
}

func (r *run) journal(ctx context.Context, j JournalReport) error {
	r.tell("journal " + j.Path)
	cfg := journal.InspectConfig{Dir: j.Path}
	if visit := r.cfg.Entry; visit != nil {
		cfg.Entry = func(e journal.InspectedEntry) {
			lun, _, _ := strings.Cut(e.Group, ".")
			if v := r.cfg.Volume; v == "" || v == e.Group || v == lun || v == j.Replicas[e.Group] {
				visit(e)
			}
		}
	}
	var err error
	if j.Inspected, err = journal.Inspect(ctx, cfg); err != nil {
		return err
	}
	r.report.Journals = append(r.report.Journals, j)
	r.find(j.Findings, j.MoreFindings)
	return nil
}

func (r *run) pool(ctx context.Context, p node.StoredPool) error {
	what := "pool " + p.Path
	r.tell(what)
	cfg := blockstore.InspectConfig{Path: p.Path, Data: r.cfg.Data, BytesPerSecond: r.cfg.BytesPerSecond, Chunk: r.cfg.Chunk, Volume: r.cfg.Volume}
	report := PoolReport{Path: p.Path}
	report.InUse, cfg.Running = holder(p.Path)
	if r.cfg.Progress != nil {
		cfg.Progress = func(done, total int64) { r.cfg.Progress(what, done, total) }
	}
	if r.logs {
		cfg.Rewritten = (&logs{ctx: ctx, journals: r.journals}).rewritten
	}
	var err error
	if report.Inspected, err = blockstore.Inspect(ctx, cfg); err != nil {
		return err
	}
	r.report.Pools = append(r.report.Pools, report)
	r.find(report.Findings, report.MoreFindings)
	return nil
}

// holder returns who has a pool open.
func holder(path string) (pid int, held bool) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "data")
	}
	return vfs.Holder(path)
}

// compare compares the volumes with the journals of their replicas.
func (r *run) compare() {
	if !r.logs {
		return
	}
	applied := map[string]*blockstore.InspectedVolume{}
	for i := range r.report.Pools {
		for j := range r.report.Pools[i].Volumes {
			v := &r.report.Pools[i].Volumes[j]
			if v.Name != "" && !v.Unreadable {
				applied[v.Name] = v
			}
		}
	}
	for _, report := range r.report.Journals {
		for i := range report.Groups {
			r.compareOne(applied, report.Path, &report.Groups[i])
		}
	}
}

// compareOne compares the log of a replica with its volume.
func (r *run) compareOne(applied map[string]*blockstore.InspectedVolume, path string, j *journal.InspectedGroup) {
	volume := j.Name
	v := applied[volume]
	if v == nil || v.Rebuilding || j.Snapshot == 0 {
		return
	}
	marked, err := replication.MarkedIndex(j.SnapshotBody)
	if err != nil {
		r.report.Findings = append(r.report.Findings, block.Finding{
			Kind: "snapshot", Path: path, Offset: -1, Volume: volume, What: err.Error(), Data: "The replica does not start. The other copies are not touched by that.",
			Next: "Use the software that wrote it, or let the replica be rebuilt from another copy.",
		})
		return
	}
	if v.Applied >= marked {
		return
	}
	r.report.Findings = append(r.report.Findings, block.Finding{
		Kind: "replica", Path: path, Offset: -1, Volume: volume, What: fmt.Sprintf("the volume has applied entry %d, and the journal says that it was durable up to %d", v.Applied, marked),
		Data: "The volume is an older copy than its journal: what was acknowledged in between is missing here. The other copies have it.",
		Next: "Was the pool restored from a copy, or a disk swapped? Start the node: it refuses the volume, and the replica is to be rebuilt from another copy.",
	})
}
