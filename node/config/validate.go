package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var name = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

const (
	minPool        = 64 << 20
	minJournal     = 16 << 20
	maxJournal     = 1 << 40
	minSegment     = 1 << 20
	maxSegment     = 2 << 30
	minRebuild     = 1 << 20
	minISCSIMemory = 16 << 20
	maxISCSIMemory = 1 << 40
	maxMembers     = 7
	nameRule       = "use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end"
	addressRule    = "write host:port, such as 10.0.0.1:7440 or [fd00::1]:7440"
)

// problems collects what is wrong, so that an operator sees all of it at once.
type problems []error

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
}

// Validate returns an error with one line for each thing that is wrong, naming the field as it is written in the file and
// the way out. Call Complete first.
func (c Config) Validate() error {
	var p problems
	checkName(&p, "cluster", c.Cluster)
	checkName(&p, "node", c.Node)
	if c.Kind != KindData && c.Kind != KindWitness {
		p.add("kind", "%q: use %q or %q", c.Kind, KindData, KindWitness)
	}
	checkDir(&p, "data_dir", c.DataDir)
	c.checkAddresses(&p)
	c.checkMembers(&p)
	c.checkPools(&p)
	c.Timing.check(&p)
	if k := c.Journal.KeepBytes; k < minJournal || k > maxJournal {
		p.add("journal.keep_bytes", "%s: use 16MiB to 1TiB", k)
	}
	if b := c.Journal.SegmentBytes; b < minSegment || b > maxSegment {
		p.add("journal.segment_bytes", "%s: use 1MiB to 2GiB", b)
	}
	if r := c.Rebuild.BusyPercent; r < 1 || r > 100 {
		p.add("rebuild.busy_percent", "%d: use 1 to 100", r)
	}
	if r := c.Rebuild.MaxRate; r != 0 && r < minRebuild {
		p.add("rebuild.max_rate", "%s: use 1MiB or more, or 0 for no bound", r)
	}
	c.ISCSI.check(&p)
	c.Links.check(&p, c.Node)
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		p.add("log.level", "%q: use debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		p.add("log.format", "%q: use text or json", c.Log.Format)
	}
	return errors.Join(p...)
}

func (c Config) checkAddresses(p *problems) {
	type address struct{ field, value string }
	listen := []address{{"listen.peer", c.Listen.Peer}, {"listen.gossip", c.Listen.Gossip}, {"listen.api", c.Listen.API}}
	advertise := []address{{"advertise.peer", c.Advertise.Peer}, {"advertise.gossip", c.Advertise.Gossip}, {"advertise.api", c.Advertise.API}}
	for i, a := range c.Listen.ISCSI {
		listen = append(listen, address{"listen.iscsi[" + strconv.Itoa(i) + "]", a})
	}
	for i, a := range c.Advertise.ISCSI {
		advertise = append(advertise, address{"advertise.iscsi[" + strconv.Itoa(i) + "]", a})
	}
	seen := map[string]string{}
	for _, a := range listen {
		checkAddress(p, a.field, a.value)
		if other, ok := seen[a.value]; ok && a.value != "" {
			p.add(a.field, "%q is %s's too: give each its own port", a.value, other)
		}
		seen[a.value] = a.field
	}
	for _, a := range advertise {
		if checkAddress(p, a.field, a.value) && anyHost(a.value) {
			// An API on every address is found through the node's peer address; a portal through the connection's own.
			p.add(a.field, "%q names no host others could connect to: set it to this node's address, such as 10.0.0.1:7440", a.value)
		}
	}
	switch {
	case c.Kind == KindData && len(c.Listen.ISCSI) == 0:
		p.add("listen.iscsi", "a data node serves initiators: give it an address, such as [\":3260\"]")
	case c.Kind == KindWitness && len(c.Listen.ISCSI) > 0:
		p.add("listen.iscsi", "a witness serves no initiators: remove it")
	case len(c.Advertise.ISCSI) != len(c.Listen.ISCSI):
		p.add("advertise.iscsi", "%d addresses for %d portals: give one for each, in the same order", len(c.Advertise.ISCSI), len(c.Listen.ISCSI))
	}
	if len(c.Listen.ISCSI) > 16 {
		p.add("listen.iscsi", "%d portals, at most 16", len(c.Listen.ISCSI))
	}
}

func (c ISCSI) check(p *problems) {
	if c.Memory < minISCSIMemory || c.Memory > maxISCSIMemory {
		p.add("iscsi.memory", "%s: use 16MiB to 1TiB", c.Memory)
	}
	if c.Window < 1 || c.Window > 1024 {
		p.add("iscsi.window", "%d: use 1 to 1024", c.Window)
	}
	if n := c.MaxConnections; n < 1 || n > 65535 {
		p.add("iscsi.max_connections", "%d: use 1 to 65535", n)
	}
	if n := c.MaxPerAddress; n < 1 || n > 65535 {
		p.add("iscsi.max_per_address", "%d: use 1 to 65535", n)
	}
}

func (c Config) checkMembers(p *problems) {
	switch {
	case len(c.Members) == 0 && len(c.Join.API) == 0:
		p.add("members", "list the cluster's first members, this node among them; or, on a node added later, set join.api instead")
		return
	case len(c.Members) > 0 && len(c.Join.API) > 0:
		p.add("join.api", "a node either is one of the first members or joins them later: remove this or members")
	case len(c.Members) == 2:
		p.add("members", "two members stop when either is lost: use one, or add a third (a witness is enough)")
	case len(c.Members) > maxMembers:
		p.add("members", "%d first members, at most %d: add the others later with join", len(c.Members), maxMembers)
	}
	for i, a := range c.Join.API {
		checkAddress(p, fmt.Sprintf("join.api[%d]", i), a)
	}
	seen := map[string]bool{}
	own, data := false, 0
	for i, m := range c.Members {
		field := fmt.Sprintf("members[%d]", i)
		checkName(p, field+".name", m.Name)
		if seen[m.Name] {
			p.add(field+".name", "%q is listed twice", m.Name)
		}
		seen[m.Name] = true
		if m.Kind != KindData && m.Kind != KindWitness {
			p.add(field+".kind", "%q: use %q or %q", m.Kind, KindData, KindWitness)
		}
		if m.Kind == KindData {
			data++
		}
		if checkAddress(p, field+".peer", m.Peer) && anyHost(m.Peer) {
			p.add(field+".peer", "%q names no host others could connect to", m.Peer)
		}
		if checkAddress(p, field+".gossip", m.Gossip) && anyHost(m.Gossip) {
			p.add(field+".gossip", "%q names no host others could connect to", m.Gossip)
		}
		if m.Name == c.Node {
			own = true
			if m.Kind != c.Kind {
				p.add(field+".kind", "this node is listed as %q and is a %q: make them agree", m.Kind, c.Kind)
			}
		}
	}
	if len(c.Members) > 0 && !own && c.Node != "" {
		p.add("members", "this node, %q, is not among them: add it, or set join.api instead", c.Node)
	}
	if len(c.Members) > 0 && data == 0 {
		p.add("members", "there is no data node among them: nothing could hold a LUN")
	}
}

func (c Config) checkPools(p *problems) {
	file, ram := c.Pools.File, c.Pools.RAM
	if c.Kind == KindWitness {
		if file.Capacity != 0 || ram.Capacity != 0 {
			p.add("pools", "a witness holds no data: remove them")
		}
		return
	}
	if file.Capacity == 0 && ram.Capacity == 0 {
		p.add("pools", "a data node needs a pool: set pools.file.capacity or pools.ram.capacity")
	}
	if file.Capacity != 0 {
		checkDir(p, "pools.file.dir", file.Dir)
		if file.Capacity < minPool {
			p.add("pools.file.capacity", "%s: at least 64MiB, or 0 for no pool", file.Capacity)
		}
		if !slices.Contains([]string{"", "ssd", "hdd"}, file.Class) {
			p.add("pools.file.class", "%q: use ssd or hdd, or leave it out to have it found out", file.Class)
		}
	}
	if ram.Capacity != 0 && ram.Capacity < minPool {
		p.add("pools.ram.capacity", "%s: at least 64MiB, or 0 for no pool", ram.Capacity)
	}
}

func (t Timing) check(p *problems) {
	within(p, "timing.heartbeat", t.Heartbeat, 100*time.Millisecond, time.Minute)
	within(p, "timing.out_of_sync", t.OutOfSync, 100*time.Millisecond, time.Minute)
	within(p, "timing.probe", t.Probe, 50*time.Millisecond, 10*time.Second)
	if t.Election < t.Heartbeat || t.Election.Std() > time.Minute {
		p.add("timing.election", "%s: at least timing.heartbeat (%s) and at most 1m", t.Election, t.Heartbeat)
	}
	if t.Lease.Std() < 50*time.Millisecond || t.Lease > t.Heartbeat {
		p.add("timing.lease", "%s: at least 50ms and at most timing.heartbeat (%s)", t.Lease, t.Heartbeat)
	}
}

func (l Links) check(p *problems, self string) {
	choices := []string{CompressionOff, CompressionS2, CompressionZstd}
	if !slices.Contains(choices, l.Compression) {
		p.add("links.compression", "%q: use off, s2 or zstd", l.Compression)
	}
	for _, node := range slices.Sorted(maps.Keys(l.To)) {
		field := "links.to." + node
		switch {
		case !name.MatchString(node):
			p.add(field, "%q is no node's name: %s", node, nameRule)
		case node == self:
			p.add(field, "this node sends nothing to itself: name the other node")
		case !slices.Contains(choices, l.To[node]):
			p.add(field, "%q: use off, s2 or zstd", l.To[node])
		}
	}
}

func within(p *problems, field string, d Duration, low, high time.Duration) {
	if d.Std() < low || d.Std() > high {
		p.add(field, "%s: use %s to %s", d, low, high)
	}
}

func checkName(p *problems, field, s string) {
	if !name.MatchString(s) {
		p.add(field, "%q: %s", s, nameRule)
	}
}

func checkDir(p *problems, field, dir string) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		p.add(field, "%q: use an absolute path of a directory of its own", dir)
	}
}

func checkAddress(p *problems, field, s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || strings.ContainsAny(host, " /") {
		p.add(field, "%q: %s", s, addressRule)
		return false
	}
	return true
}

// anyHost says whether the address stands for every interface.
func anyHost(s string) bool {
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
