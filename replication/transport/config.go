package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/credentials"
)

// Config is what a Mux needs to know.
type Config struct {
	Cluster string // cluster UUID; nodes of another cluster are refused
	Node    string // this node's name, the raft.ServerAddress by which peers know it
	NodeID  string // this node's UUID, told to peers

	// Credentials secure the connections, both as client and as server; nil means plaintext.
	Credentials credentials.TransportCredentials

	// Resolve gives the host:port of a node's peer listener, asked anew at every dial since addresses may change; false if
	// the node is unknown (yet). It must not block and may be called from many goroutines.
	Resolve func(node string) (addr string, ok bool)

	// Dial connects to what Resolve gave; nil: over TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// Compression says what bulk data to a node is packed with, where that node can read it; nil: nothing is packed. It must not block and may be called from many
	// goroutines.
	Compression func(node string) Compression

	Logger *slog.Logger // nil: slog.Default()
	Limits Limits
}

// Limits bounds time and memory. A zero field means its default.
type Limits struct {
	PingInterval     time.Duration // between pings while nothing else arrives; default 250 ms
	PeerTimeout      time.Duration // silence after which a connected peer counts as down; default 1 s
	DialTimeout      time.Duration // one attempt to connect, including the hello; default 1 s
	ReconnectMin     time.Duration // pause after the first failed attempt, doubling; default 50 ms
	ReconnectMax     time.Duration // longest pause: how late a returned peer may be noticed; default 200 ms
	HeartbeatTimeout time.Duration // of a heartbeat; default 1 s
	VoteTimeout      time.Duration // of RequestVote, RequestPreVote and TimeoutNow; default 2 s
	AppendTimeout    time.Duration // without progress, of AppendEntries on a bulk stream; default 10 s
	SnapshotTimeout  time.Duration // of InstallSnapshot; default 60 s. MinBytesPerSecond adds to it
	// MinBytesPerSecond lengthens deadlines of large requests: a thin link is slow, not dead. Default 256 KiB/s.
	MinBytesPerSecond int

	FrameBytes         int // largest chunk in one gRPC message; 4 KiB .. 4 MiB, default 1 MiB
	RequestBytes       int // largest AppendEntries; a longer one is cut (see GroupTransport.AppendEntries); default 64 MiB
	ReceiveBytes       int // incoming AppendEntries of all groups held before Raft has answered; default 256 MiB
	StreamWindowBytes  int // gRPC receive window of one stream; default 8 MiB
	ControlQueueBytes  int // waiting on one control stream; ErrBusy beyond; default 4 MiB
	CallBytes          int // request and answer of Call; default 256 KiB
	BulkCallBytes      int // request and answer of CallBulk; default 4 MiB
	CallsPerPeer       int // Call and CallBulk being handled for one peer, each; ErrBusy beyond; default 64 and a quarter of it
	ControlPerGroup    int // incoming control requests of one group waiting for Raft; ErrBusy beyond; default 32
	BulkStreamsPerNode int // incoming Append streams; ErrBusy beyond; default 16384
}

func (l *Limits) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&l.PingInterval, 250 * time.Millisecond},
		{&l.PeerTimeout, time.Second},
		{&l.DialTimeout, time.Second},
		{&l.ReconnectMin, 50 * time.Millisecond},
		{&l.ReconnectMax, 200 * time.Millisecond},
		{&l.HeartbeatTimeout, time.Second},
		{&l.VoteTimeout, 2 * time.Second},
		{&l.AppendTimeout, 10 * time.Second},
		{&l.SnapshotTimeout, time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, n := range []struct {
		field *int
		value int
	}{
		{&l.MinBytesPerSecond, 256 << 10},
		{&l.FrameBytes, 1 << 20},
		{&l.RequestBytes, 64 << 20},
		{&l.ReceiveBytes, 256 << 20},
		{&l.StreamWindowBytes, 8 << 20},
		{&l.ControlQueueBytes, 4 << 20},
		{&l.CallBytes, 256 << 10},
		{&l.BulkCallBytes, 4 << 20},
		{&l.CallsPerPeer, 64},
		{&l.ControlPerGroup, 32},
		{&l.BulkStreamsPerNode, 16384},
	} {
		if *n.field == 0 {
			*n.field = n.value
		}
	}
}

func (l *Limits) validate() error {
	for name, d := range map[string]time.Duration{
		"PingInterval": l.PingInterval, "PeerTimeout": l.PeerTimeout, "DialTimeout": l.DialTimeout, "ReconnectMin": l.ReconnectMin,
		"ReconnectMax": l.ReconnectMax, "HeartbeatTimeout": l.HeartbeatTimeout, "VoteTimeout": l.VoteTimeout,
		"AppendTimeout": l.AppendTimeout, "SnapshotTimeout": l.SnapshotTimeout,
	} {
		if d < time.Millisecond || d > time.Hour {
			return fmt.Errorf("transport limits: %s is %s: want 1ms .. 1h", name, d)
		}
	}
	for name, n := range map[string]int{
		"MinBytesPerSecond": l.MinBytesPerSecond, "RequestBytes": l.RequestBytes, "ReceiveBytes": l.ReceiveBytes,
		"ControlQueueBytes": l.ControlQueueBytes, "CallBytes": l.CallBytes,
		"BulkCallBytes": l.BulkCallBytes, "CallsPerPeer": l.CallsPerPeer, "ControlPerGroup": l.ControlPerGroup,
		"BulkStreamsPerNode": l.BulkStreamsPerNode,
	} {
		if n < 1 || n > math.MaxInt32 {
			return fmt.Errorf("transport limits: %s is %d: want 1 .. 2^31-1", name, n)
		}
	}
	switch {
	case l.FrameBytes < 4<<10 || l.FrameBytes > 4<<20:
		return fmt.Errorf("transport limits: FrameBytes is %d: want 4 KiB .. 4 MiB", l.FrameBytes)
	case l.StreamWindowBytes < 64<<10 || l.StreamWindowBytes > 1<<30:
		return fmt.Errorf("transport limits: StreamWindowBytes is %d: want 64 KiB .. 1 GiB", l.StreamWindowBytes)
	case l.ReceiveBytes < l.RequestBytes:
		return fmt.Errorf("transport limits: ReceiveBytes %d is less than RequestBytes %d: the largest request could never be received", l.ReceiveBytes, l.RequestBytes)
	case l.PeerTimeout <= l.PingInterval:
		return fmt.Errorf("transport limits: PeerTimeout %s must be longer than PingInterval %s", l.PeerTimeout, l.PingInterval)
	case l.ReconnectMax < l.ReconnectMin:
		return fmt.Errorf("transport limits: ReconnectMax %s is less than ReconnectMin %s", l.ReconnectMax, l.ReconnectMin)
	case l.CallBytes > l.ControlQueueBytes/2:
		return fmt.Errorf("transport limits: CallBytes %d is more than half of ControlQueueBytes %d", l.CallBytes, l.ControlQueueBytes)
	}
	return nil
}

func (c *Config) validate() error {
	switch {
	case c.Cluster == "":
		return errors.New("transport: Config.Cluster is empty: give the cluster UUID")
	case c.Node == "":
		return errors.New("transport: Config.Node is empty: give this node's name")
	case c.Resolve == nil:
		return errors.New("transport: Config.Resolve is nil: peers could not be found")
	}
	return c.Limits.validate()
}

// GroupConfig is what one replica's transport needs to know.
type GroupConfig struct {
	Group string        // "catalog" or the LUN's UUID
	Epoch uint64        // requests of another epoch are refused
	Self  raft.ServerID // requests addressed to another server id are refused: they are for an earlier incarnation

	// Incoming, if not nil, sees every valid request before Raft does; cmd is a *raft.AppendEntriesRequest (heartbeats too),
	// *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest or *raft.InstallSnapshotRequest, which it may
	// change. handled answers the sender with resp (a pointer to the matching response, may be nil if err is not) and err, and
	// Raft never sees the request. It is called on the receiving goroutine, for different requests of the group at the same time;
	// while it waits, the sender of that request waits, and an Append stream delivers nothing more.
	Incoming func(from raft.ServerID, fromNode string, cmd any) (resp any, err error, handled bool)

	// Answered, if not nil, is called when Raft has answered a request and before the answer is sent. It is not called for
	// requests Incoming has handled, nor for answers that came too late to be sent: those promise nothing.
	Answered func(from raft.ServerID, cmd any, resp any, err error)

	// StandIn, if not nil, is asked for the answer to a heartbeat that Raft does not take because it is busy, and has been for a moment, with an
	// AppendEntries of the same sender and term: most of all with its sync. nil leaves it to Raft. As soon as that AppendEntries has taken longer than
	// its sender waits, nobody is asked any more: whoever hangs falls silent. What it answers is Answered's no more.
	StandIn func(from raft.ServerID, heartbeat *raft.AppendEntriesRequest) *raft.AppendEntriesResponse

	// Replied, if not nil, is called when a pipelined AppendEntries to another replica has been answered (err is nil or what the
	// peer said) or its stream has failed, before Raft learns of it. It must not block.
	Replied func(to raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, err error)

	// AllowSnapshot false: InstallSnapshot fails at once, both ways, with ErrSnapshotRefused.
	AllowSnapshot bool

	// MaxInflightBytes bounds what a pipeline has sent to one peer and not had answered. AppendEntries waits beyond it; one
	// larger request may go alone. Default 8 MiB.
	MaxInflightBytes int

	// MaxInflightRequests bounds the same in requests. Few are better than many: while one is on its way, writes gather in
	// the next. On a link of long delay there may be one for every 5 ms of the round trip, up to 64. Default 4, 1 .. 1024.
	MaxInflightRequests int

	// PlainBytes is where a request outside a pipeline (a follower catching up) is cut: what is left follows at once. 0: 4 MiB.
	PlainBytes int
}

func (c *GroupConfig) setDefaults() {
	if c.MaxInflightBytes == 0 {
		c.MaxInflightBytes = 8 << 20
	}
	if c.MaxInflightRequests == 0 {
		c.MaxInflightRequests = 4
	}
	if c.PlainBytes == 0 {
		c.PlainBytes = 4 << 20
	}
}

func (c *GroupConfig) validate() error {
	switch {
	case c.Group == "":
		return errors.New("transport: GroupConfig.Group is empty")
	case c.Self == "":
		return fmt.Errorf("transport: group %s: GroupConfig.Self is empty", c.Group)
	case c.MaxInflightBytes < 1 || c.PlainBytes < 1:
		return fmt.Errorf("transport: group %s: MaxInflightBytes %d and PlainBytes %d must be positive", c.Group, c.MaxInflightBytes, c.PlainBytes)
	case c.MaxInflightRequests < 1 || c.MaxInflightRequests > 1024:
		return fmt.Errorf("transport: group %s: MaxInflightRequests is %d: want 1 .. 1024", c.Group, c.MaxInflightRequests)
	}
	return nil
}
