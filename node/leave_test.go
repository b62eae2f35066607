package node

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/replication"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// Whoever stops a node in order does not want its LUNs to wait for an election, nor its initiators for a broken connection.
func TestNodeThatStopsHandsOverAndAsksInitiatorsToGo(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 16 << 20, Media: "ram", Open: true}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	l := c.lun(cl, "vm1", func(l api.LUN) bool {
		return l.Health == api.HealthHealthy && len(l.Portals) == 2 && (l.AppliedIndex > 0 || l.Owner == l.Preferred)
	})
	there := idle(l)
	at := func(node string) *initiator.Session {
		return dial(t, initiator.Config{Address: c.cfgs[node].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	}
	s, other := at(l.Owner), at(there)
	ready(t, s)
	data := bytes.Repeat([]byte{7}, 4096)
	if err := s.Write(ctx, 0, 8, data); err != nil {
		t.Fatal(err)
	}
	leaver := c.runs[l.Owner]
	delete(c.runs, l.Owner)
	leaver.stop()
	// It sends no command and hears of it all the same. When it does, the LUN is where it will look next: at most held there for a moment.
	until(t, "it has been asked to leave", func() bool { return errors.Is(s.Err(), initiator.ErrAskedToLeave) })
	got := make([]byte, 4096)
	var attention *initiator.StatusError
	err := other.Read(ctx, 0, 8, got)
	for errors.As(err, &attention) && attention.Key == scsi.UnitAttention {
		err = other.Read(ctx, 0, 8, got)
	}
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read at %s %v: %v", there, got[:8], err)
	}
	select {
	case err := <-leaver.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not stop")
	}
}

func TestHeirsAreCopiesInSyncThePreferredFirst(t *testing.T) {
	peer := func(id string, inSync bool) replication.PeerStatus {
		return replication.PeerStatus{Member: replication.Member{ID: raft.ServerID(id)}, InSync: inSync}
	}
	l := catalog.LUN{Preferred: "c", Replicas: []catalog.Replica{
		{ID: "a/1", Node: "a"}, {ID: "b/1", Node: "b"}, {ID: "c/2", Node: "c"}, {ID: "d/1", Node: "d"}, {ID: "w/1", Node: "w", Witness: true},
	}}
	peers := []replication.PeerStatus{peer("b/1", true), peer("c/2", true), peer("d/1", false), peer("w/1", true), peer("e/1", true)}
	if got := heirs(l, "a", peers); !slices.Equal(got, []raft.ServerID{"c/2", "b/1"}) {
		t.Errorf("%v", got)
	}
	if got := heirs(l, "c", nil); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
