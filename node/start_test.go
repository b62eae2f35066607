package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

// A host that comes as soon as a node listens finds every LUN that has a copy there, in the LUNs' own targets and in its own: some hosts
// give a LUN up for good when they are told that there is none.
func TestNodeListensWhenItsLUNsAreThere(t *testing.T) {
	const luns = 24
	c := newCluster(t)
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	h, err := cl.SetHost(ctx, "ours", api.HostSpec{Initiators: []string{ourName}}, true)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for i := range luns {
		l, err := cl.CreateLUN(ctx, api.LUNSpec{Name: fmt.Sprint("vm", i), SizeBytes: 16 << 20, Media: "file", Hosts: []string{"ours"}}, 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, l.IQN)
	}
	for i := range luns {
		c.lun(cl, fmt.Sprint("vm", i), func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	}
	c.stop("beta")
	c.start("beta")
	portal := c.cfgs["beta"].Listen.ISCSI[0]
	cfg := initiator.Config{Address: portal, Target: h.Target, InitiatorName: ourName}
	var session *initiator.Session
	until(t, "beta listens", func() bool {
		var status *initiator.LoginError
		if session, err = initiator.Dial(ctx, cfg); errors.As(err, &status) {
			t.Fatalf("the host's own target: status %04xh", status.Status)
		}
		return err == nil
	})
	defer session.Close()
	list := make([]byte, 1024)
	r, err := session.Do(ctx, &initiator.Command{CDB: [16]byte{0xA0, 8: 4}, In: list})
	if err = errors.Join(err, r.Err()); err != nil {
		t.Fatal(err)
	}
	if n := binary.BigEndian.Uint32(list) / 8; n != luns {
		t.Errorf("the host's own target has %d of %d LUNs", n, luns)
	}
	for i, iqn := range targets {
		if status := refused(t, initiator.Config{Address: portal, Target: iqn, InitiatorName: ourName}); status != 0 {
			t.Errorf("LUN %d: status %04xh", i, status)
		}
	}
}
