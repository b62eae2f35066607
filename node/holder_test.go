package node

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// A RESERVE through another node than the owner holds as long as its session does, and no longer, also if nobody could release it when the
// session ended: then the LUN had no owner, and the next one asks the node whether the session is there.
func TestReserveEndsWithItsSessionOnAnotherNode(t *testing.T) {
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	l := c.create(cl, "vm1", "file")
	through := func(node string) *initiator.Session {
		return dial(t, initiator.Config{Address: c.cfgs[node].Listen.ISCSI[0], Target: l.IQN, InitiatorName: ourName})
	}
	data := bytes.Repeat([]byte{9}, 4096)
	conflicts := func(s *initiator.Session) bool {
		var code *initiator.StatusError
		return errors.As(s.Write(ctx, 0, 8, data), &code) && code.Status == scsi.StatusReservationConflict
	}
	home, far := l.Owner, idle(l)
	near, holder := through(home), through(far)
	ready(t, near)
	until(t, "it is reserved", func() bool {
		r, err := holder.Do(ctx, &initiator.Command{CDB: [16]byte{0x16}})
		return err == nil && r.Err() == nil
	})
	for range 3 {
		if !conflicts(near) {
			t.Fatal("written against a RESERVE whose session is there")
		}
		time.Sleep(600 * time.Millisecond) // it is asked for again
	}
	c.stop("witness")
	c.stop(home)
	c.lun(c.clientOf(far), "vm1", func(l api.LUN) bool { return l.Owner == "" })
	c.stop(far) // whose session ends without an owner that could be told
	c.start("alpha", "beta", "witness")
	cl = c.client()
	c.healthy(cl, "vm1")
	if r, err := cl.Reservations(ctx, "vm1"); err != nil || r.Reserved == nil {
		t.Fatalf("%+v, %v: it was released after all, and this test shows nothing", r, err)
	}
	if _, err := cl.MoveLUN(ctx, "vm1", home, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Owner == home })
	near = through(home)
	ready(t, near)
	if err := near.Write(ctx, 0, 8, data); err != nil {
		t.Fatal(err)
	}
}
