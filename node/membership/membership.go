// Package membership tells which nodes are reachable, by gossip (hashicorp/memberlist).
//
// Invariant: nothing here decides anything. It is a hint that lets others act sooner, and an address book; who may write
// is decided by Raft, and who belongs to the cluster by the catalog. A node that gossip calls dead may be alive and well.
package membership

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Config is what gossip needs.
type Config struct {
	Cluster   string   // label on every packet: clusters with different names never merge
	Node      string   // this node's name
	Listen    string   // host:port, TCP and UDP; an empty host is every address
	Advertise string   // host:port others use; empty: Listen
	Join      []string // gossip addresses of others, host:port; own address and those not up yet are no harm
	Meta      Meta     // what others are told about this node
	// Probe is how often a peer is checked; a silent one is given up after about four of these. 0: 300 ms.
	Probe time.Duration
	// Known returns the ID of the node with that name in the catalog, if it has one: a node that uses the name with another
	// ID is kept out. May be nil. It must not block, nor call this package.
	Known func(node string) (id string, ok bool)
	// OnEvent is called for every change, in order, one call at a time, on a goroutine of this package. Events are queued
	// while it runs; it may call anything but Close. May be nil.
	OnEvent func(Event)
	// Key encrypts gossip with AES when it has 16, 24 or 32 bytes. Nil: in the clear. (The cluster's key will come with its CA.)
	Key    []byte
	Logger *slog.Logger // nil: discard
}

// EventKind says what happened to a member.
type EventKind uint8

// Kinds of events.
const (
	Joined  EventKind = iota + 1 // reachable for the first time, or again
	Updated                      // its metadata changed
	Left                         // it said goodbye
	Died                         // it did not answer
)

func (k EventKind) String() string {
	return [...]string{"?", "joined", "updated", "left", "died"}[min(k, 4)]
}

// Event is a change of the membership.
type Event struct {
	Kind   EventKind
	Member Member
}

// Member is a node that gossip believes to be up.
type Member struct {
	Name   string
	Gossip string // host:port
	Meta   Meta
}

// Membership is this node's part in the gossip. All methods are safe for concurrent use.
type Membership struct {
	cfg  Config
	list *memberlist.Memberlist
	log  *slog.Logger
	// address does not change, but memberlist writes it again with every update, and has no lock for its readers.
	address string

	stop context.CancelFunc
	wg   sync.WaitGroup
	once sync.Once
	err  error

	mu      sync.Mutex
	meta    []byte            // our own, encoded
	members map[string]Member // without this node
	leaving map[string]bool   // members that have said goodbye
	answer  []string          // of those, whom to tell that it was heard
	unheard map[string]bool   // members that have not answered our own goodbye
	heard   chan struct{}     // closed when unheard is empty
	queue   []Event           // not yet delivered, at most maxQueue
	wake    chan struct{}
}

const (
	heardWait  = 250 * time.Millisecond // for answers to our goodbye
	leaveWait  = 500 * time.Millisecond // to tell the others
	rejoinWait = 2 * time.Second        // between attempts to reach members that are missing
	// maxQueue bounds the events not yet delivered. Beyond it the oldest go: Members is the truth, events only say "look".
	maxQueue = 1024
)

// Start opens the gossip port and begins to look for the others, which goes on in the background for as long as any
// address of Join does not belong to a member: it does not matter who starts first.
func Start(cfg Config) (*Membership, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Probe == 0 {
		cfg.Probe = 300 * time.Millisecond
	}
	if cfg.Advertise == "" {
		cfg.Advertise = cfg.Listen
	}
	meta, err := cfg.Meta.encode()
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	m := &Membership{cfg: cfg, log: cfg.Logger, meta: meta, members: map[string]Member{}, leaving: map[string]bool{}, heard: make(chan struct{}), wake: make(chan struct{}, 1)}
	conf, err := m.listConfig()
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	if m.list, err = memberlist.Create(conf); err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", cfg.Listen, err)
	}
	m.address = m.list.LocalNode().Address()
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	m.wg.Go(func() { m.deliver(ctx) })
	m.wg.Go(func() { m.join(ctx) })
	return m, nil
}

func (m *Membership) listConfig() (*memberlist.Config, error) {
	c := memberlist.DefaultLANConfig()
	var err error
	c.Name, c.Label = m.cfg.Node, m.cfg.Cluster
	if len(m.cfg.Cluster) == 0 || len(m.cfg.Cluster) > memberlist.LabelMaxSize {
		return nil, fmt.Errorf("cluster name %q: use 1 to %d characters", m.cfg.Cluster, memberlist.LabelMaxSize)
	}
	if c.BindAddr, c.BindPort, err = split(m.cfg.Listen); err != nil {
		return nil, err
	}
	if c.BindAddr == "" {
		c.BindAddr = "0.0.0.0"
	}
	host, port, err := split(m.cfg.Advertise)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); ip == nil && host != "" {
		// memberlist takes nothing but addresses here.
		found, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip", host)
		if err != nil {
			return nil, fmt.Errorf("advertised host: %w", err)
		}
		host = found[0].Unmap().String()
	} else if ip.IsUnspecified() {
		host = "" // memberlist picks a private address of this machine
	}
	c.AdvertiseAddr, c.AdvertisePort = host, port
	c.ProbeInterval, c.ProbeTimeout = m.cfg.Probe, m.cfg.Probe/2
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 2
	c.AwarenessMaxMultiplier = 3 // a busy machine probes at most so many times slower
	c.GossipInterval = 100 * time.Millisecond
	c.PushPullInterval = 10 * time.Second
	c.TCPTimeout = 2 * time.Second
	c.EnableCompression = false // LZW: its tables cost more, with every message, than it saves in ours; what it packs is read all the same
	// A node that comes back elsewhere takes its name with it as soon as its old address is dead.
	c.DeadNodeReclaimTime = time.Second
	c.SecretKey = m.cfg.Key
	c.RequireNodeNames = false
	d := (*delegate)(m)
	c.Delegate, c.Events, c.Conflict, c.Alive = d, d, d, d
	c.Logger = log.New(logWriter{m.log}, "", 0)
	return c, nil
}

func split(address string) (string, int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("address %q: the port is no number up to 65535", address)
	}
	return host, int(n), nil
}

// Address returns the host:port under which this node's gossip is advertised, with the real port if Listen asked for any.
func (m *Membership) Address() string { return m.address }

// Members returns the other nodes that are believed to be up, by name.
func (m *Membership) Members() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Member, 0, len(m.members))
	for _, x := range m.members {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Lookup returns another node, if it is believed to be up.
func (m *Membership) Lookup(name string) (Member, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x, ok := m.members[name]
	return x, ok
}

// Update tells the others what has changed about this node. It does not wait for them.
func (m *Membership) Update(meta Meta) error {
	b, err := meta.encode()
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	m.mu.Lock()
	same := bytes.Equal(m.meta, b)
	m.meta = b
	m.mu.Unlock()
	if same {
		return nil
	}
	// It returns an error only if nobody has been told in time; who has not been is told when the two compare what they know. Without a bound it
	// would wait for ever for those who have just died, and a node that is to stop with it.
	_ = m.list.UpdateNode(updateWait)
	return nil
}

// updateWait bounds the wait for an update to go out.
const updateWait = time.Second

// Close says goodbye, so that the others need not find out, and ends everything Start began.
func (m *Membership) Close() error { return m.end(true) }

func (m *Membership) end(goodbye bool) error {
	m.once.Do(func() {
		m.stop()
		m.wg.Wait()
		if goodbye {
			m.leave()
		}
		m.err = m.list.Shutdown()
	})
	return m.err
}

// leave says goodbye, waits until that was heard, and only then leaves memberlist: it takes the last message that came in first, so
// that a goodbye right before its own would find the node gone already, and dead.
func (m *Membership) leave() {
	others := slices.DeleteFunc(m.list.Members(), func(n *memberlist.Node) bool { return n.Name == m.cfg.Node })
	m.mu.Lock()
	m.unheard = map[string]bool{}
	for _, n := range others {
		m.unheard[n.Name] = true
	}
	m.mu.Unlock()
	for _, n := range others {
		_ = m.list.SendBestEffort(n, []byte(goodbyePrefix+m.cfg.Node))
	}
	if len(others) > 0 {
		select {
		case <-m.heard:
		case <-time.After(heardWait): // it was lost, or an older program answers nothing
		}
	}
	if err := m.list.Leave(leaveWait); err != nil {
		m.log.Debug("gossip: the others may not have heard that this node leaves", "reason", err)
	}
}

// join tries the addresses that belong to no member until each does, and goes on watching: after a partition
// longer than gossip remembers the dead, nobody else would bring the halves together again.
func (m *Membership) join(ctx context.Context) {
	wait := 50 * time.Millisecond
	for {
		if missing := m.missing(); len(missing) > 0 {
			if _, err := m.list.Join(missing); err != nil {
				m.log.Debug("gossip: not every member is reachable yet", "reason", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, rejoinWait)
	}
}

func (m *Membership) missing() []string {
	known := map[string]bool{m.cfg.Listen: true, m.cfg.Advertise: true, m.Address(): true}
	for _, x := range m.Members() {
		known[x.Gossip] = true
	}
	return slices.DeleteFunc(slices.Clone(m.cfg.Join), func(a string) bool {
		// A host name is compared by what it stands for now; if that cannot be told, trying again does no harm.
		if r, err := net.ResolveTCPAddr("tcp", a); err == nil {
			return known[a] || known[r.String()]
		}
		return known[a]
	})
}

func (m *Membership) deliver(ctx context.Context) {
	for {
		m.mu.Lock()
		queue, answer := m.queue, m.answer
		m.queue, m.answer = nil, nil
		m.mu.Unlock()
		m.tellHeard(answer)
		for _, e := range queue {
			m.log.Info("gossip: node "+e.Kind.String(), "node", e.Member.Name, "address", e.Member.Gossip)
			if m.cfg.OnEvent != nil {
				m.cfg.OnEvent(e)
			}
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
	}
}

// note queues an event. The caller holds mu.
func (m *Membership) note(kind EventKind, x Member) {
	if len(m.queue) >= maxQueue {
		m.queue = m.queue[1:]
	}
	m.queue = append(m.queue, Event{kind, x})
	m.stir()
}

// stir makes deliver look again.
func (m *Membership) stir() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// tellHeard answers goodbyes.
func (m *Membership) tellHeard(names []string) {
	if len(names) == 0 {
		return
	}
	for _, n := range m.list.Members() {
		if slices.Contains(names, n.Name) {
			_ = m.list.SendBestEffort(n, []byte(heardPrefix+m.cfg.Node))
		}
	}
}

var errOtherIdentity = errors.New("its name belongs to a node with another ID")
