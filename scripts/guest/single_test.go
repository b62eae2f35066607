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
	if r := l.vm.try(t, "iscsiadm -m node -T %s -p %s -I %s -o new >/dev/null && iscsiadm -m node -T %[1]s -I %[3]s --login; status=$?\niscsiadm -m node -T %[1]s -I %[3]s -o delete; exit $status",
		h.iqn, l.cluster.portals[portal], h.name); r.Status == 0 {
		t.Error("a host with a single path logs in to the target that nobody can be sent on from")
	}
	h.iqn = g.lun.IQN
	t.Cleanup(func() { h.logout(t) })
	l.vm.sh(t, "iscsiadm -m node -T %s -p %s -I %s -o new >/dev/null && iscsiadm -m node -T %[1]s -I %[3]s --login", h.iqn, l.cluster.portals[portal], h.name)
	d := &disk{l: l, lun: g.lun, dev: "/dev/single"}
	// What udev names the disk by is where the initiator is connected, which changes; the disk stays.
	l.soon(t, "the disk appears", func() error {
		r := l.vm.try(t, `udevadm settle --timeout=30
for s in /sys/class/iscsi_session/session*; do
	[ "$(cat $s/targetname)" = %s ] && sd=$(ls $s/device/target*/*:*:*:0/block) && [ -z "$(ls /sys/block/$sd/holders)" ] && ln -sf /dev/$sd %s
done
[ -e %[2]s ]`, h.iqn, d.dev)
		if r.Status != 0 {
			return fmt.Errorf("no disk of %s: %s%s", h.iqn, r.Out, r.Err)
		}
		return nil
	})

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
