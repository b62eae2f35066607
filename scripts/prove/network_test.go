package prove

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clients is the host of a network that the initiators and the API's client run on.
const clients = "clients"

// insideVariable tells a campaign that it is in a network namespace of its own.
const insideVariable = "PROVE_INSIDE"

// inside runs a campaign in a network namespace of its own, in a process of its own: what it makes there touches nothing of the machine's
// network, and is gone with the process. It is false in the process that has waited for that.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) == "1" {
		return true
	}
	if os.Getuid() != 0 {
		t.Fatal("a campaign of partitions needs root, for network namespaces and nftables")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: a campaign of partitions needs iproute2 and nftables (scripts/setup prove)", err)
		}
	}
	runtime.LockOSThread() // the child dies with the thread that forked it
	defer runtime.UnlockOSThread()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.timeout=0", "-test.run=^"+regexp.QuoteMeta(t.Name())+"$")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		t.Fatalf("%v: a campaign of partitions needs network namespaces", err)
	}
	for lines := bufio.NewReader(r); err == nil; {
		var line string
		if line, err = lines.ReadString('\n'); line != "" {
			fmt.Print("    ", line)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("in the network namespace: %v", err)
	}
	return false
}

// network is hosts on one switch, each in a network namespace of its own: nodes, and clients, which is the process's and holds the
// switch. A host may be deaf to another: what comes from there is dropped where it arrives, so that it can be one way only. One
// goroutine uses it at a time.
type network struct {
	t     *testing.T
	on    chan<- func()       // runs on the one thread that goes to and fro between namespaces
	hosts []string            // clients, and the nodes; in the order of their addresses
	space map[string]*os.File // their namespaces
	deaf  deafness            // in force
}

// deafness says to whom each host is deaf.
type deafness map[string][]string

// apart makes a and b deaf to each other.
func (d deafness) apart(a, b string) {
	d.to(a, b)
	d.to(b, a)
}

// to makes a deaf to b.
func (d deafness) to(a, b string) {
	if !slices.Contains(d[a], b) {
		d[a] = append(d[a], b)
	}
}

func newNetwork(t *testing.T, on chan<- func(), nodes []string) *network {
	t.Helper()
	n := &network{t: t, on: on, hosts: append([]string{clients}, nodes...), space: map[string]*os.File{}, deaf: deafness{}}
	n.must(func() (err error) {
		n.space[clients], err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	n.must(func() error {
		return ip("link set lo up", "link add switch type bridge stp_state 0 forward_delay 0", "link set switch up", "addr add "+n.address(clients)+"/24 dev switch")
	})
	for i, name := range nodes {
		n.must(func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("network namespace of %s: %w", name, err)
			}
			n.space[name], err = os.Open("/proc/thread-self/ns/net")
			return errors.Join(err, n.enter(clients))
		})
		n.must(func() error {
			port := fmt.Sprintf("port%d", i)
			space := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.space[name].Fd())
			return ip("link add "+port+" type veth peer name eth0 netns "+space, "link set "+port+" master switch up")
		})
		n.must(n.at(name, func() error {
			return ip("link set lo up", "link set eth0 up", "addr add "+n.address(name)+"/24 dev eth0")
		}))
	}
	t.Cleanup(func() {
		for _, f := range n.space {
			_ = f.Close()
		}
	})
	return n
}

// must runs f on the thread of namespaces and ends the test if it fails.
func (n *network) must(f func() error) {
	n.t.Helper()
	result := make(chan error)
	n.on <- func() { result <- f() }
	if err := <-result; err != nil {
		n.t.Fatal(err)
	}
}

// enter takes the calling thread, that of namespaces, to a host.
func (n *network) enter(host string) error {
	if err := unix.Setns(int(n.space[host].Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace of %s: %w", host, err)
	}
	return nil
}

// at returns f as it runs on a host, for the thread of namespaces: what f starts stays there.
func (n *network) at(host string, f func() error) func() error {
	return func() error {
		if err := n.enter(host); err != nil {
			return err
		}
		return errors.Join(f(), n.enter(clients))
	}
}

func (n *network) address(host string) string {
	return netip.AddrFrom4([4]byte{10, 77, 0, byte(1 + slices.Index(n.hosts, host))}).String()
}

// set makes hosts deaf as d says, and nothing else: what held before is over.
func (n *network) set(d deafness) {
	n.t.Helper()
	for _, host := range n.hosts {
		now := slices.Sorted(slices.Values(d[host]))
		if slices.Equal(now, slices.Sorted(slices.Values(n.deaf[host]))) {
			continue
		}
		rules := []string{"table ip cut", "delete table ip cut", "table ip cut {", "chain in {", "type filter hook input priority 0;"}
		for _, from := range now {
			rules = append(rules, "ip saddr "+n.address(from)+" drop")
		}
		n.must(n.at(host, func() error { return tool("nft", append(rules, "}", "}"), "-f", "-") }))
	}
	n.deaf = maps.Clone(d)
}

func ip(commands ...string) error { return tool("ip", commands, "-batch", "-") }

// tool runs a program that reads lines.
func tool(name string, lines []string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s; it was told %q", name, err, out, lines)
	}
	return nil
}

// String names who does not hear whom, for the log of a campaign.
func (d deafness) String() string {
	var out []string
	for _, host := range slices.Sorted(maps.Keys(d)) {
		if len(d[host]) > 0 {
			out = append(out, host+" deaf to "+strings.Join(slices.Sorted(slices.Values(d[host])), ", "))
		}
	}
	if len(out) == 0 {
		return "network whole"
	}
	return strings.Join(out, "; ")
}

// TestProveNetworkIsDeaf: a network that does not break as it was told to proves nothing. Every host sends to every other, and hears those it should.
func TestProveNetworkIsDeaf(t *testing.T) {
	rng := prove(t)
	if !inside(t) {
		return
	}
	on := make(chan func())
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with it
		for f := range on {
			f()
		}
	}()
	n := newNetwork(t, on, []string{alpha, beta, witness})
	t.Cleanup(func() { close(on) })
	sockets := map[string]*net.UDPConn{}
	for _, h := range n.hosts {
		n.must(n.at(h, func() (err error) {
			sockets[h], err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(n.address(h)), Port: 7000})
			return err
		}))
		t.Cleanup(func() { _ = sockets[h].Close() })
	}
	for round := range 30 {
		d := deafness{}
		if round != 1 { // after a cut, once: whole again
			d = anyDeafness(rng, n.hosts)
		}
		n.set(d)
		for _, from := range n.hosts {
			for _, to := range n.hosts {
				if from == to {
					continue
				}
				if _, err := sockets[from].WriteToUDP(fmt.Appendf(nil, "%d %s", round, from), &net.UDPAddr{IP: net.ParseIP(n.address(to)), Port: 7000}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, to := range n.hosts {
			want := map[string]bool{}
			for _, from := range n.hosts {
				want[from] = from != to && !slices.Contains(d[to], from)
			}
			got := map[string]bool{}
			for limit := 5 * time.Second; ; {
				if len(got) == len(n.hosts)-1-len(d[to]) {
					limit = 50 * time.Millisecond // of silence
				}
				p := make([]byte, 64)
				_ = sockets[to].SetReadDeadline(time.Now().Add(limit))
				size, err := sockets[to].Read(p)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				var sent int
				var from string
				if _, err := fmt.Sscan(string(p[:size]), &sent, &from); err != nil || sent != round {
					t.Fatalf("round %d: %s got %q", round, to, p[:size])
				}
				got[from] = true
			}
			for _, from := range n.hosts {
				if got[from] != want[from] {
					t.Fatalf("%v: %s hears %s: %v", d, to, from, got[from])
				}
			}
		}
	}
}
