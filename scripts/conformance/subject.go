package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sanctuary/scripts/rig"
	"sanctuary/target/scsi"
)

const (
	startTimeout = 2 * time.Minute // for a target to serve, on a busy machine
	adminTimeout = time.Minute     // for one command of the operator's
	lunBytes     = 1 << 30
	alignedLUN   = "aligned" // logical and physical blocks of one size
	lunName      = "demo"
)

// subject is what is tested.
type subject struct {
	name  string
	url   string   // of the portal through which the LUN is served
	all   []string // of every portal, each on a node of its own
	admin *admin   // nil if it is not this project's cluster
	alive func() bool
	stop  func() error
	term  uint64 // of the owner, when last looked at
	// forwarded: url is of a node that does not own the LUN
	forwarded bool
	// serving returns the URL of the owner's portal and the owner's term; nil if the LUN cannot move.
	serving func(ctx context.Context) (url string, term uint64, err error)
}

// paths returns the URLs a suite is run on: MultipathIO takes two, on two nodes if there are two.
func (s *subject) paths(suite string) []string {
	if suite != multipathSuite {
		return []string{s.url}
	}
	return []string{s.url, s.another(s.url)}
}

// other returns the same subject through the portal of a node that does not own the LUN, if there is one.
func (s *subject) other() *subject {
	o := *s
	o.url, o.forwarded = s.another(s.url), true
	return &o
}

// follow looks where the LUN is served after a test has failed, and says whether it has had another owner since the last
// look: on a machine so busy that nodes do not hear each other for a while, ownership moves, and sessions are told of it.
func (s *subject) follow(ctx context.Context) bool {
	if s.serving == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	url, term, err := s.serving(ctx)
	if err != nil {
		return false
	}
	moved := term != s.term
	s.term, s.url = term, url
	if s.forwarded {
		s.url = s.another(url)
	}
	return moved
}

// another returns the URL of a portal on a node other than that of url, if there is one.
func (s *subject) another(url string) string {
	for _, u := range s.all {
		if u != url {
			return u
		}
	}
	return url
}

// start starts what is to be tested, unless target is the URL of one that runs already. Everything ends with stop.
func start(ctx context.Context, target string, o options) (*subject, error) {
	if strings.HasPrefix(target, "iscsi://") {
		return &subject{name: target, url: target, all: []string{target}, alive: func() bool { return true }, stop: func() error { return nil }}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "cu")
	if err != nil {
		return nil, err
	}
	var t *rig.Target
	switch target {
	case "tgt":
		if t, err = rig.StartTgt(ctx, dir, dir, lunBytes); err == nil {
			err = thinTgt(ctx, dir)
		}
	case "sanctuary":
		t, err = rig.StartDemo(ctx, rig.Demo{Binary: o.binary, Dir: dir, Media: o.media, SizeBytes: lunBytes, Nodes: o.nodes})
	default:
		err = fmt.Errorf("unknown target %q: sanctuary, tgt, or iscsi://host:port/iqn/lun", target)
	}
	if err != nil {
		keepLog(dir)
		if t != nil {
			err = errors.Join(err, t.Stop())
		}
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := &subject{name: t.Name, all: t.URLs, alive: t.Alive}
	s.stop = func() error { return errors.Join(t.Stop(), os.RemoveAll(dir)) }
	s.url, err = t.Serving(ctx)
	if err == nil && target == "sanctuary" {
		err = s.steer(ctx, o, filepath.Join(dir, "state"))
	}
	if err != nil {
		keepLog(dir)
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// thinTgt makes the LUN of the tgt that was started in dir what ours is, 512e and thin: the same tests run then.
func thinTgt(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "tgtadm", "--control-port", "0", "--lld", "iscsi", "--op", "update", "--mode", "logicalunit",
		"--tid", "1", "--lun", "1", "--params", "thin_provisioning=1,lbppbe=3")
	cmd.Env = append(os.Environ(), "TGT_IPC_SOCKET="+filepath.Join(dir, "tgt"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tgtadm, thin provisioning: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// steer makes ready to give orders to the cluster whose state is in dir, and gives those that the suites need.
func (s *subject) steer(ctx context.Context, o options, dir string) (err error) {
	if s.admin, err = readAdmin(o.binary, dir); err != nil {
		return err
	}
	s.serving = s.admin.serving
	if o.nodes > 1 {
		if err := s.forward(ctx); err != nil {
			return err
		}
	}
	s.url, s.term, err = s.serving(ctx)
	return err
}

// forward makes the node that does not own the LUN pass commands on, and waits until the owner reports it as Active/Non-optimized:
// the change raises a unit attention (2Ah/06h), which the tool takes for a failure.
func (s *subject) forward(ctx context.Context) error {
	if _, err := s.admin.do(ctx, "lun", "set", lunName, "--non-optimized-paths", "on"); err != nil {
		return err
	}
	for {
		ready, err := s.forwards(ctx)
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no node is Active/Non-optimized: %w", errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond): // a poll of a foreign process: there is nothing to wait on
		}
	}
}

// forwards says whether every portal reports one port group as Active/Optimized and the others as Active/Non-optimized.
func (s *subject) forwards(ctx context.Context) (bool, error) {
	for _, url := range s.all {
		session, err := dial(ctx, url)
		if err != nil {
			return false, err
		}
		groups, err := session.ReportTargetPortGroups(ctx)
		session.Close()
		if err != nil {
			return false, err
		}
		count := map[scsi.AccessState]int{}
		for _, g := range groups {
			count[g.State]++
		}
		if count[scsi.ActiveOptimized] != 1 || count[scsi.ActiveNonOptimized] != len(groups)-1 {
			return false, fmt.Errorf("port groups %+v through %s", groups, url)
		}
	}
	return true, nil
}

// check looks whether the tool's initiators may log in at all, and whether our own LUN is one on which every test can run.
func (s *subject) check(ctx context.Context) error {
	if s.admin != nil {
		return checkShape(ctx, s.url)
	}
	session, err := dial(ctx, s.url)
	if err == nil {
		session.Close()
	}
	return err
}

// singlePath says that the tool's initiators use one path and know nothing of ALUA: they are sent to the node that owns the
// LUN from now on, instead of being told by unit attentions, which the tool takes for failures.
func (s *subject) singlePath(ctx context.Context) error {
	_, err := s.admin.do(ctx, "lun", "allow", lunName, "--any", "--single-path")
	return err
}

// aligned makes a LUN whose logical blocks are as long as the physical ones (4Kn), as open as the first, and returns its URL.
func (s *subject) aligned(ctx context.Context) (string, error) {
	out, err := s.admin.do(ctx, "lun", "create", alignedLUN, "--size", "256MiB", "--media", "ram", "--block", "4096", "--open", "-o", "json")
	if err != nil {
		return "", err
	}
	var l lunState
	if err := json.Unmarshal(out, &l); err != nil {
		return "", fmt.Errorf("LUN %s: %w", alignedLUN, err)
	}
	return l.ownerURL()
}

// admin gives an operator's commands to a demo's cluster.
type admin struct {
	binary string
	apis   []string // host:port of every node's API
	data   []string // names of the data nodes
}

// readAdmin reads where the nodes of a demo are from its state directory.
func readAdmin(binary, dir string) (*admin, error) {
	text, err := os.ReadFile(filepath.Join(dir, "demo.json"))
	if err != nil {
		return nil, err
	}
	var demo struct {
		API   []string `json:"api"`
		Nodes []struct {
			Name string `json:"name"`
			Kind string `json:"kind"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal(text, &demo); err != nil {
		return nil, fmt.Errorf("demo.json: %w", err)
	}
	a := &admin{binary: binary, apis: demo.API}
	for _, n := range demo.Nodes {
		if n.Kind == "data" {
			a.data = append(a.data, n.Name)
		}
	}
	if len(a.apis) == 0 || len(a.data) == 0 {
		return nil, fmt.Errorf("demo.json names no API or no data node: %s", text)
	}
	return a, nil
}

// do runs one command and returns what it printed.
func (a *admin) do(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.binary, append(args, "--api", strings.Join(a.apis, ","))...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("sanctuary %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// lunState is what "lun show" says.
type lunState struct {
	Owner   string `json:"owner"`
	Term    uint64 `json:"term"` // grows with every owner
	Portals []struct {
		Node string `json:"node"`
		URL  string `json:"url"`
	} `json:"portals"`
}

// ownerURL returns the URL of the owner's portal.
func (l *lunState) ownerURL() (string, error) {
	for _, p := range l.Portals {
		if p.Node == l.Owner {
			return p.URL, nil
		}
	}
	return "", fmt.Errorf("no portal on the owner %q among %v", l.Owner, l.Portals)
}

func (a *admin) lun(ctx context.Context) (l lunState, err error) {
	out, err := a.do(ctx, "lun", "show", lunName, "-o", "json")
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(out, &l); err != nil {
		return l, fmt.Errorf("lun show %s: %w", lunName, err)
	}
	return l, nil
}

// serving returns where the LUN is served, waiting until it is.
func (a *admin) serving(ctx context.Context) (url string, term uint64, err error) {
	for {
		l, err := a.lun(ctx)
		if err == nil {
			if url, err = l.ownerURL(); err == nil {
				return url, l.Term, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", 0, errors.Join(ctx.Err(), err)
		case <-time.After(200 * time.Millisecond): // a poll of a foreign process: there is nothing to wait on
		}
	}
}

// move hands the LUN to a node that does not own it now, and waits until that one serves.
func (a *admin) move(ctx context.Context) error {
	now, err := a.lun(ctx)
	if err != nil {
		return err
	}
	to := slices.IndexFunc(a.data, func(n string) bool { return n != now.Owner })
	if to < 0 {
		return errors.New("there is no other data node to move the LUN to")
	}
	_, err = a.do(ctx, "lun", "move", lunName, "--to", a.data[to])
	return err
}

// keepLog shows what the target had to say before its folder goes.
func keepLog(dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log")) // the pattern is valid
	for _, name := range logs {
		if text, err := os.ReadFile(name); err == nil {
			fmt.Fprintf(os.Stderr, "%s:\n%s\n", filepath.Base(name), text)
		}
	}
}
