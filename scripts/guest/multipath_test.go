package guest

import (
	"strings"
	"testing"
)

// TestGuestFindsBothNodesAndUsesTheOwner: discovery at one node leads to both, they are one disk, and ALUA says which path.
func TestGuestFindsBothNodesAndUsesTheOwner(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "paths", 64<<20)
	for _, node := range []string{alpha, beta} {
		found := l.discover(t, node, "")
		for _, n := range []string{alpha, beta} {
			if !strings.Contains(found, l.cluster.portals[n]) || !strings.Contains(found, d.lun.IQN) {
				t.Errorf("discovery at %s does not lead to %s at %s:\n%s", node, n, l.cluster.portals[n], found)
			}
		}
	}
	d.usesTheOwner(t)
	if out := l.vm.sh(t, "blockdev --getsize64 %s", d.dev); strings.TrimSpace(out) != "67108864" {
		t.Errorf("size of the map is %s, want 67108864", out)
	}
}

// TestMultipathFollowsTheOwner: a planned move shows in multipath without an error, to the other node and back.
func TestMultipathFollowsTheOwner(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "follow", 64<<20)
	for range 2 {
		to := other(l.lun(t, d.lun.Name).Owner)
		l.move(t, d.lun.Name, to)
		d.isActive(t, to)
		l.vm.sh(t, "dd if=/dev/urandom of=%s bs=64k count=16 oflag=direct status=none", d.dev)
	}
}
