package prove

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/node/config"
	"sanctuary/replication/transport/loopback"
	"sanctuary/target/initiator"
)

const (
	startTimeout = 60 * time.Second // for a cluster to serve its LUN, on a busy machine
	healTimeout  = 60 * time.Second // for a copy to be in sync again
	stopGrace    = 60 * time.Second // for a node to stop in order: 5 s, and a checkpoint on a disk that others may keep busy
	pollEvery    = 25 * time.Millisecond
	lunName      = "proof"
)

// Names of the cluster's nodes.
const (
	alpha   = "alpha"
	beta    = "beta"
	witness = "witness"
)

var allNodes = []string{alpha, beta, witness}

// cluster is two data nodes and a witness, or three data nodes, each a process of its own, with one LUN. Its methods end the test on
// errors that say nothing about the product's promises.
type cluster struct {
	t       *testing.T
	dir     string
	binary  string
	configs map[string]config.Config
	api     *client.Client
	spawn   chan func() // runs on the thread all children are tied to

	nodes  []string         // allNodes and more, or three data nodes
	copies []string         // where the LUN was placed
	disks  map[string]*disk // of each node, if they can lose their power
	net    *network         // nil: all are on loopback, or in a guest
	guest  *guest           // nil: the nodes are processes of this machine

	mu    sync.Mutex // guards procs
	procs map[string]*process
}

// process is one life of a node.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and err is set
	err  error
}

// ends says whether it has ended by the time ctx ends.
func (p *process) ends(ctx context.Context) bool {
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// clusterSpec says what differs between campaigns.
type clusterSpec struct {
	media     string
	sizeBytes int64
	keepBytes int64    // of journal; 0 is the product's default
	power     bool     // the nodes' disks lose what was not synced when they are cut
	more      []string // data nodes besides alpha and beta
	three     bool     // three data nodes with a copy each, and no witness
	network   bool     // each node is a host of its own; only where inside is true
}

// startCluster brings a healthy LUN up. Everything is gone when the test ends, unless it failed: then the directory stays.
func startCluster(t *testing.T, s clusterSpec) *cluster {
	t.Helper()
	binary, err := filepath.Abs(env("PROVE_BINARY", filepath.Join("..", "..", "bin", "sanctuary")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: make build", err)
	}
	dir, err := os.MkdirTemp(os.Getenv("PROVE_DIR"), "prove-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, nodes: append(slices.Clone(allNodes), s.more...), copies: []string{alpha, beta}, dir: dir, binary: binary, configs: map[string]config.Config{}, spawn: make(chan func()), procs: map[string]*process{}}
	if s.three {
		c.nodes = []string{alpha, beta, gamma}
		c.copies = c.nodes
	}
	go func() { // a child dies with the thread that forked it: one that lives as long as the test
		runtime.LockOSThread()
		for f := range c.spawn {
			f()
		}
	}()
	t.Cleanup(c.close)
	if s.network {
		c.net = newNetwork(t, c.spawn, c.nodes)
	}
	c.configure(s)
	if s.power {
		c.mountDisks()
	}
	for _, n := range c.nodes {
		c.start(n)
	}
	c.create(s)
	return c
}

// create makes the LUN, once all nodes are there, and waits until it is healthy.
func (c *cluster) create(s clusterSpec) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), startTimeout)
	defer cancel()
	c.until(ctx, "all nodes alive", func() error {
		l, err := c.api.Nodes(ctx)
		alive := 0
		for _, n := range l.Nodes {
			if n.Alive {
				alive++
			}
		}
		if err == nil && alive != len(c.nodes) {
			err = fmt.Errorf("%d of %d nodes alive", alive, len(c.nodes))
		}
		return err
	})
	c.until(ctx, "LUN created", func() error {
		_, err := c.api.CreateLUN(ctx, api.LUNSpec{Name: lunName, SizeBytes: s.sizeBytes, Media: s.media, BlockBytes: 512, Nodes: c.copies, Open: true}, 0)
		return err
	})
	c.healthy()
}

// configure writes the nodes' configurations.
func (c *cluster) configure(s clusterSpec) {
	ports, err := loopback.Ports(4 * len(c.nodes))
	if err != nil {
		c.t.Fatal(err)
	}
	at := func(n, k int) string {
		host := "127.0.0.1"
		switch {
		case c.net != nil:
			host = c.net.address(c.nodes[n])
		case c.guest != nil:
			host = guestAddress
		}
		return net.JoinHostPort(host, strconv.Itoa(ports[4*n+k]))
	}
	var (
		members   []config.Member
		addresses []string
	)
	for i, n := range c.nodes {
		kind := config.KindData
		if n == witness {
			kind = config.KindWitness
		}
		members = append(members, config.Member{Name: n, Kind: kind, Peer: at(i, 0), Gossip: at(i, 1)})
		addresses = append(addresses, at(i, 2))
	}
	for i, n := range c.nodes {
		cfg := config.Default()
		if n == witness {
			cfg = config.DefaultWitness()
		} else {
			cfg.Listen.ISCSI = []string{at(i, 3)}
			cfg.Pools.RAM.Capacity = config.Size(s.sizeBytes + 64<<20)
		}
		cfg.Cluster, cfg.Node, cfg.DataDir = "prove", n, filepath.Join(c.dir, n)
		if c.guest != nil {
			cfg.DataDir = filepath.Join(guestData(n), "node")
		}
		cfg.Listen.Peer, cfg.Listen.Gossip, cfg.Listen.API = at(i, 0), at(i, 1), at(i, 2)
		if s.keepBytes > 0 {
			cfg.Journal.KeepBytes = config.Size(s.keepBytes)
		}
		cfg.Members = members
		if err := cfg.Complete().Validate(); err != nil {
			c.t.Fatal(err)
		}
		text, err := cfg.Marshal()
		if err == nil {
			err = os.WriteFile(c.path(n, "toml"), text, 0o600)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		c.configs[n] = cfg
	}
	// A stopped node does not answer: ask the next one soon.
	if c.api, err = client.New(client.Config{Addresses: addresses, Timeout: time.Second, RetryFor: -1}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) path(node, ext string) string { return filepath.Join(c.dir, node+"."+ext) }

// start starts a node's process.
func (c *cluster) start(node string) {
	c.t.Helper()
	log, err := os.OpenFile(c.path(node, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	command := "run"
	if node == witness {
		command = "witness"
	}
	p := &process{cmd: exec.Command(c.binary, command, "--config", c.path(node, "toml")), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	begin := p.cmd.Start
	if c.net != nil {
		begin = c.net.at(node, begin)
	}
	c.spawn <- func() { result <- begin() }
	if err := <-result; err != nil {
		c.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	c.mu.Lock()
	c.procs[node] = p
	c.mu.Unlock()
}

func (c *cluster) process(node string) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.procs[node]
}

// signal sends a signal to a node's process, which must be running.
func (c *cluster) signal(node string, s os.Signal) {
	c.t.Helper()
	if err := c.process(node).cmd.Process.Signal(s); err != nil {
		c.t.Fatalf("%v to %s: %v", s, node, err)
	}
}

// pause stops a node's process with SIGSTOP, and returns when the kernel says that it has stopped.
func (c *cluster) pause(node string) {
	c.t.Helper()
	c.signal(node, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	c.until(ctx, "SIGSTOP of "+node, func() error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.process(node).cmd.Process.Pid))
		if _, state, _ := strings.Cut(string(text), ") "); err == nil && !strings.HasPrefix(state, "T") {
			err = errors.New("still running")
		}
		return err
	})
}

// kill ends nodes with SIGKILL, all at once, and waits until they are gone.
func (c *cluster) kill(nodes ...string) {
	c.t.Helper()
	for _, n := range nodes {
		c.signal(n, syscall.SIGKILL)
	}
	for _, n := range nodes {
		p := c.process(n)
		<-p.done
		c.mu.Lock()
		delete(c.procs, n)
		c.mu.Unlock()
	}
}

// stop ends a node in order, with SIGTERM, and waits until it is gone.
func (c *cluster) stop(node string) {
	c.t.Helper()
	c.signal(node, syscall.SIGTERM)
	p := c.process(node)
	grace, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if !p.ends(grace) {
		c.t.Fatalf("node %s did not stop in order within %s", node, stopGrace)
	}
	c.mu.Lock()
	delete(c.procs, node)
	c.mu.Unlock()
}

// ended names a node that has ended without being killed.
func (c *cluster) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, p := range c.procs {
		select {
		case <-p.done:
			return fmt.Errorf("node %s has ended by itself: %v; see %s", n, p.err, c.path(n, "log"))
		default:
		}
	}
	return nil
}

// until calls check until it returns nil; a node that ends, or ctx, ends the test.
func (c *cluster) until(ctx context.Context, what string, check func() error) {
	c.t.Helper()
	tick := time.NewTicker(pollEvery) // a poll of other processes: there is nothing to wait on
	defer tick.Stop()
	var err error
	for {
		now := check()
		if now == nil {
			return
		}
		if err == nil || ctx.Err() == nil { // what ended because ctx did says nothing
			err = now
		}
		if gone := c.ended(); gone != nil {
			c.t.Fatalf("%s: %v (%v)", what, gone, err)
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("%s: %v; logs in %s", what, err, c.dir)
		case <-tick.C:
		}
	}
}

// healthy waits until the LUN is served with every copy in sync, and returns it.
func (c *cluster) healthy() api.LUN {
	c.t.Helper()
	return c.healthyBehind(0)
}

// healthyBehind is healthy for a LUN that must have got another owner since term: a node that was stopped until now may say
// for a moment that nothing has changed.
func (c *cluster) healthyBehind(term uint64) (l api.LUN) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, fmt.Sprintf("LUN in sync within %v", healTimeout), func() (err error) {
		if l, err = c.api.LUN(ctx, lunName); err != nil {
			return err
		}
		if l.Health != api.HealthHealthy || !l.Served() || l.View.Source != api.SourceOwner {
			return fmt.Errorf("LUN is %s: %s %s", l.Health, l.Reason, l.View.Note)
		}
		if l.Term <= term {
			return fmt.Errorf("owner %s is still in term %d", l.Owner, l.Term)
		}
		return nil
	})
	return l
}

// owner returns the LUN as its owner sees it, once there is one that serves.
func (c *cluster) owner() (l api.LUN) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, "LUN served", func() (err error) {
		if l, err = c.api.LUN(ctx, lunName); err == nil && (!l.Served() || l.View.Source != api.SourceOwner) {
			err = fmt.Errorf("LUN is %s: %s %s", l.Health, l.Reason, l.View.Note)
		}
		return err
	})
	return l
}

// move makes a node the owner.
func (c *cluster) move(node string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), healTimeout)
	defer cancel()
	c.until(ctx, "move LUN to "+node, func() error {
		l, err := c.api.MoveLUN(ctx, lunName, node, time.Second)
		if err == nil && (l.Owner != node || !l.Served()) {
			err = fmt.Errorf("owned by %q, %s", l.Owner, l.Health)
		}
		return err
	})
}

// other returns the data node that is not node.
func other(node string) string {
	if node == alpha {
		return beta
	}
	return alpha
}

// paths names the LUN's portals, in the order of the nodes: those of all data nodes where it may move to any of them.
func (c *cluster) paths(l api.LUN) []initiator.PathConfig {
	c.t.Helper()
	var out []initiator.PathConfig
	if len(c.nodes) > len(allNodes) {
		for _, n := range c.nodes {
			if n != witness {
				out = append(out, initiator.PathConfig{Address: c.configs[n].Listen.ISCSI[0], Target: l.IQN, LUN: uint16(l.Number)})
			}
		}
		return out
	}
	for _, p := range l.Portals {
		out = append(out, initiator.PathConfig{Address: p.Address, Target: l.IQN, LUN: uint16(l.Number)})
	}
	if len(out) != len(c.copies) {
		c.t.Fatalf("LUN has portals %v, want one on each of %v", l.Portals, c.copies)
	}
	return out
}

// portal returns the path to the LUN on one node.
func (c *cluster) portal(l api.LUN, node string) initiator.PathConfig {
	c.t.Helper()
	i := slices.IndexFunc(l.Portals, func(p api.Portal) bool { return p.Node == node })
	if i < 0 {
		c.t.Fatalf("LUN has portals %v, none on %s", l.Portals, node)
	}
	return initiator.PathConfig{Address: l.Portals[i].Address, Target: l.IQN, LUN: uint16(l.Number)}
}

// residentBytes is the memory of a node's process as the kernel counts it (VmRSS of proc(5)).
func (c *cluster) residentBytes(node string) int64 {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.process(node).cmd.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(text, []byte("VmRSS:"))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 2 || fields[1] != "kB" {
		c.t.Fatalf("no VmRSS in /proc/PID/status of %s", node)
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return kib << 10
}

// logSize is where a node's log ends now; logAfter returns what it has written since.
func (c *cluster) logSize(node string) int64 {
	c.t.Helper()
	s, err := os.Stat(c.path(node, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	return s.Size()
}

func (c *cluster) logAfter(node string, size int64) string {
	c.t.Helper()
	text, err := os.ReadFile(c.path(node, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(text[min(size, int64(len(text))):])
}

// close ends all processes and looks for what none of them may have said.
func (c *cluster) close() {
	for _, n := range c.nodes {
		text, err := os.ReadFile(c.path(n, "log"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			c.t.Error(err)
		}
		for _, bad := range []string{"panic:", "fatal error:", "DATA RACE", "invariant"} {
			if i := bytes.Index(text, []byte(bad)); i >= 0 {
				c.t.Errorf("the log of %s says %q: %s", n, bad, text[i:min(len(text), i+400)])
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, p := range c.procs {
		select {
		case <-p.done:
			c.t.Errorf("node %s ended by itself: %v", n, p.err)
			continue
		default:
		}
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // one that is still stopped would wait
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	grace, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	for n, p := range c.procs {
		if !p.ends(grace) {
			c.t.Errorf("node %s did not stop in order within %s", n, stopGrace)
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	}
	close(c.spawn)
	c.api.Close()
	c.unmountDisks()
	if c.t.Failed() {
		c.t.Logf("state and logs of the nodes stay in %s", c.dir)
		return
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Error(err)
	}
}

// prove skips a campaign unless it was asked for, and returns its random numbers.
func prove(t *testing.T) *rand.Rand {
	t.Helper()
	if os.Getenv("SANCTUARY_PROVE") != "1" {
		t.Skip("a campaign on real processes: make prove")
	}
	seed := rand.Uint64()
	if s := os.Getenv("PROVE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PROVE_SEED: %v", err)
		}
	}
	t.Logf("PROVE_SEED=%d", seed)
	t.Setenv("PROVE_SEED", strconv.FormatUint(seed, 10)) // for the process of its own that a campaign may need
	return rand.New(rand.NewPCG(seed, 0))
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// kills is how many owners to kill; other campaigns are as long in proportion.
func kills(t *testing.T) int {
	t.Helper()
	return count(t, "PROVE_KILLS", 20)
}

// count reads a whole number from 1 from the environment.
func count(t *testing.T, name string, otherwise int) int {
	t.Helper()
	n, err := strconv.Atoi(env(name, strconv.Itoa(otherwise)))
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: use a whole number from 1", name, os.Getenv(name))
	}
	return n
}

// stallLimit is the longest an I/O may be held up by a fault: 3 s, unless the machine is known to be slow.
func stallLimit(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(env("PROVE_STALL_LIMIT", "3s"))
	if err != nil || d <= 0 {
		t.Fatalf("PROVE_STALL_LIMIT=%q: use a duration such as 3s", os.Getenv("PROVE_STALL_LIMIT"))
	}
	return d
}

// wait lets the load run for a while.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.FailNow()
	}
}
