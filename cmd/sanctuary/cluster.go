package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
)

// demo is a running demo cluster.
type demo struct {
	cli      *cli
	dir      string
	plan     plan
	program  string
	client   *client.Client
	children *children

	mu       sync.Mutex        // guards the maps; never held while waiting
	running  map[string]*child // by node; the last one started
	expected map[int]bool      // processes that are meant to end, by ID
	closing  bool
}

func newDemo(c *cli, dir string, p plan) (*demo, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	// What must be repeated is repeated by until, which also notices a node that has ended.
	cl, err := client.New(client.Config{Addresses: p.API, Timeout: 5 * time.Second, RetryFor: -1})
	if err != nil {
		return nil, fmt.Errorf("demo plan: %w", err)
	}
	return &demo{
		cli: c, dir: dir, plan: p, program: program, client: cl, children: newChildren(),
		running: map[string]*child{}, expected: map[int]bool{},
	}, nil
}

// close stops all nodes and returns those that had to be killed.
func (d *demo) close() []string {
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	d.client.Close()
	return d.children.stop()
}

func (d *demo) node(name string) planNode {
	i := slices.IndexFunc(d.plan.Nodes, func(n planNode) bool { return n.Name == name })
	return d.plan.Nodes[i]
}

// nodeCommand is how a node is started, here or by hand.
func nodeCommand(n planNode) []string {
	return []string{strings.TrimPrefix(commandOf(n.Kind), "sanctuary "), "--config", n.Config}
}

// startNode starts the process of a node.
func (d *demo) startNode(n planNode) error {
	ch, err := d.children.start(n.Name, d.program, nodeCommand(n), n.Log, d.childEnded)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.running[n.Name] = ch
	d.mu.Unlock()
	return nil
}

// childEnded tells the user about a node that ended without being told to.
func (d *demo) childEnded(ch *child) {
	d.mu.Lock()
	silent := d.closing || d.expected[ch.pid]
	d.mu.Unlock()
	if silent {
		return
	}
	how := "exit status 0"
	if ch.err != nil {
		how = ch.err.Error()
	}
	n := d.node(ch.name)
	line(d.cli.env.err, "Node %s (pid %d) ended: %s. The others go on. Its log: %s\n  start it again: %s %s",
		ch.name, ch.pid, how, n.Log, d.program, strings.Join(nodeCommand(n), " "))
}

// killNode kills a node with SIGKILL.
func (d *demo) killNode(name string) error {
	d.mu.Lock()
	ch, ok := d.running[name]
	if ok {
		d.expected[ch.pid] = true
	}
	d.mu.Unlock()
	if !ok {
		return fmt.Errorf("the API names %q as owner, which is no node of this demo", name)
	}
	return d.children.kill(ch)
}

// bringUp starts all nodes and returns the LUN when it is served and, on several nodes, in sync.
func (d *demo) bringUp(ctx context.Context) (api.LUN, error) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, n := range d.plan.Nodes {
		if err := d.startNode(n); err != nil {
			return api.LUN{}, err
		}
	}
	l, err := d.lunUp(ctx)
	switch {
	case err == nil:
		return l, nil
	case outer.Err() != nil:
		return api.LUN{}, outer.Err()
	}
	return api.LUN{}, &failure{
		what: fmt.Errorf("the demo's cluster did not come up within %v: %w", startTimeout, err),
		data: "Nothing was written to it by this demo.", next: "See the end of each node's log:\n" + d.logTails(),
	}
}

// lunUp waits until every node is up, creates the LUN if there is none, and waits until it is healthy.
func (d *demo) lunUp(ctx context.Context) (api.LUN, error) {
	if err := d.until(ctx, func() error {
		l, err := d.client.Nodes(ctx)
		if err != nil {
			return err
		}
		alive := 0
		for _, n := range l.Nodes {
			if n.Alive {
				alive++
			}
		}
		if alive < len(d.plan.Nodes) {
			return fmt.Errorf("%d of %d nodes have found each other", alive, len(d.plan.Nodes))
		}
		return nil
	}); err != nil {
		return api.LUN{}, err
	}
	var refused error
	if err := d.until(ctx, func() error {
		_, err := d.client.LUN(ctx, d.plan.LUN)
		var p *api.Problem
		if !errors.As(err, &p) || p.Code != api.CodeNotFound {
			return err
		}
		// The node that was asked may be behind: if the LUN is there, the leader says so and the next look finds it.
		_, err = d.client.CreateLUN(ctx, api.LUNSpec{
			Name: d.plan.LUN, SizeBytes: d.plan.SizeBytes, Media: d.plan.Media, BlockBytes: 512, Copies: min(2, d.plan.dataNodes()),
			Open: true, // nothing but loopback reaches it
		}, 0)
		if errors.As(err, &p) && p.Code == api.CodeInvalid {
			refused = err
			return nil
		}
		return err
	}); err != nil {
		return api.LUN{}, err
	}
	if refused != nil {
		return api.LUN{}, refused
	}
	return d.untilHealthy(ctx)
}

// until calls check until it returns nil, a node has ended by itself, or ctx ends.
func (d *demo) until(ctx context.Context, check func() error) error {
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if gone := d.gone(); gone != "" {
			return fmt.Errorf("node %s has ended: %w", gone, err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// gone names a node that has ended without being told to.
func (d *demo) gone() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, ch := range d.running {
		if ch.ended() && !d.expected[ch.pid] {
			return name
		}
	}
	return ""
}

// untilHealthy waits until the LUN is served with every copy in sync.
func (d *demo) untilHealthy(ctx context.Context) (l api.LUN, err error) {
	err = d.until(ctx, func() error {
		if l, err = d.client.LUN(ctx, d.plan.LUN); err != nil {
			return err
		}
		if l.Health != api.HealthHealthy || !l.Served() || l.View.Source != api.SourceOwner {
			return fmt.Errorf("LUN %s is %s: %s", l.Name, l.Health, strings.Trim(l.Reason+" "+l.View.Note, " "))
		}
		return nil
	})
	return l, err
}

// portals returns the LUN's portals, the owner's first: that is the one an initiator with a single path should use.
func portals(l api.LUN) []api.Portal {
	out := slices.Clone(l.Portals)
	slices.SortStableFunc(out, func(a, b api.Portal) int {
		switch {
		case a.Node == l.Owner && b.Node != l.Owner:
			return -1
		case b.Node == l.Owner && a.Node != l.Owner:
			return 1
		}
		return 0
	})
	return out
}

// announcement is what demo prints with -o json when it is up.
type announcement struct {
	Dir  string         `json:"dir"`
	Plan plan           `json:"plan"`
	PIDs map[string]int `json:"pids"`
	LUN  api.LUN        `json:"lun"`
}

// announce prints what is running and what to try.
func (d *demo) announce(l api.LUN, keep bool) error {
	pids := map[string]int{}
	d.mu.Lock()
	for name, ch := range d.running {
		pids[name] = ch.pid
	}
	d.mu.Unlock()
	return d.cli.print(announcement{d.dir, d.plan, pids, l}, func(w io.Writer) {
		stays := "removed at the end"
		if keep {
			stays = "stays; the same --dir resumes it"
		}
		line(w, "Cluster %s on loopback. State: %s (%s)\n", d.plan.Cluster, d.dir, stays)
		rows := [][]string{{"NODE", "KIND", "PID", "API", "ISCSI", "LOG"}}
		for _, n := range d.plan.Nodes {
			rows = append(rows, []string{n.Name, n.Kind, fmt.Sprint(pids[n.Name]), n.API, dash(n.ISCSI), n.Log})
		}
		table(w, rows...)
		line(w, "\nLUN %s: %s on %s, %s, served by %s, open to anyone on this machine. Portals, the owner's first:", l.Name, formatSize(l.SizeBytes), l.Media, l.Health, l.Owner)
		all := portals(l)
		for _, p := range all {
			line(w, "%s", p.URL)
		}
		if len(all) == 0 {
			return
		}
		line(w, "\nTry, in another terminal:")
		line(w, "  iscsi-inq %s", all[0].URL)
		line(w, "  %s status --api %s", d.program, strings.Join(d.plan.API, ","))
		line(w, "  kill -9 %d     # the owner, %s: another node takes over; status shows it", pids[l.Owner], l.Owner)
		line(w, "\nCtrl-C stops it all.")
	})
}

// logTails returns the last lines of every node's log.
func (d *demo) logTails() string {
	var b strings.Builder
	for _, n := range d.plan.Nodes {
		line(&b, "    %s:", n.Log)
		text, err := os.ReadFile(n.Log)
		if err != nil {
			line(&b, "      %v", err)
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, s := range lines[max(0, len(lines)-8):] {
			line(&b, "      %s", s)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// lun returns the LUN.
func (d *demo) lun(ctx context.Context) (api.LUN, error) { return d.client.LUN(ctx, d.plan.LUN) }

// restart starts a node that was killed.
func (d *demo) restart(name string) (pid int, err error) {
	if err := d.startNode(d.node(name)); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running[name].pid, nil
}
