package node

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/catalog"
	"sanctuary/replication/transport/loopback"
	"sanctuary/target/initiator"
)

// Each node has two portals, in networks of their own, one of them of IPv6: discovery through one lists those of its network on all nodes, each
// with the tag that the node's own group has there, and the LUN is the same through all of them.
func TestPortalsAreGroupedBySubnet(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("this machine has no IPv6: ", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t)
	for _, name := range []string{"alpha", "beta"} {
		p, err := loopback.Addresses(1)
		if err != nil {
			t.Fatal(err)
		}
		_, port, err := net.SplitHostPort(p[0])
		if err != nil {
			t.Fatal(err)
		}
		cfg := c.cfgs[name]
		cfg.Listen.ISCSI = append(slices.Clone(cfg.Listen.ISCSI), net.JoinHostPort("::1", port))
		cfg.Advertise.ISCSI = nil // what it listens on
		c.cfgs[name] = cfg.Complete()
	}
	c.start("alpha", "beta", "witness")
	cl, ctx := c.client(), t.Context()
	if _, err := cl.CreateLUN(ctx, api.LUNSpec{Name: "vm1", SizeBytes: 16 << 20, Media: "file", Open: true}, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	made := c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy })
	if _, err := cl.SetSettings(ctx, map[string]string{catalog.SettingPortalGroups: "127.0.0.0/8, ::1/128"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alpha", "beta"} { // a node takes the setting over when it starts
		c.stop(name)
		c.start(name)
	}
	cl = c.client()
	c.lun(cl, "vm1", func(l api.LUN) bool { return l.Health == api.HealthHealthy && len(l.Portals) == 4 })
	portals := func(address string) (out []string) {
		t.Helper()
		var found []initiator.Target
		until(t, address+" has heard that both nodes have registered anew", func() (ok bool) {
			var err error
			found, err = initiator.DiscoverAs(ctx, initiator.Config{Address: address, InitiatorName: ourName})
			return err == nil && len(found) == 1 && found[0].Name == made.IQN && len(found[0].Portals) == 2
		})
		for _, p := range found[0].Portals {
			out = append(out, fmt.Sprintf("%s,%d", p.Address, p.GroupTag))
		}
		slices.Sort(out)
		return out
	}
	seen := map[string]bool{}
	for i, family := range []string{"127.0.0.1:", "[::1]:"} {
		var first []string
		for _, name := range []string{"alpha", "beta"} {
			got := portals(c.cfgs[name].Listen.ISCSI[i])
			if len(got) != 2 || !strings.HasPrefix(got[0], family) || !strings.HasPrefix(got[1], family) {
				t.Errorf("through %s: %q", c.cfgs[name].Listen.ISCSI[i], got)
			}
			if first != nil && !slices.Equal(first, got) {
				t.Errorf("the nodes list %q and %q", first, got)
			}
			first = got
		}
		for _, p := range first {
			_, tag, _ := strings.Cut(p, ",")
			if tag == "" || seen[tag] {
				t.Errorf("portal group tag %q in %q is that of another", tag, p)
			}
			seen[tag] = true
		}
	}
	owner := c.lun(cl, "vm1", api.LUN.Served).Owner
	data, got := contents(1, 1), make([]byte, 4096)
	for i := range 2 {
		s := dial(t, initiator.Config{Address: c.cfgs[owner].Listen.ISCSI[i], Target: made.IQN, InitiatorName: ourName})
		ready(t, s)
		if i == 0 {
			if err := s.Write(ctx, 8, 8, data); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := s.Read(ctx, 8, 8, got); err != nil || !slices.Equal(got, data) {
			t.Errorf("through the other portal: %v", err)
		}
	}
}
