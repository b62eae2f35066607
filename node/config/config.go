// Package config says how one node is set up: a plain struct, read from a strict TOML file, from flags or from the
// environment by the command line.
//
// Invariant: a Config that Validate accepts is one a node can be started with; everything it cannot check without the
// network is checked where it is used. It opens no file but the one it is told to load, and knows nothing of the cluster's state.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Kinds of nodes.
const (
	KindData    = "data"    // holds replicas and serves initiators
	KindWitness = "witness" // votes, holds no data; needs no pool and no iSCSI address
)

// Config is the configuration of one node. Sizes and durations are written with their units ("10GiB", "500ms").
type Config struct {
	// Cluster is the cluster's name, the same on every node: 1 to 63 of a-z, 0-9 and '-'. Gossip and peers with another
	// name are refused. Default "sanctuary".
	Cluster string `toml:"cluster" json:"cluster"`
	// Node is this node's name, unique in the cluster and never changed: 1 to 63 of a-z, 0-9 and '-'. No default.
	Node string `toml:"node" json:"node"`
	// Kind is "data" or "witness". Default "data".
	Kind string `toml:"kind" json:"kind"`
	// DataDir holds the node's identity, its catalog and its journals: an absolute path on a disk that survives a power
	// cut, not shared with another node. Default "/var/lib/sanctuary".
	DataDir string `toml:"data_dir" json:"data_dir"`

	Listen    Listen    `toml:"listen" json:"listen"`
	Advertise Advertise `toml:"advertise" json:"advertise"`

	// Members are the cluster's first members, this node among them, in the same order on every one of them. They matter at
	// the first start only: they are the votes the cluster begins with. Empty for a node that joins later. One, or three
	// and more: with two, the loss of one stops the cluster. At most 7.
	Members []Member `toml:"members,omitempty" json:"members,omitempty"`
	// Join is for a node added later: how it finds the cluster. Either Members or Join.
	Join Join `toml:"join" json:"join"`

	Pools   Pools   `toml:"pools" json:"pools"`
	Timing  Timing  `toml:"timing" json:"timing"`
	Journal Journal `toml:"journal" json:"journal"`
	Rebuild Rebuild `toml:"rebuild" json:"rebuild"`
	ISCSI   ISCSI   `toml:"iscsi" json:"iscsi"`
	Links   Links   `toml:"links" json:"links"`
	Log     Log     `toml:"log" json:"log"`

	// Refused, so that nobody believes to be protected by it: [tls], reserved for certificates of the cluster's own CA, for
	// peers, gossip and API. CHAP credentials are the cluster's and not a node's: "sanctuary host create" sets them.
}

// Listen says which addresses this node opens, each "host:port". An empty host is every address of the machine.
type Listen struct {
	// Peer is for replication between nodes (gRPC). Default ":7440".
	Peer string `toml:"peer" json:"peer"`
	// Gossip is for membership, TCP and UDP. Default ":7441".
	Gossip string `toml:"gossip" json:"gossip"`
	// API is for management (REST). Default "127.0.0.1:7442": other nodes must reach it to forward requests, so a cluster
	// over several machines sets it to an address of the management network. There is no authentication yet.
	API string `toml:"api" json:"api"`
	// ISCSI are the portals, on a data node only. Default [":3260"].
	ISCSI []string `toml:"iscsi,omitempty" json:"iscsi,omitempty"`
}

// Advertise says under which addresses others reach this node, each "host:port". Empty: the one it listens on, and
// where that is every interface ("", "0.0.0.0", "[::]"), the host of the peer address, which must therefore name one: here, in
// listen.peer, or in this node's entry in members.
type Advertise struct {
	Peer   string   `toml:"peer" json:"peer,omitempty"`
	Gossip string   `toml:"gossip" json:"gossip,omitempty"`
	API    string   `toml:"api" json:"api,omitempty"`
	ISCSI  []string `toml:"iscsi,omitempty" json:"iscsi,omitempty"` // as many as Listen.ISCSI, in the same order; or none
}

// Member is one of the cluster's first members.
type Member struct {
	Name   string `toml:"name" json:"name"`
	Kind   string `toml:"kind" json:"kind"`     // "data" or "witness"
	Peer   string `toml:"peer" json:"peer"`     // host:port of its peer address as others reach it
	Gossip string `toml:"gossip" json:"gossip"` // host:port of its gossip address as others reach it
}

// Join is how a node that is added later finds the cluster.
type Join struct {
	// API addresses of nodes that are in the cluster, "host:port". Any one that answers is enough.
	API []string `toml:"api,omitempty" json:"api,omitempty"`
	// Reserved for later, and refused until then: token, the one-time secret a cluster hands out.
}

// Pools are the media LUNs are kept on. A data node needs one.
type Pools struct {
	File FilePool `toml:"file" json:"file"`
	RAM  RAMPool  `toml:"ram" json:"ram"`
}

// FilePool keeps LUNs in files.
type FilePool struct {
	// Dir is an absolute path. Default: "pool" in DataDir.
	Dir string `toml:"dir" json:"dir,omitempty"`
	// Capacity is what LUNs may allocate there; 0 is no pool of files. At least 64MiB. Default 64GiB on a data node.
	Capacity Size `toml:"capacity" json:"capacity"`
	// Class is "ssd" or "hdd". Default: what the system says of the disk that Dir is on.
	Class string `toml:"class,omitempty" json:"class,omitempty"`
}

// RAMPool keeps LUNs in memory: gone when the process ends, and rebuilt from the other nodes.
type RAMPool struct {
	// Capacity is what LUNs may allocate there; 0 is no pool in memory. At least 64MiB otherwise. Default 0.
	Capacity Size `toml:"capacity" json:"capacity"`
}

// Timing says how soon a silent node is given up. Shorter means shorter stalls, and elections for nothing on a slow
// network or a loaded machine. The same on every node.
type Timing struct {
	// Heartbeat is how long a replica waits without word of the owner before it starts an election. 100ms to 60s. Default 1s.
	Heartbeat Duration `toml:"heartbeat" json:"heartbeat"`
	// Election is how long a candidate waits for votes. At least Heartbeat, at most 60s. Default 1s.
	Election Duration `toml:"election" json:"election"`
	// Lease is how long after a heartbeat was sent the owner may answer reads on its own, and for how long who
	// acknowledged it votes for nobody else. At least 50ms and at most Heartbeat. Default 400ms.
	Lease Duration `toml:"lease" json:"lease"`
	// OutOfSync is how long a copy may make no progress before writes go on without it. 100ms to 60s. Default 1s.
	OutOfSync Duration `toml:"out_of_sync" json:"out_of_sync"`
	// Probe is how often gossip checks a peer. 50ms to 10s. Default 300ms. Gossip is a hint, never a decision.
	Probe Duration `toml:"probe" json:"probe"`
}

// Journal is where the logs of the LUNs are: in data_dir.
type Journal struct {
	// KeepBytes is how much log a LUN keeps behind its checkpoint, for copies that were away: a copy that missed
	// more is rebuilt instead. 16MiB to 1TiB. Default 1GiB.
	KeepBytes Size `toml:"keep_bytes" json:"keep_bytes"`
	// SegmentBytes is the length of the files that the logs of all LUNs are written to. 1MiB to 2GiB. Default 128MiB, of a
	// witness 4MiB.
	SegmentBytes Size `toml:"segment_bytes" json:"segment_bytes"`
}

// Rebuild says how much of links and disks the node spends on copies that are brought up to date by comparison.
type Rebuild struct {
	// BusyPercent is the share of the time that rebuilds of copies on this node work while this node, or the one they are
	// rebuilt from, serves anybody. 1 to 100. Default 20. While nobody is served there are no pauses.
	BusyPercent int `toml:"busy_percent" json:"busy_percent"`
	// MaxRate is the most this node sends for rebuilds in a second, at any time; 0 is no bound. At least 1MiB otherwise. Default 0.
	MaxRate Size `toml:"max_rate" json:"max_rate"`
}

// ISCSI bounds what initiators can take of a data node. Who comes beyond waits, or is turned away; the others go on.
type ISCSI struct {
	// Memory is for the data of commands, of all sessions together; each session has room for one command of each kind beyond
	// it. 16MiB to 1TiB. Default 256MiB.
	Memory Size `toml:"memory" json:"memory"`
	// Window is how many commands a session may have outstanding. 1 to 1024. Default 128.
	Window int `toml:"window" json:"window"`
	// MaxConnections is how many connections there may be at once, and MaxPerAddress how many from one address. 1 to 65535.
	// Defaults 1024 and 256.
	MaxConnections int `toml:"max_connections" json:"max_connections"`
	MaxPerAddress  int `toml:"max_per_address" json:"max_per_address"`
}

// What Links may pack with.
const (
	CompressionOff  = "off"
	CompressionS2   = "s2"   // costs little, for a link that is somewhat thin
	CompressionZstd = "zstd" // smaller, at several times the cost
)

// Links says how this node sends to others. The other direction is the other node's setting.
type Links struct {
	// Compression is what entries and rebuilds are packed with: "off", "s2" or "zstd". Never on a LAN, where it costs more than it spares. Default "off".
	Compression string `toml:"compression" json:"compression"`
	// To is the same for single nodes, by name; they need not be there yet.
	To map[string]string `toml:"to,omitempty" json:"to,omitempty"`
}

// CompressionTo returns what is packed with for a node.
func (l Links) CompressionTo(node string) string {
	if c, ok := l.To[node]; ok {
		return c
	}
	return l.Compression
}

// Log says what the node writes to standard error.
type Log struct {
	// Level is "debug", "info", "warn" or "error". Default "info".
	Level string `toml:"level" json:"level"`
	// Format is "text" or "json". Default "text".
	Format string `toml:"format" json:"format"`
}

// Slog returns the level for package slog; info if it is not a valid one.
func (l Log) Slog() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// Default returns a data node's configuration with every default set. What has none (node, members) is empty.
func Default() Config {
	return Config{
		Cluster: "sanctuary",
		Kind:    KindData,
		DataDir: "/var/lib/sanctuary",
		Listen:  Listen{Peer: ":7440", Gossip: ":7441", API: "127.0.0.1:7442", ISCSI: []string{":3260"}},
		Pools:   Pools{File: FilePool{Capacity: 64 << 30}},
		Timing: Timing{
			Heartbeat: Duration(time.Second), Election: Duration(time.Second),
			Lease: Duration(400 * time.Millisecond), OutOfSync: Duration(time.Second), Probe: Duration(300 * time.Millisecond),
		},
		Journal: Journal{KeepBytes: 1 << 30, SegmentBytes: 128 << 20},
		Rebuild: Rebuild{BusyPercent: 20},
		ISCSI:   ISCSI{Memory: 256 << 20, Window: 128, MaxConnections: 1024, MaxPerAddress: 256},
		Links:   Links{Compression: CompressionOff},
		Log:     Log{Level: "info", Format: "text"},
	}
}

// DefaultWitness returns a witness's configuration: no pool and no portal.
func DefaultWitness() Config {
	c := Default()
	c.Kind = KindWitness
	c.Journal.SegmentBytes = 4 << 20
	c.Listen.ISCSI = nil
	c.Pools = Pools{}
	return c
}

// Load reads a TOML file over the defaults of the kind it names. An unknown key is an error that names its line. It does
// not validate: flags may still complete it.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse is Load for a file's content.
func Parse(b []byte) (Config, error) {
	var probe struct {
		Kind string `toml:"kind"`
	}
	if err := toml.Unmarshal(b, &probe); err != nil {
		return Config{}, explain(err)
	}
	c := Default()
	if probe.Kind == KindWitness {
		c = DefaultWitness()
	}
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, explain(err)
	}
	return c, nil
}

// explain turns the library's errors into ones that say the line, and, of an unknown key, which.
func explain(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		all := make([]error, 0, len(strict.Errors))
		for i := range strict.Errors {
			row, _ := strict.Errors[i].Position()
			all = append(all, fmt.Errorf("line %d: there is no setting %q: see docs for the list, or remove it", row, dotted(strict.Errors[i].Key())))
		}
		return errors.Join(all...)
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, col := decode.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}

func dotted(key toml.Key) string {
	out := ""
	for i, k := range key {
		if i > 0 {
			out += "."
		}
		out += k
	}
	return out
}

// Marshal returns the configuration as a TOML file that Load reads back unchanged.
func (c Config) Marshal() ([]byte, error) { return toml.Marshal(c) }

// Complete fills in what follows from other fields and returns the result: the pool's directory and the advertised
// addresses. It is called before Validate, after file, environment and flags have been merged.
func (c Config) Complete() Config {
	if c.Pools.File.Capacity > 0 && c.Pools.File.Dir == "" && c.DataDir != "" {
		c.Pools.File.Dir = filepath.Join(c.DataDir, "pool")
	}
	if c.Advertise.Peer == "" {
		c.Advertise.Peer = c.Listen.Peer
	}
	if c.Advertise.Gossip == "" {
		c.Advertise.Gossip = c.Listen.Gossip
	}
	if c.Advertise.API == "" {
		c.Advertise.API = c.Listen.API
	}
	if len(c.Advertise.ISCSI) == 0 {
		c.Advertise.ISCSI = append([]string(nil), c.Listen.ISCSI...)
	}
	// A first member's own entry says under which addresses the others know it.
	for _, m := range c.Members {
		if m.Name != c.Node {
			continue
		}
		if m.Peer != "" && anyHost(c.Advertise.Peer) {
			c.Advertise.Peer = m.Peer
		}
		if m.Gossip != "" && anyHost(c.Advertise.Gossip) {
			c.Advertise.Gossip = m.Gossip
		}
	}
	// What listens on every address is reached where the peers are, for want of anything better.
	host, _, err := net.SplitHostPort(c.Advertise.Peer)
	if err != nil || anyHost(c.Advertise.Peer) {
		return c
	}
	for _, a := range append([]*string{&c.Advertise.Gossip, &c.Advertise.API}, pointers(c.Advertise.ISCSI)...) {
		if _, port, err := net.SplitHostPort(*a); err == nil && anyHost(*a) {
			*a = net.JoinHostPort(host, port)
		}
	}
	return c
}

func pointers(s []string) []*string {
	out := make([]*string, len(s))
	for i := range s {
		out[i] = &s[i]
	}
	return out
}
