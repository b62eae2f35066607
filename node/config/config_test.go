package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const good = `
cluster = "lab"
node = "a"
data_dir = "/srv/a"

[listen]
iscsi = ["127.0.0.1:3260", "[::1]:3260"]

[pools.file]
capacity = "10GiB"
[pools.ram]
capacity = "1.5GiB"

[links]
compression = "s2"
[links.to]
w = "off"
far-away = "zstd"

[timing]
heartbeat = "1s"
election = "2s"

[[members]]
name = "a"
kind = "data"
peer = "10.0.0.1:7440"
gossip = "10.0.0.1:7441"

[[members]]
name = "b"
kind = "data"
peer = "10.0.0.2:7440"
gossip = "10.0.0.2:7441"

[[members]]
name = "w"
kind = "witness"
peer = "[fd00::3]:7440"
gossip = "[fd00::3]:7441"
`

func TestLoadFillsInDefaultsAndWhatFollows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.toml")
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	c = c.Complete()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Pools.File.Dir != "/srv/a/pool" || c.Pools.File.Capacity != 10<<30 || c.Pools.RAM.Capacity != 3<<29 {
		t.Fatalf("pools %+v", c.Pools)
	}
	if c.Timing.Election.Std() != 2*time.Second || c.Timing.Lease.Std() != 400*time.Millisecond || c.Journal.KeepBytes != 1<<30 {
		t.Fatalf("%+v", c.Timing)
	}
	if c.Advertise.Peer != "10.0.0.1:7440" || c.Advertise.Gossip != "10.0.0.1:7441" || c.Advertise.API != "127.0.0.1:7442" || c.Advertise.ISCSI[1] != "[::1]:3260" {
		t.Fatalf("advertised %+v", c.Advertise)
	}
	for node, want := range map[string]string{"b": CompressionS2, "w": CompressionOff, "far-away": CompressionZstd} {
		if got := c.Links.CompressionTo(node); got != want {
			t.Errorf("to %s it packs with %s, want %s", node, got, want)
		}
	}
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(b)
	if err != nil || !reflect.DeepEqual(again.Complete(), c) {
		t.Fatalf("written and read back:\n%+v\n%+v\n%v", again, c, err)
	}
}

func TestPortalOnEveryAddressIsReachedWhereThePeersAre(t *testing.T) {
	c := Default()
	c.Node = "a"
	c.Members = []Member{{Name: "a", Kind: KindData, Peer: "[fd00::1]:7440", Gossip: "[fd00::1]:7441"}}
	if c = c.Complete(); c.Advertise.ISCSI[0] != "[fd00::1]:3260" {
		t.Fatalf("%+v", c.Advertise)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Listen.ISCSI[0] != ":3260" {
		t.Fatal("completing changed what is listened on")
	}
}

func TestWitnessNeedsNeitherPoolNorPortal(t *testing.T) {
	c, err := Parse([]byte("kind = 'witness'\nnode = 'w'\n[join]\napi = ['10.0.0.1:7442']\n[advertise]\npeer = '10.0.0.3:7440'"))
	if err != nil {
		t.Fatal(err)
	}
	if c = c.Complete(); c.Validate() != nil {
		t.Fatal(c.Validate())
	}
	if c.Pools != (Pools{}) || len(c.Advertise.ISCSI) != 0 {
		t.Fatalf("%+v", c)
	}
}

func TestFileErrorsSayWhereAndWhat(t *testing.T) {
	for text, says := range map[string]string{
		"node = 'a'\n[listen]\npeers = ':1'":         `line 3: there is no setting "listen.peers"`,
		"[tls]\ncert = 'x'":                          "tls",
		"[chap]\nuser = 'x'":                         "chap",
		"[join]\ntoken = 'x'":                        `"join.token"`,
		"node = 7":                                   "line 1",
		"node = 'a'\nnode = 'b'":                     "line",
		"[pools.ram]\ncapacity = '10 gigs'":          "10GiB",
		"[timing]\nheartbeat = '1'":                  "250ms",
		"[journal]\nkeep_bytes = '0.3B'":             "whole number",
		"[journal]\nkeep_bytes = '9999999999999TiB'": "larger",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want it to say %q", text, err, says)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); err == nil || !strings.Contains(err.Error(), "none.toml") {
		t.Errorf("missing file: %v", err)
	}
}

func TestValidateNamesTheFieldAndTheWayOut(t *testing.T) {
	for field, test := range map[string]struct {
		break_ func(*Config)
		says   string
	}{
		"cluster":               {func(c *Config) { c.Cluster = "My Lab" }, "a-z"},
		"node":                  {func(c *Config) { c.Node = "" }, "a-z"},
		"kind":                  {func(c *Config) { c.Kind = "both" }, `"witness"`},
		"data_dir":              {func(c *Config) { c.DataDir = "data" }, "absolute"},
		"listen.peer":           {func(c *Config) { c.Listen.Peer = "7440" }, "host:port"},
		"listen.api":            {func(c *Config) { c.Listen.API = c.Listen.Gossip }, "its own port"},
		"listen.iscsi":          {func(c *Config) { c.Listen.ISCSI, c.Advertise.ISCSI = nil, nil }, "3260"},
		"listen.iscsi[1]":       {func(c *Config) { c.Listen.ISCSI[1] = "x:99999" }, "host:port"},
		"advertise.peer":        {func(c *Config) { c.Advertise.Peer = "0.0.0.0:7440" }, "no host"},
		"advertise.iscsi":       {func(c *Config) { c.Advertise.ISCSI = c.Advertise.ISCSI[:1] }, "one for each"},
		"members":               {func(c *Config) { c.Members = c.Members[:2] }, "third"},
		"members[0].kind":       {func(c *Config) { c.Members[0].Kind = "witness" }, "agree"},
		"members[1].name":       {func(c *Config) { c.Members[1].Name = "a" }, "twice"},
		"members[2].peer":       {func(c *Config) { c.Members[2].Peer = ":7440" }, "no host"},
		"members[2].gossip":     {func(c *Config) { c.Members[2].Gossip = "" }, "host:port"},
		"join.api":              {func(c *Config) { c.Join.API = []string{"10.0.0.1:7442"} }, "either"},
		"pools":                 {func(c *Config) { c.Pools = Pools{} }, "needs a pool"},
		"pools.file.dir":        {func(c *Config) { c.Pools.File.Dir = "/" }, "directory of its own"},
		"pools.file.class":      {func(c *Config) { c.Pools.File.Class = "ram" }, "ssd or hdd"},
		"pools.ram.capacity":    {func(c *Config) { c.Pools.RAM.Capacity = 1 }, "64MiB"},
		"pools.file.capacity":   {func(c *Config) { c.Pools.File.Capacity = -1 }, "64MiB"},
		"timing.lease":          {func(c *Config) { c.Timing.Lease = c.Timing.Heartbeat + 1 }, "at most timing.heartbeat"},
		"timing.election":       {func(c *Config) { c.Timing.Election = c.Timing.Heartbeat - 1 }, "at least timing.heartbeat"},
		"timing.heartbeat":      {func(c *Config) { c.Timing.Heartbeat = 0 }, "100ms"},
		"timing.out_of_sync":    {func(c *Config) { c.Timing.OutOfSync = 0 }, "100ms"},
		"timing.probe":          {func(c *Config) { c.Timing.Probe = Duration(time.Hour) }, "10s"},
		"journal.segment_bytes": {func(c *Config) { c.Journal.SegmentBytes = 1 }, "1MiB"},
		"journal.keep_bytes":    {func(c *Config) { c.Journal.KeepBytes = 1 }, "16MiB"},
		"rebuild.busy_percent":  {func(c *Config) { c.Rebuild.BusyPercent = 0 }, "1 to 100"},
		"rebuild.max_rate":      {func(c *Config) { c.Rebuild.MaxRate = 1000 }, "1MiB"},
		"iscsi.memory":          {func(c *Config) { c.ISCSI.Memory = 1 << 20 }, "16MiB"},
		"iscsi.window":          {func(c *Config) { c.ISCSI.Window = 2000 }, "1 to 1024"},
		"iscsi.max_connections": {func(c *Config) { c.ISCSI.MaxConnections = 0 }, "65535"},
		"iscsi.max_per_address": {func(c *Config) { c.ISCSI.MaxPerAddress = 1 << 20 }, "65535"},
		"links.compression":     {func(c *Config) { c.Links.Compression = "gzip" }, "off, s2 or zstd"},
		"links.to.b":            {func(c *Config) { c.Links.To = map[string]string{"b": ""} }, "off, s2 or zstd"},
		"links.to.a":            {func(c *Config) { c.Links.To = map[string]string{"a": "s2"} }, "the other node"},
		"links.to.10.0.0.1":     {func(c *Config) { c.Links.To = map[string]string{"10.0.0.1": "s2"} }, "no node's name"},
		"log.level":             {func(c *Config) { c.Log.Level = "loud" }, "debug"},
		"log.format":            {func(c *Config) { c.Log.Format = "xml" }, "json"},
		"members, this absent":  {func(c *Config) { c.Node = "z" }, "is not among them"},
		"members, none":         {func(c *Config) { c.Members = nil }, "join.api"},
		"listen.iscsi, many":    {func(c *Config) { c.Listen.ISCSI = make([]string, 17) }, "at most 16"},
		"pools, witness":        {func(c *Config) { c.Kind = KindWitness }, "a witness holds no data"},
	} {
		t.Run(field, func(t *testing.T) {
			c, err := Parse([]byte(good))
			if err != nil {
				t.Fatal(err)
			}
			c = c.Complete()
			test.break_(&c)
			err = c.Validate()
			name, _, _ := strings.Cut(field, ",")
			if err == nil || !strings.Contains("\n"+err.Error(), "\n"+name+": ") || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%v\nwant a line that begins with %q and says %q", err, name, test.says)
			}
		})
	}
}

func TestEveryMistakeIsReportedAtOnce(t *testing.T) {
	c, _ := Parse([]byte(good))
	c = c.Complete()
	c.Cluster, c.Log.Level, c.Journal.KeepBytes = "", "", 0
	if err := c.Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Fatalf("%v, want three lines", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "512 B": 512, "1KiB": 1024, "10GiB": 10 << 30, "10gib": 10 << 30, "1.5TiB": 3 << 39, "2MB": 2e6, " 7 KB ": 7000, "0.5KiB": 512,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "+1", "1e3", "1_000", "1/2KiB", "0x10", "1.2.3", "10 G", "ten", "1GiBB", strings.Repeat("9", 30)} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := Size(rapid.Int64Min(0).Draw(t, "size"))
		if got, err := ParseSize(s.String()); err != nil || got != s {
			t.Fatalf("%d was written %s and read as %d, %v", s, s, got, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("[pools.ram]\ncapacity = '1.GiB'"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if c, err := Parse(b); err == nil {
			_ = c.Complete().Validate()
		}
	})
}
