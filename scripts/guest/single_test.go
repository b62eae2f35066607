package guest

import (
	"fmt"
	"testing"
	"time"

	"sanctuary/node/api"
)

// TestSinglePathUnderFio: Linux's initiator without multipath knows the portal of one node. The LUN is moved away from there and back, and then
// its owner, the other node, is killed: no I/O error, every block verified.
func TestSinglePathUnderFio(t *testing.T) {
	l := useLab(t)
	const portal = alpha
	h := l.host(t, "single", api.HostSpec{Initiators: []string{initiatorName + "-single"}, SinglePath: true})
	g := h.grant(t, "single", 64*mib)
	t.Cleanup(func() { h.logout(t) })
	l.vm.sh(t, "iscsiadm -m node -T %s -p %s -I %s -o new >/dev/null && iscsiadm -m node -T %[1]s -I %[3]s --login", h.iqn, l.cluster.portals[portal], h.name)
	p := h.path(t, g, portal)
	d := &disk{l: l, lun: g.lun, dev: fmt.Sprintf("/dev/disk/by-path/ip-%s-iscsi-%s-lun-%d", l.cluster.portals[portal], h.iqn, g.number)}
	l.vm.sh(t, `udevadm settle --timeout=30
[ "$(readlink -f %s)" = %s ] && [ -z "$(ls /sys/block/%[3]s/holders)" ]`, d.dev, p.sd, p.sd[len("/dev/"):])

	wait := d.fio(t, 1500)
	d.wroteTo(t, 100)
	for range 2 {
		l.move(t, d.lun.Name, other(l.lun(t, d.lun.Name).Owner))
		d.wroteTo(t, 100)
	}
	if l.lun(t, d.lun.Name).Owner == portal {
		l.move(t, d.lun.Name, other(portal))
	}
	d.wroteTo(t, 100)
	owner, _ := l.killOwner(t, d.lun.Name)
	if owner == portal {
		t.Fatalf("%s owns the LUN, although it was moved away", portal)
	}
	d.wroteTo(t, 100)
	l.restart(t, owner, d.lun.Name)
	stall := wait()
	t.Logf("owner moved and killed under the kernel's initiator with a single path: longest write %v", stall.Round(time.Millisecond))
	if stall > stallLimit {
		t.Errorf("a write took %v, limit %v", stall, stallLimit)
	}
}
