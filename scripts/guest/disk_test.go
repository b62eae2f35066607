package guest

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
)

// disk is a LUN as the guest sees it: a multipath map over one path to each data node.
type disk struct {
	l     *lab
	lun   api.LUN
	wwid  string
	dev   string // /dev/mapper/...
	paths map[string]path
}

// path is the disk through one node.
type path struct {
	sd string // "/dev/sda"
	sg string // "/dev/sg0"
}

// startInitiators sets the guest up with the script the product prints for a Linux host with multipath, as it is, and looks at
// what that leads to: one map under the name of the LUN. Only what the guest lacks is put in its place: apt-get (all is there)
// and systemd.
func (l *lab) startInitiators() error {
	const name = "setup"
	ctx, cancel := context.WithTimeout(context.Background(), 2*waitTime)
	defer cancel()
	var lun api.LUN
	for {
		var err error
		if lun, err = l.cluster.api.CreateLUN(ctx, api.LUNSpec{Name: name, SizeBytes: 64 * mib, Open: true}, waitTime); err == nil {
			break
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(pollEvery) // a poll of other processes: there is nothing to wait on
	}
	setup, err := exec.CommandContext(ctx, l.cluster.binary, "target", "client-config", "--for", "linux-multipath", "--api", strings.Join(l.cluster.apiList, ",")).Output()
	if err != nil {
		return fmt.Errorf("sanctuary target client-config: %w: %s", err, stderrOf(err))
	}
	script := fmt.Sprintf(`set -e
echo InitiatorName=%[1]s >/etc/iscsi/initiatorname.iscsi
modprobe -a iscsi_tcp dm_multipath dm_service_time sd_mod sg scsi_dh_alua
cat >/usr/bin/apt-get <<'END'
#!/bin/sh
END
cat >/usr/bin/systemctl <<'END'
#!/bin/sh
case "$*" in
*multipathd*) multipathd && timeout 30 sh -c 'until multipathd show status >/dev/null 2>&1; do sleep 0.1; done' ;;
*iscsid*) iscsid ;;
esac
END
chmod +x /usr/bin/apt-get /usr/bin/systemctl
%[2]s
timeout 60 sh -c 'until multipathd show map sanctuary-%[3]s topology | grep -q ghost; do sleep 0.2; done'
multipath -ll
timeout 60 sh -c 'until multipath -f sanctuary-%[3]s; do sleep 0.2; done'
iscsiadm -m node -T %[4]s --logout
iscsiadm -m node -T %[4]s -o delete
`, initiatorName, setup, name, lun.IQN)
	r, err := l.vm.Do(ctx, script)
	if err != nil {
		return err
	}
	if r.Status != 0 || !strings.Contains(r.Out, "sanctuary-"+name+" ("+"3"+strings.ToLower(lun.NAA)+")") {
		return fmt.Errorf("what client-config says for Linux does not lead to a map (status %d):\n%s\n%s%s", r.Status, setup, r.Out, r.Err)
	}
	return l.cluster.api.DeleteLUN(ctx, name, true)
}

func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(exit.Stderr)
	}
	return ""
}

// attach makes a LUN, finds it from the guest by discovery at one node and logs in to all portals found. The map and the
// sessions are gone when the test ends.
func (l *lab) attach(t *testing.T, name string, bytes int64) *disk {
	t.Helper()
	d := &disk{l: l, lun: l.create(t, api.LUNSpec{Name: name, SizeBytes: bytes, Open: true}), paths: map[string]path{}}
	l.discover(t, alpha, "")
	d.login(t)
	return d
}

// discover asks one node for targets, from an interface (an initiator name of its own) if one is named.
func (l *lab) discover(t *testing.T, node, iface string) string {
	t.Helper()
	if iface != "" {
		iface = "-I " + iface
	}
	return l.vm.sh(t, "iscsiadm -m discovery -t sendtargets %s -p %s", iface, l.cluster.portals[node])
}

// login logs in to all portals that discovery has found for the LUN's own target, and waits for the map.
func (d *disk) login(t *testing.T) {
	t.Helper()
	d.wwid = "3" + strings.ToLower(d.lun.NAA)
	d.dev = "/dev/mapper/" + d.wwid
	t.Cleanup(func() { d.logout(t) })
	d.l.vm.sh(t, "iscsiadm -m node -T %s --login", d.lun.IQN)
	d.l.soon(t, "two paths to "+d.lun.Name, func() error {
		m := d.topology(t)
		if n := len(m.paths()); n != 2 {
			return fmt.Errorf("%d paths:\n%s", n, m.text)
		}
		if d.l.vm.try(t, "test -e %s", d.dev).Status != 0 { // udev's part comes last
			return fmt.Errorf("%s does not exist", d.dev)
		}
		return nil
	})
	d.findPaths(t)
}

// findPaths looks up which disk of the guest is the path to which node.
func (d *disk) findPaths(t *testing.T) {
	t.Helper()
	out := d.l.vm.sh(t, `for s in /sys/class/iscsi_session/session*; do
	[ "$(cat $s/targetname)" = %s ] || continue
	echo $(cat $s/device/connection*/iscsi_connection/connection*/persistent_port) $(ls $s/device/target*/*/block) $(ls $s/device/target*/*/scsi_generic)
done`, d.lun.IQN)
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		f := strings.Fields(line)
		if len(f) != 3 {
			t.Fatalf("a session of %s has no disk, or several:\n%s", d.lun.IQN, out)
		}
		for node := range d.l.cluster.portals {
			if strings.HasSuffix(d.l.cluster.portals[node], ":"+f[0]) {
				d.paths[node] = path{sd: "/dev/" + f[1], sg: "/dev/" + f[2]}
			}
		}
	}
	if len(d.paths) != 2 {
		t.Fatalf("sessions of %s do not lead to both nodes:\n%s", d.lun.IQN, out)
	}
}

// logout takes the disk away from the guest as an administrator would: map first, then sessions.
func (d *disk) logout(t *testing.T) {
	t.Helper()
	// Not t.Context(), which has ended when cleanup runs.
	r, err := d.l.vm.Do(context.Background(), fmt.Sprintf(`
umount %[1]s 2>/dev/null
if [ -e %[1]s ]; then
	multipathd disablequeueing map %[2]s >/dev/null
	timeout 60 sh -c 'until multipath -f %[2]s; do sleep 0.2; done' || exit
fi
timeout 60 iscsiadm -m node -T %[3]s --logout || exit
iscsiadm -m node -T %[3]s -o delete`, d.dev, d.wwid, d.lun.IQN))
	if err != nil || r.Status != 0 {
		t.Errorf("take LUN %s away from the guest: %v %s%s", d.lun.Name, err, r.Out, r.Err)
	}
}

// topology is what multipath says about a map.
type topology struct {
	text   string
	groups []group
}

type group struct {
	prio   int
	status string // active, enabled, disabled
	paths  []pathState
}

type pathState struct {
	sd      string // "/dev/sda"
	dm      string // active, failed
	checker string // ready, ghost, faulty, ...
}

func (m topology) paths() (all []pathState) {
	for _, g := range m.groups {
		all = append(all, g.paths...)
	}
	return all
}

var (
	groupPattern = regexp.MustCompile(`policy='[^']*' prio=(-?\d+) status=(\w+)`)
	pathPattern  = regexp.MustCompile(`\d+:\d+:\d+:\d+\s+(sd[a-z]+)\s+\d+:\d+\s+(\w+)\s+(\w+)\s+(\w+)`)
)

func (d *disk) topology(t *testing.T) topology {
	t.Helper()
	// The daemon's own view: it is the daemon that acts. It has none before it has made the map.
	m := topology{text: d.l.vm.try(t, "multipathd show map %s topology", d.wwid).Out}
	for _, line := range strings.Split(m.text, "\n") {
		if g := groupPattern.FindStringSubmatch(line); g != nil {
			prio, _ := strconv.Atoi(g[1])
			m.groups = append(m.groups, group{prio: prio, status: g[2]})
		}
		if p := pathPattern.FindStringSubmatch(line); p != nil && len(m.groups) > 0 {
			g := &m.groups[len(m.groups)-1]
			g.paths = append(g.paths, pathState{sd: "/dev/" + p[1], dm: p[2], checker: p[3]})
		}
	}
	return m
}

// isActive waits until multipath uses the path to a node, and the other path waits in a group of its own with a lower
// priority: what ALUA says about the two nodes.
func (d *disk) isActive(t *testing.T, node string) {
	t.Helper()
	d.isActiveOn(t, node, func() string { return node })
}

// usesTheOwner is isActive for whichever node owns the LUN at the moment one looks: the kernel itself moves it when it turns to
// the other path (SET TARGET PORT GROUPS).
func (d *disk) usesTheOwner(t *testing.T) {
	t.Helper()
	d.isActiveOn(t, "the owner", func() string { return d.l.lun(t, d.lun.Name).Owner })
}

func (d *disk) isActiveOn(t *testing.T, who string, now func() string) {
	t.Helper()
	d.l.soon(t, fmt.Sprintf("multipath uses %s for %s", who, d.lun.Name), func() error {
		node := now()
		m := d.topology(t)
		if len(m.groups) != 2 || len(m.groups[0].paths) != 1 || len(m.groups[1].paths) != 1 {
			return fmt.Errorf("not two groups of one path each:\n%s", m.text)
		}
		first := slices.IndexFunc(m.groups, func(g group) bool { return g.status == "active" })
		if first < 0 { // device mapper chooses one at the next I/O
			d.l.vm.sh(t, "dd if=%s of=/dev/null bs=4k count=1 iflag=direct status=none", d.dev)
			return fmt.Errorf("no active group:\n%s", m.text)
		}
		used, waits := m.groups[first], m.groups[1-first]
		if used.paths[0] != (pathState{d.paths[node].sd, "active", "ready"}) || used.prio != 50 {
			return fmt.Errorf("another path is used, or with another priority:\n%s", m.text)
		}
		if waits.prio >= used.prio || waits.status != "enabled" || waits.paths[0].dm != "active" {
			return fmt.Errorf("the path to the other node does not wait:\n%s", m.text)
		}
		return nil
	})
}
