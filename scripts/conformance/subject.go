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
	// serving says where the LUN is served now; nil if there is but one portal.
	serving func(ctx context.Context) (string, error)
}

// paths returns the URLs a suite is run on: MultipathIO takes two, on two nodes if there are two.
func (s *subject) paths(suite string) []string {
	if suite != "MultipathIO" {
		return []string{s.url}
	}
	second := s.url
	for _, u := range s.all {
		if u != s.url {
			second = u
		}
	}
	return []string{s.url, second}
}

// follow looks where the LUN is served after a test has failed, and says whether it has moved: on a machine so busy that
// nodes do not hear each other for a while, ownership moves, and with it what a session is told.
func (s *subject) follow(ctx context.Context) bool {
	if s.serving == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	url, err := s.serving(ctx)
	if err != nil || url == s.url {
		return false
	}
	s.url = url
	return true
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
	s := &subject{name: t.Name, all: t.URLs, alive: t.Alive, serving: t.Serving}
	s.stop = func() error { return errors.Join(t.Stop(), os.RemoveAll(dir)) }
	if target == "sanctuary" {
		s.admin, err = readAdmin(o.binary, filepath.Join(dir, "state"))
	}
	if err == nil {
		err = s.prepare(ctx, o)
	}
	if err == nil {
		s.url, err = t.Serving(ctx)
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

// prepare makes what the suites need beside the LUN they find: data through the portals of both nodes.
func (s *subject) prepare(ctx context.Context, o options) error {
	if s.admin == nil || o.nodes == 1 {
		return nil
	}
	_, err := s.admin.do(ctx, "lun", "set", lunName, "--non-optimized-paths=on")
	return err
}

// aligned makes a LUN whose logical blocks are as long as the physical ones (4Kn), as open as the first, and returns its URL.
func (s *subject) aligned(ctx context.Context) (string, error) {
	out, err := s.admin.do(ctx, "lun", "create", alignedLUN, "--size", "256MiB", "--media", "ram", "--block", "4096", "--open", "-o", "json")
	if err != nil {
		return "", err
	}
	var lun struct {
		Owner   string `json:"owner"`
		Portals []struct {
			Node string `json:"node"`
			URL  string `json:"url"`
		} `json:"portals"`
	}
	if err := json.Unmarshal(out, &lun); err != nil {
		return "", fmt.Errorf("LUN %s: %w", alignedLUN, err)
	}
	for _, p := range lun.Portals {
		if p.Node == lun.Owner {
			return p.URL, nil
		}
	}
	return "", fmt.Errorf("LUN %s has no portal on its owner %q: %s", alignedLUN, lun.Owner, out)
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

// owner returns the name of the node that owns the LUN.
func (a *admin) owner(ctx context.Context) (string, error) {
	out, err := a.do(ctx, "lun", "show", lunName, "-o", "json")
	if err != nil {
		return "", err
	}
	var lun struct {
		Owner string `json:"owner"`
	}
	if err := json.Unmarshal(out, &lun); err != nil {
		return "", fmt.Errorf("lun show %s: %w", lunName, err)
	}
	return lun.Owner, nil
}

// move hands the LUN to a node that does not own it now, and waits until that one serves.
func (a *admin) move(ctx context.Context) error {
	owner, err := a.owner(ctx)
	if err != nil {
		return err
	}
	to := slices.IndexFunc(a.data, func(n string) bool { return n != owner })
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
