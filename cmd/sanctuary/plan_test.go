package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sanctuary/node/config"
)

func TestDemoPlansAreConfigurationsANodeAccepts(t *testing.T) {
	for _, tc := range []struct{ nodes, data, witnesses int }{{1, 1, 0}, {3, 2, 1}, {4, 3, 1}, {7, 6, 1}} {
		for _, media := range []string{"file", "ram"} {
			dir := t.TempDir()
			p, err := newPlan(dir, demoOptions{nodes: tc.nodes, media: media, sizeBytes: 100 << 30})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.write(dir); err != nil {
				t.Fatal(err)
			}
			count := map[string]int{}
			ports := map[string]bool{}
			for _, n := range p.Nodes {
				count[n.Kind]++
				cfg, err := config.Load(n.Config)
				if err != nil {
					t.Fatal(err)
				}
				cfg = cfg.Complete()
				if err := cfg.Validate(); err != nil {
					t.Errorf("%d nodes, %s: %v", tc.nodes, n.Name, err)
				}
				if cfg.Node != n.Name || cfg.Kind != n.Kind || len(cfg.Members) != tc.nodes || cfg.DataDir != filepath.Join(dir, n.Name) {
					t.Errorf("%d nodes, %s: %+v", tc.nodes, n.Name, cfg)
				}
				room := cfg.Pools.File.Capacity
				if media == "ram" {
					room = cfg.Pools.RAM.Capacity
				}
				if n.Kind == config.KindData && int64(room) < p.SizeBytes {
					t.Errorf("%d nodes, %s, %s: a pool of %v cannot hold the LUN", tc.nodes, n.Name, media, room)
				}
				for _, a := range append([]string{cfg.Listen.Peer, cfg.Listen.Gossip, cfg.Listen.API}, cfg.Listen.ISCSI...) {
					if host, _, err := net.SplitHostPort(a); err != nil || host != "127.0.0.1" {
						t.Errorf("%s listens on %s, beyond loopback", n.Name, a)
					}
					if ports[a] {
						t.Errorf("%s is given twice", a)
					}
					ports[a] = true
				}
			}
			if count[config.KindData] != tc.data || count[config.KindWitness] != tc.witnesses || p.dataNodes() != tc.data || len(p.API) != tc.nodes {
				t.Errorf("%d nodes: %v", tc.nodes, count)
			}
			again, found, err := readPlan(dir)
			if err != nil || !found || again.Nodes[0] != p.Nodes[0] || again.SizeBytes != p.SizeBytes {
				t.Errorf("read back: %+v, %v, %v", again, found, err)
			}
			if err := again.portsFree(); err != nil {
				t.Errorf("ports are not given back: %v", err)
			}
		}
	}
}

func TestDemoOptionsThatCannotBeAreRefused(t *testing.T) {
	good := demoOptions{nodes: 3, media: "file", sizeBytes: 1 << 30}
	for name, change := range map[string]func(*demoOptions){
		"no nodes":  func(o *demoOptions) { o.nodes = 0 },
		"two nodes": func(o *demoOptions) { o.nodes = 2 },
		"too many":  func(o *demoOptions) { o.nodes = 8 },
		"media":     func(o *demoOptions) { o.media = "tape" },
		"low port":  func(o *demoOptions) { o.basePort = 80 },
		"high port": func(o *demoOptions) { o.basePort = 65530 },
		"negative":  func(o *demoOptions) { o.basePort = -1 },
	} {
		o := good
		change(&o)
		if _, err := newPlan(t.TempDir(), o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPortsFromABaseMustAllBeFree(t *testing.T) {
	free, err := pickPorts(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	base := free[0]
	got, err := pickPorts(1, base)
	if err != nil || got[0] != base {
		t.Fatalf("%v, %v", got, err)
	}
	for _, network := range []string{"tcp", "udp"} { // gossip needs both on one number
		var release func()
		if network == "tcp" {
			l, err := net.Listen(network, loopback(base))
			if err != nil {
				t.Fatal(err)
			}
			release = func() { l.Close() }
		} else {
			l, err := net.ListenPacket(network, loopback(base))
			if err != nil {
				t.Fatal(err)
			}
			release = func() { l.Close() }
		}
		if _, err := pickPorts(1, base); err == nil || !strings.Contains(err.Error(), "--base-port") {
			t.Errorf("taken %s port: %v", network, err)
		}
		release()
	}
}

func TestADamagedPlanIsNotTakenForNone(t *testing.T) {
	for _, text := range []string{"{", `{"format":2,"nodes":[{}]}`, `{}`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, planFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, err := readPlan(dir); err == nil || found {
			t.Errorf("%s: found %v, no error", text, found)
		}
	}
}
