package prove

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sanctuary/node/config"
	"sanctuary/scripts/guest/machine"
	"sanctuary/scripts/prove/cutblock"
)

const (
	guestAddress = "10.77.0.11"
	guestNetwork = "10.77.0.1/24" // this process's address there
	guestDisk    = 1 << 30        // bytes, of each node
	// imageVariable names the guest's image to the process in the network namespace, which cannot build it.
	imageVariable = "PROVE_IMAGE"
	imageTime     = 5 * time.Minute
	writeWithin   = 5 * time.Second // under load; else the power goes without one
)

// guestData is where a node's disk is mounted in the guest.
func guestData(node string) string { return "/data/" + node }

// guest is a virtual machine that all nodes of a cluster run in, each on an ext4 of its own, on disks that lose what was not flushed.
type guest struct {
	c     *cluster
	image string
	tap   string
	lives int
	vm    *machine.Machine
	disks map[string]*cutblock.Disk
}

// guestInside is inside, for a campaign that needs a guest.
func guestInside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) != "1" {
		if why := machine.Impossible(); why != "" {
			t.Fatal("a campaign of power cuts needs a guest: " + why)
		}
		ctx, cancel := context.WithTimeout(t.Context(), imageTime)
		defer cancel()
		image, err := machine.Image(ctx, filepath.Join("..", "guest"))
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(imageVariable, image)
	}
	return inside(t)
}

// startGuestCluster brings a healthy LUN up on two data nodes and a witness in a guest.
func startGuestCluster(t *testing.T, s clusterSpec) *cluster {
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
	c := &cluster{t: t, nodes: allNodes, copies: []string{alpha, beta}, dir: dir, binary: binary, configs: map[string]config.Config{}}
	g := &guest{c: c, image: os.Getenv(imageVariable), disks: map[string]*cutblock.Disk{}}
	c.guest = g
	t.Cleanup(g.close)
	network, err := machine.NewSwitch(guestNetwork)
	if err == nil {
		g.tap, err = network.Port()
	}
	if err != nil {
		t.Fatal(err)
	}
	c.configure(s)
	for _, n := range c.nodes {
		d := cutblock.New(guestDisk)
		g.disks[n] = d
		l, err := net.Listen("unix", g.socket(n))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- d.Serve(l) }()
		t.Cleanup(func() { // before close: so the guest is ended here
			g.kill()
			if err := errors.Join(l.Close(), <-served); err != nil {
				t.Error(err)
			}
		})
	}
	g.boot()
	for _, n := range c.nodes {
		g.sh("mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 " + g.device(n))
	}
	g.run()
	c.create(s)
	return c
}

func (g *guest) socket(node string) string { return filepath.Join(g.c.dir, node+".nbd") }
func (g *guest) device(node string) string { return "/dev/disk/by-id/virtio-" + node }

// boot starts the guest, with the disks as they are.
func (g *guest) boot() {
	g.c.t.Helper()
	g.lives++
	// Each life has a console of its own.
	m := machine.Config{Name: fmt.Sprintf("life-%d", g.lives), Image: g.image, Logs: g.c.dir, Tap: g.tap, Address: guestAddress + "/24", Program: g.c.binary}
	for _, n := range g.c.nodes {
		// The guest's flushes arrive; what it does not flush may wait here for ever.
		m.Disks = append(m.Disks, machine.Disk{Name: n, Drive: "format=raw,cache=writeback,file.driver=nbd,file.server.type=unix,file.server.path=" + g.socket(n)})
	}
	var err error
	if g.vm, err = machine.Start(g.c.t.Context(), m); err != nil {
		g.c.t.Fatal(err)
	}
}

// sh runs a script in the guest, of which every command must succeed.
func (g *guest) sh(script string) string {
	g.c.t.Helper()
	out, err := g.vm.Sh(g.c.t.Context(), script)
	if err != nil {
		g.c.t.Fatalf("%v\n%s", err, machine.Tail(g.vm.Console))
	}
	return out
}

// run mounts the nodes' file systems and starts the nodes. What they say is on the console.
func (g *guest) run() {
	g.c.t.Helper()
	var script strings.Builder
	for _, n := range g.c.nodes {
		text, err := os.ReadFile(g.c.path(n, "toml"))
		if err != nil {
			g.c.t.Fatal(err)
		}
		command := "run"
		if n == witness {
			command = "witness"
		}
		fmt.Fprintf(&script, "mkdir -p %[1]s\nmount %[2]s %[1]s\ncat >/run/%[3]s.toml <<'END'\n%[4]sEND\n%[6]s %[5]s --config /run/%[3]s.toml >/dev/console 2>&1 &\n",
			guestData(n), g.device(n), n, text, command, machine.ProgramPath)
	}
	g.sh(script.String())
}

// check says whether the nodes' file systems are sound: each is mounted, so that its journal is replayed, and then looked at as a whole.
func (g *guest) check() {
	g.c.t.Helper()
	var script strings.Builder
	for _, n := range g.c.nodes {
		fmt.Fprintf(&script, "mkdir -p %[1]s\nmount %[2]s %[1]s\numount %[1]s\nfsck.ext4 -f -n %[2]s >/tmp/fsck 2>&1 || { cat /tmp/fsck; false; }\n", guestData(n), g.device(n))
	}
	g.sh(script.String())
}

// cut takes the power from the guest, and returns what its disks have lost.
func (g *guest) cut(rng *rand.Rand) (losses []string, lost int) {
	g.c.t.Helper()
	if err := g.vm.Ended(); err != nil {
		g.c.t.Fatal(err)
	}
	// With the next write to one of the copies: at most other moments all has been flushed, and there is nothing to lose.
	select {
	case <-g.disks[g.c.copies[rng.IntN(len(g.c.copies))]].PowerOffAtWrite():
	case <-time.After(writeWithin):
	}
	for _, n := range g.c.nodes {
		g.disks[n].PowerOff()
	}
	g.kill()
	for _, n := range g.c.nodes {
		l := g.disks[n].PowerOn(rng)
		losses = append(losses, n+" "+l.String())
		lost += l.Lost
	}
	return losses, lost
}

// kill ends the guest, and looks at what its kernel and its nodes have said on the console.
func (g *guest) kill() {
	if g.vm == nil {
		return
	}
	g.vm.Kill()
	text, err := os.ReadFile(g.vm.Console)
	if err != nil {
		g.c.t.Error(err)
	}
	for _, bad := range []string{"panic:", "Kernel panic", "fatal error:", "invariant", "EXT4-fs error", "I/O error"} {
		if i := strings.Index(string(text), bad); i >= 0 {
			g.c.t.Errorf("%s says %q: %.400s", g.vm.Console, bad, text[max(0, i-100):])
		}
	}
	g.vm = nil
}

func (g *guest) close() {
	if g.c.api != nil {
		g.c.api.Close()
	}
	if g.c.t.Failed() {
		g.c.t.Logf("consoles of the guest stay in %s", g.c.dir)
		return
	}
	if err := os.RemoveAll(g.c.dir); err != nil {
		g.c.t.Error(err)
	}
}

// TestProveGuestPowerCut cuts the power of a virtual machine under load, again and again: its kernel, page cache, file systems and all nodes on them
// are gone at once, and of its disks whatever was not flushed, sector by sector. The file systems must be sound, the nodes must find in
// them what they need, and nothing that was acknowledged may be missing.
//
// What it can see: a product that never syncs does not come back from the first cut. What it has not seen: rule "on disk before it is acknowledged" taken out
// (mutant_ack), in ten cuts, each of which lost something: both copies would have to lose the same write, and an emulated guest does few.
func TestProveGuestPowerCut(t *testing.T) {
	rng := prove(t)
	if !guestInside(t) {
		return
	}
	cl := startGuestCluster(t, clusterSpec{media: "file", sizeBytes: 128 << 20, keepBytes: 16 << 20})
	w := startLoad(t, cl, cl.healthy(), rng)
	var back []time.Duration
	lost := 0
	for i := range count(t, "PROVE_GUEST_CUTS", max(2, kills(t)/2)) {
		wait(t, time.Duration(500+rng.IntN(2000))*time.Millisecond)
		losses, n := cl.guest.cut(rng)
		lost += n
		off := time.Now()
		cl.guest.boot()
		booted := time.Now()
		cl.guest.check()
		checked := time.Now()
		cl.guest.run()
		started := time.Now()
		back = append(back, w.answered(started).Sub(started))
		cl.healthy()
		t.Logf("cut %d: lost %s; booted %v, checked %v, served %v, in sync %v after that", i, strings.Join(losses, ", "), booted.Sub(off).Round(time.Millisecond),
			checked.Sub(booted).Round(time.Millisecond), back[i].Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
		w.heat(rng)
	}
	w.finish(cl)
	if lost == 0 {
		t.Error("no disk has lost anything: this test has shown nothing")
	}
	// Emulated, three nodes on two cores.
	stalls(t, "returns of a virtual machine from a power cut, until I/O went on", back, 30*time.Second)
}
