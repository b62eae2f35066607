package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/node/config"
	"sanctuary/replication/transport/loopback"
	"sanctuary/scripts/guest/machine"
)

// Names of the cluster's nodes.
const (
	alpha   = "alpha"
	beta    = "beta"
	witness = "witness"
)

var allNodes = []string{alpha, beta, witness}

// cluster is two data nodes and a witness, each a process of its own on loopback.
type cluster struct {
	dir     string
	binary  string
	api     *client.Client
	apiList []string
	portals map[string]string // of data nodes: host:port as advertised
	procs   map[string]*machine.Process
}

// startCluster returns once all nodes are alive. Its nodes advertise the addresses under which a guest reaches them.
func startCluster(dir string) (*cluster, error) {
	binary := os.Getenv("GUEST_BINARY")
	if binary == "" {
		binary = filepath.Join("..", "..", "bin", "sanctuary")
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("%w: make build", err)
	}
	c := &cluster{dir: dir, binary: binary, portals: map[string]string{}, procs: map[string]*machine.Process{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := c.configure(); err != nil {
		return nil, err
	}
	for _, n := range allNodes {
		if err := c.start(n); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitTime)
	defer cancel()
	for {
		err := c.allAlive(ctx)
		if err == nil {
			return c, nil
		}
		if gone := c.ended(); gone != nil || ctx.Err() != nil {
			return nil, errors.Join(err, gone, c.close())
		}
		time.Sleep(pollEvery) // a poll of other processes: there is nothing to wait on
	}
}

func (c *cluster) allAlive(ctx context.Context) error {
	l, err := c.api.Nodes(ctx)
	if err != nil {
		return err
	}
	alive := 0
	for _, n := range l.Nodes {
		if n.Alive {
			alive++
		}
	}
	if alive != len(allNodes) {
		return fmt.Errorf("%d of %d nodes alive", alive, len(allNodes))
	}
	return nil
}

func (c *cluster) configure() error {
	ports, err := loopback.Ports(4 * len(allNodes))
	if err != nil {
		return err
	}
	at := func(n, k int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[4*n+k])) }
	var members []config.Member
	for i, n := range allNodes {
		kind := config.KindData
		if n == witness {
			kind = config.KindWitness
		}
		members = append(members, config.Member{Name: n, Kind: kind, Peer: at(i, 0), Gossip: at(i, 1)})
		c.apiList = append(c.apiList, at(i, 2))
	}
	for i, n := range allNodes {
		cfg := config.Default()
		if n == witness {
			cfg = config.DefaultWitness()
		} else {
			// A guest's way to the host leads to 127.0.0.1, QEMU's own to the address itself.
			port := strconv.Itoa(ports[4*i+3])
			c.portals[n] = net.JoinHostPort(hostInGuest, port)
			cfg.Listen.ISCSI = []string{net.JoinHostPort("0.0.0.0", port)}
			cfg.Advertise.ISCSI = []string{c.portals[n]}
			cfg.Pools.File.Capacity = 8 << 30
		}
		cfg.Cluster, cfg.Node, cfg.DataDir = "guest", n, filepath.Join(c.dir, n)
		cfg.Listen.Peer, cfg.Listen.Gossip, cfg.Listen.API = at(i, 0), at(i, 1), at(i, 2)
		cfg.Members = members
		if err := cfg.Complete().Validate(); err != nil {
			return err
		}
		text, err := cfg.Marshal()
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.path(n, "toml"), text, 0o600); err != nil {
			return err
		}
	}
	// A stopped node does not answer: ask the next one soon.
	c.api, err = client.New(client.Config{Addresses: c.apiList, Timeout: 5 * time.Second, RetryFor: -1})
	return err
}

func (c *cluster) path(node, ext string) string { return filepath.Join(c.dir, node+"."+ext) }

func (c *cluster) start(node string) error {
	command := "run"
	if node == witness {
		command = "witness"
	}
	p, err := machine.Run("node "+node, c.path(node, "log"), exec.Command(c.binary, command, "--config", c.path(node, "toml")))
	if err == nil {
		c.procs[node] = p
	}
	return err
}

// ended names a node that has ended without being killed.
func (c *cluster) ended() error {
	for n, p := range c.procs {
		if err := p.Ended(); err != nil {
			return fmt.Errorf("%w\n%s", err, machine.Tail(c.path(n, "log")))
		}
	}
	return nil
}

// kill ends a node with SIGKILL and waits until it is gone.
func (c *cluster) kill(node string) {
	c.procs[node].Kill()
	delete(c.procs, node)
}

// close ends all nodes in order, and looks for what none of them may have said.
func (c *cluster) close() error {
	var errs []error
	for _, n := range allNodes {
		text, err := os.ReadFile(c.path(n, "log"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, bad := range []string{"panic:", "fatal error:", "DATA RACE", "invariant"} {
			if i := bytes.Index(text, []byte(bad)); i >= 0 {
				errs = append(errs, fmt.Errorf("the log of %s says %q: %s", n, bad, text[i:min(len(text), i+400)]))
			}
		}
	}
	for n, p := range c.procs {
		if err := p.Ended(); err != nil {
			errs = append(errs, err)
			delete(c.procs, n)
			continue
		}
		_ = p.Cmd.Process.Signal(syscall.SIGTERM) // an error: it has ended meanwhile
	}
	for _, p := range c.procs {
		grace := time.NewTimer(20 * time.Second)
		select {
		case <-p.Done:
		case <-grace.C:
			errs = append(errs, fmt.Errorf("%s did not stop in order within 20 s", p.Name))
			p.Kill()
		}
		grace.Stop()
	}
	if c.api != nil {
		c.api.Close()
	}
	return errors.Join(errs...)
}

// other returns the data node that is not node.
func other(node string) string {
	if node == alpha {
		return beta
	}
	return alpha
}

// lun returns the LUN as its owner sees it, once it is served.
func (l *lab) lun(t *testing.T, name string) (lun api.LUN) {
	t.Helper()
	l.soon(t, "LUN "+name+" served", func() (err error) {
		if lun, err = l.cluster.api.LUN(t.Context(), name); err == nil && (!lun.Served() || lun.View.Source != api.SourceOwner) {
			err = fmt.Errorf("LUN is %s: %s %s", lun.Health, lun.Reason, lun.View.Note)
		}
		return err
	})
	return lun
}

// healthy waits until the LUN is served with every copy in sync.
func (l *lab) healthy(t *testing.T, name string) (lun api.LUN) {
	t.Helper()
	l.soon(t, "LUN "+name+" in sync", func() (err error) {
		if lun, err = l.cluster.api.LUN(t.Context(), name); err == nil && (lun.Health != api.HealthHealthy || lun.View.Source != api.SourceOwner) {
			err = fmt.Errorf("LUN is %s: %s %s", lun.Health, lun.Reason, lun.View.Note)
		}
		return err
	})
	return lun
}

// move makes a node the owner.
func (l *lab) move(t *testing.T, name, node string) {
	t.Helper()
	l.soon(t, "move LUN "+name+" to "+node, func() error {
		lun, err := l.cluster.api.MoveLUN(t.Context(), name, node, 10*time.Second)
		if err == nil && (lun.Owner != node || !lun.Served()) {
			err = fmt.Errorf("owned by %q, %s", lun.Owner, lun.Health)
		}
		return err
	})
}

// killOwner kills the node that owns the LUN and returns its name and when.
func (l *lab) killOwner(t *testing.T, name string) (string, time.Time) {
	t.Helper()
	owner := l.lun(t, name).Owner
	at := time.Now()
	l.cluster.kill(owner)
	return owner, at
}

// restart starts a killed node again and waits until every copy of the LUN is in sync.
func (l *lab) restart(t *testing.T, node, name string) {
	t.Helper()
	if err := l.cluster.start(node); err != nil {
		t.Fatal(err)
	}
	l.healthy(t, name)
}

// create makes a LUN that is gone when the test ends.
func (l *lab) create(t *testing.T, spec api.LUNSpec) api.LUN {
	t.Helper()
	spec.BlockBytes, spec.Media, spec.Copies = 512, "file", 2
	l.soon(t, "create LUN "+spec.Name, func() error {
		_, err := l.cluster.api.CreateLUN(t.Context(), spec, 0)
		return err
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitTime)
		defer cancel()
		if err := l.cluster.api.DeleteLUN(ctx, spec.Name, true); err != nil {
			t.Errorf("delete LUN %s: %v", spec.Name, err)
		}
	})
	return l.healthy(t, spec.Name)
}
