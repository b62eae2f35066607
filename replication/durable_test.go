package replication

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/vfs/crashdev"
	"sanctuary/replication/journal"
)

// heldDisk is a journal's folder on a disk that loses what was not synced. Its syncs can be held up, and wait until they are let go.
type heldDisk struct {
	folder  *crashdev.Folder
	waiting atomic.Int64
}

func newHeldDisk() *heldDisk { return &heldDisk{folder: crashdev.NewFolder(crashdev.NewPower(-1))} }

// hold holds up every sync until the function it returns is called.
func (d *heldDisk) hold() (release func()) {
	goOn := make(chan struct{})
	d.folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Sync {
			d.waiting.Add(1)
			<-goOn
		}
		return nil
	})
	return func() {
		d.folder.SetHook(nil)
		close(goOn)
	}
}

// lost returns the disk as it is found after the power failed now: of what was not synced it has any sectors or none.
func (d *heldDisk) lost() *heldDisk {
	return &heldDisk{folder: d.folder.CloneForCrash(0, crashdev.NewPower(-1))}
}

// heldFor is how long something is given to happen that must not: it would take no longer than a round trip.
const heldFor = 500 * time.Millisecond

// Nothing is acknowledged before it is on the owner's disk (rule G) and on that of the copy in sync: while either takes its time writes
// wait, and when it then loses its power nothing that was acknowledged is lost with what it had not synced.
func TestNothingIsAcknowledgedBeforeItIsOnDisk(t *testing.T) {
	for _, whose := range []string{"owner", "copy"} {
		t.Run(whose, func(t *testing.T) {
			t.Parallel()
			timing := patientTiming()
			timing.Gate.NoProgress = 10 * heldFor
			disks := map[string]*heldDisk{"a": newHeldDisk(), "b": newHeldDisk()}
			c := newClusterWith(t, &cluster{timing: timing, folders: map[string]*crashdev.Folder{"a": disks["a"].folder, "b": disks["b"].folder}},
				blockstore.MediaFile, "a", "b", "w")
			owner := c.owner()
			held, other := owner, map[string]string{"a": "b", "b": "a"}[owner]
			if whose == "copy" {
				held, other = other, owner
			}
			c.healthy(owner)
			l := startLoad(t, c.group(owner))
			l.goesOn(20)
			disk := disks[held]
			release := disk.hold()
			released := false
			defer func() {
				if !released {
					release()
				}
			}()
			eventually(t, "a sync waits", func() bool { return disk.waiting.Load() > 0 })
			before := l.acked.Load()
			for from := time.Now(); time.Since(from) < heldFor; time.Sleep(10 * time.Millisecond) {
				if now := l.acked.Load(); now > before {
					t.Fatalf("%d writes were acknowledged that are not on the disk of the %s", now-before, whose)
				}
			}
			c.folders[held] = disk.lost().folder
			acked := l.acked.Load()
			// From here on is what did not happen: nobody may hear of it. The other copy is not looked at again.
			c.stop(other)
			c.stop("w")
			released = true
			release()
			c.stop(held)
			l.end()
			c.start("w", false)
			c.start(held, false)
			l.checkUpTo(c, acked)
		})
	}
}

// The owner of a degraded LUN, alone with the witness, loses its power while its own disk has not answered. The witness must not have more than
// that disk: nobody would be elected any more, though nothing acknowledged is missing.
func TestWitnessHasNothingThatIsNotOnTheOwnersDisk(t *testing.T) {
	t.Parallel()
	disks := map[string]*heldDisk{"a": newHeldDisk(), "b": newHeldDisk()}
	c := newClusterWith(t, &cluster{timing: patientTiming(), folders: map[string]*crashdev.Folder{"a": disks["a"].folder, "b": disks["b"].folder}},
		blockstore.MediaFile, "a", "b", "w")
	owner := c.owner()
	c.healthy(owner)
	g, disk := c.group(owner), disks[owner]
	l := startLoad(t, g)
	c.stop(map[string]string{"a": "b", "b": "a"}[owner])
	eventually(t, "the other copy is out", func() bool { return g.Status().Health == HealthDegraded })
	l.goesOn(20)
	release := disk.hold()
	held := true
	defer func() {
		if held {
			release()
		}
	}()
	eventually(t, "a sync waits", func() bool { return disk.waiting.Load() > 0 })
	has := func() uint64 { last, _ := c.group("w").cfg.Journal.LastIndex(); return last }
	for from := time.Now(); time.Since(from) < heldFor; time.Sleep(10 * time.Millisecond) {
		if last, durable := has(), g.cfg.Journal.Durable(); last > durable {
			t.Errorf("the witness has entry %d, the owner's disk %d", last, durable)
			break
		}
	}
	c.folders[owner] = disk.lost().folder
	acked := l.acked.Load()
	c.stop("w") // from here on is what did not happen
	held = false
	release()
	c.stop(owner)
	l.end()
	c.start("w", false)
	c.start(owner, false)
	l.checkUpTo(c, acked)
}

// A vote is on disk before it is given: whoever forgot it would give it a second time in the same term.
func TestVoteIsOnDiskBeforeItIsGiven(t *testing.T) {
	disk := newHeldDisk()
	voter := startVoter(t, disk)
	first := make(chan bool, 1)
	release := disk.hold()
	go func() { first <- voter.ask(t, "b") }()
	var granted bool
	select {
	case granted = <-first: // so it must not be lost
		disk = disk.lost()
		release()
	case <-time.After(heldFor):
		release()
		granted = <-first
		disk = disk.lost()
	}
	if !granted {
		t.Fatal("the first vote was refused")
	}
	voter.stop(t)
	voter = startVoter(t, disk)
	if voter.ask(t, "c") {
		t.Fatal("after the power failed the replica voted for another one in the same term")
	}
	if !voter.ask(t, "b") {
		t.Fatal("it does not know for whom it had voted")
	}
	voter.stop(t)
}

// voter is Raft over a journal on a disk that may lose its power, alone with whoever asks it for its vote.
type voter struct {
	raft    *raft.Raft
	journal *journal.Journal
	address raft.ServerAddress
	asks    *raft.InmemTransport
}

const votedTerm = 7

func startVoter(t *testing.T, disk *heldDisk) *voter {
	t.Helper()
	j, err := journal.Open(disk.folder, journal.Options{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	l, err := j.Log("replica")
	if err != nil {
		t.Fatal(err)
	}
	log := &raftLog{Log: l, g: &Group{}, inst: &instance{ctx: context.WithoutCancel(t.Context())}}
	address, own := raft.NewInmemTransportWithTimeout("", 30*time.Second)
	asking, asks := raft.NewInmemTransportWithTimeout("", 30*time.Second)
	own.Connect(asking, asks)
	asks.Connect(address, own)
	c := raft.DefaultConfig()
	c.LocalID = "w"
	c.HeartbeatTimeout, c.ElectionTimeout = time.Hour, time.Hour // it does not stand
	c.LogOutput = io.Discard
	if last, _ := l.LastIndex(); last == 0 {
		var servers []raft.Server
		for _, id := range []raft.ServerID{"b", "c", "w"} {
			servers = append(servers, raft.Server{ID: id, Address: raft.ServerAddress(id)})
		}
		if err := raft.BootstrapCluster(c, l, l, l.Snapshots(), own, raft.Configuration{Servers: servers}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := raft.NewRaft(c, &raft.MockFSM{}, log, log, l.Snapshots(), own)
	if err != nil {
		t.Fatal(err)
	}
	log.running.Store(true)
	return &voter{raft: r, journal: j, address: address, asks: asks}
}

func (v *voter) ask(t *testing.T, candidate string) bool {
	req := &raft.RequestVoteRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(candidate), Addr: []byte(candidate)},
		Term:      votedTerm, LastLogIndex: 100, LastLogTerm: votedTerm - 1,
	}
	var resp raft.RequestVoteResponse
	if err := v.asks.RequestVote("w", v.address, req, &resp); err != nil {
		t.Errorf("ask for a vote: %v", err)
	}
	return resp.Granted
}

func (v *voter) stop(t *testing.T) {
	if err := v.raft.Shutdown().Error(); err != nil {
		t.Error(err)
	}
	if err := v.journal.Close(); err != nil {
		t.Error(err)
	}
}
