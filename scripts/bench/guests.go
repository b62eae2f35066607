package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/client"
	"sanctuary/scripts/guest/machine"
)

// The machines of the table beside DRBD: two with disks, and one for the witness, on one switch. They are emulated.
const (
	guestDiskBytes = 512 << 20
	drbdDisk       = "drbd"
	sanDisk        = "sanctuary"
	guestLUN       = "bench"
)

var guestNames = []string{"a", "b", "witness"}

func guestAddress(i int) string { return fmt.Sprintf("10.77.0.%d", 11+i) }

// guests is three running machines.
type guests struct {
	dir      string // disks and logs
	machines map[string]*machine.Machine
	iscsi    bool // the first one's initiator runs
	api      *client.Client
}

// startGuests boots the machines. The process must be in a network namespace of its own.
func startGuests(ctx context.Context, o options, image string) (g *guests, err error) {
	dir, err := os.MkdirTemp(o.cache, "bench-guests-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	g = &guests{dir: dir, machines: map[string]*machine.Machine{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.stop())
			g = nil
		}
	}()
	program, err := filepath.Abs(o.binary)
	if err != nil {
		return g, err
	}
	if _, err := os.Stat(program); err != nil {
		return g, fmt.Errorf("%w: make build", err)
	}
	network, err := machine.NewSwitch("10.77.0.1/24")
	if err != nil {
		return g, err
	}
	for i, name := range guestNames {
		tap, err := network.Port()
		if err != nil {
			return g, err
		}
		c := machine.Config{Name: name, Image: image, Logs: dir, CPUs: 1, Tap: tap, Address: guestAddress(i) + "/24", Program: program}
		for _, d := range []string{drbdDisk, sanDisk} {
			if name == "witness" && d == drbdDisk {
				continue
			}
			file := filepath.Join(dir, name+"."+d)
			if err := allocate(file, guestDiskBytes); err != nil {
				return g, err
			}
			c.Disks = append(c.Disks, machine.Disk{Name: d, Drive: "format=raw,cache=none,file=" + file})
		}
		m, err := machine.Start(ctx, c)
		if err != nil {
			return g, err
		}
		g.machines[name] = m
	}
	for _, name := range guestNames {
		if _, err := g.machines[name].Sh(ctx, "hostname "+name); err != nil {
			return g, err
		}
	}
	return g, nil
}

// allocate makes a file whose blocks are all there: a sparse one costs the host's file system something at every first write.
func allocate(file string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for done := int64(0); done < size && err == nil; done += int64(len(zeros)) {
		_, err = f.Write(zeros)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func (g *guests) stop() error {
	for _, m := range g.machines {
		m.Kill()
	}
	if g.api != nil {
		g.api.Close()
	}
	return os.RemoveAll(g.dir)
}

// all runs a script on some machines, one after the other.
func (g *guests) all(ctx context.Context, script string, names ...string) error {
	for _, n := range names {
		if _, err := g.machines[n].Sh(ctx, script); err != nil {
			return err
		}
	}
	return nil
}

// words are what the machines' kernels and nodes have said last, for an error.
func (g *guests) words(ctx context.Context) string {
	var out strings.Builder
	for _, n := range guestNames {
		r, err := g.machines[n].Do(context.WithoutCancel(ctx), "dmesg | tail -n 20; test ! -e /run/node.log || tail -n 40 /run/node.log")
		fmt.Fprintf(&out, "%s: %v\n%s", n, err, r.Out)
	}
	return out.String()
}

// drbd brings a mirrored device up on a and b, a being primary, and returns what takes it down.
func (g *guests) drbd(ctx context.Context) (func(context.Context) error, error) {
	resource := `resource r0 {
	net { protocol C; }
	device /dev/drbd0;
	disk /dev/disk/by-id/virtio-` + drbdDisk + `;
	meta-disk internal;
	on a { address ` + guestAddress(0) + `:7789; }
	on b { address ` + guestAddress(1) + `:7789; }
}
`
	setUp := fmt.Sprintf(`mkdir -p /etc/drbd.d /var/lib/drbd /run/drbd /var/lock
printf 'global { usage-count no; }\ninclude "drbd.d/*.res";\n' >/etc/drbd.conf
cat >/etc/drbd.d/r0.res <<'END'
%sEND
modprobe drbd
yes yes | drbdadm create-md --force r0
drbdadm up r0`, resource)
	if err := g.all(ctx, setUp, "a", "b"); err != nil {
		return nil, err
	}
	_, err := g.machines["a"].Sh(ctx, `timeout 60 sh -c 'until drbdadm cstate r0 | grep -q Connected; do sleep 0.2; done'
drbdadm -- --clear-bitmap new-current-uuid r0
timeout 60 sh -c 'until drbdadm dstate r0 | grep -q UpToDate/UpToDate; do sleep 0.2; done'
drbdadm primary r0
drbdadm dstate r0 && modinfo -F version drbd`)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return g.all(ctx, "drbdadm down r0", "a", "b") }, nil
}

const lioTarget = "iqn.2026-11.local.check:drbd"

// export serves a device of a with the kernel's target, and returns what ends that.
func (g *guests) export(ctx context.Context, device string) (func(context.Context) error, error) {
	_, err := g.machines["a"].Sh(ctx, fmt.Sprintf(`modprobe iscsi_target_mod
modprobe target_core_iblock
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
cd /sys/kernel/config/target
mkdir -p core/iblock_0/d iscsi/%[1]s/tpgt_1
echo udev_path=%[2]s >core/iblock_0/d/control
echo 1 >core/iblock_0/d/enable
cd iscsi/%[1]s/tpgt_1
mkdir np/%[3]s:3270 lun/lun_0
ln -s ../../../../../core/iblock_0/d lun/lun_0/d || ln -s /sys/kernel/config/target/core/iblock_0/d lun/lun_0/d
echo 0 >attrib/authentication
echo 1 >attrib/generate_node_acls
echo 0 >attrib/demo_mode_write_protect
echo 1 >enable`, lioTarget, device, guestAddress(0)))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		_, err := g.machines["a"].Sh(ctx, fmt.Sprintf(`cd /sys/kernel/config/target
echo 0 >iscsi/%[1]s/tpgt_1/enable
rm iscsi/%[1]s/tpgt_1/lun/lun_0/d
rmdir iscsi/%[1]s/tpgt_1/lun/lun_0 iscsi/%[1]s/tpgt_1/np/* iscsi/%[1]s/tpgt_1 iscsi/%[1]s
rmdir core/iblock_0/d core/iblock_0`, lioTarget))
		return err
	}, nil
}

// login makes a target a disk of a, through one portal, and returns the disk and what ends the session.
func (g *guests) login(ctx context.Context, target, portal string, lun uint32) (string, func(context.Context) error, error) {
	a := g.machines["a"]
	if !g.iscsi {
		g.iscsi = true
		if _, err := a.Sh(ctx, "echo InitiatorName=iqn.2026-11.local.check:a >/etc/iscsi/initiatorname.iscsi\nmodprobe iscsi_tcp\nmodprobe sd_mod\niscsid"); err != nil {
			return "", nil, err
		}
	}
	out, err := a.Sh(ctx, fmt.Sprintf(`iscsiadm -m node -T %[1]s -p %[2]s -o new >/dev/null
iscsiadm -m node -T %[1]s -p %[2]s --login >/dev/null
udevadm settle --timeout=30
timeout 30 sh -c 'until test -e /dev/disk/by-path/ip-%[2]s-iscsi-%[1]s-lun-%[3]d; do sleep 0.2; done'
readlink -f /dev/disk/by-path/ip-%[2]s-iscsi-%[1]s-lun-%[3]d`, target, portal, lun))
	if err != nil {
		return "", nil, err
	}
	return strings.TrimSpace(out), func(ctx context.Context) error {
		_, err := a.Sh(ctx, fmt.Sprintf("timeout 60 iscsiadm -m node -T %[1]s --logout >/dev/null\niscsiadm -m node -T %[1]s -o delete", target))
		return err
	}, nil
}

func nodeAddress(i, port int) string { return net.JoinHostPort(guestAddress(i), strconv.Itoa(port)) }

// nodeConfig is the configuration file of the node on one of the machines.
func nodeConfig(i int) string {
	var b strings.Builder
	kind := func(name string) string {
		if name == "witness" {
			return "witness"
		}
		return "data"
	}
	fmt.Fprintf(&b, "cluster = 'bench'\nnode = '%s'\nkind = '%s'\ndata_dir = '/data/node'\n\n[listen]\npeer = '%s'\ngossip = '%s'\napi = '%s'\n",
		guestNames[i], kind(guestNames[i]), nodeAddress(i, 7440), nodeAddress(i, 7441), nodeAddress(i, 7442))
	if kind(guestNames[i]) == "data" {
		fmt.Fprintf(&b, "iscsi = ['%s']\n", nodeAddress(i, 3260))
	}
	// On machines as slow as these the LUN would move with the defaults; docs/BENCHMARKS.md says so.
	b.WriteString("\n[timing]\nheartbeat = '4s'\nelection = '4s'\nout_of_sync = '4s'\nlease = '2s'\n")
	for m, name := range guestNames {
		fmt.Fprintf(&b, "\n[[members]]\nname = '%s'\nkind = '%s'\npeer = '%s'\ngossip = '%s'\n", name, kind(name), nodeAddress(m, 7440), nodeAddress(m, 7441))
	}
	return b.String()
}

// sanctuary starts the nodes, one on each machine, with a LUN that a owns, and returns it and what stops them.
func (g *guests) sanctuary(ctx context.Context, bytes int64) (l api.LUN, stop func(context.Context) error, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var addresses []string
	for i, n := range guestNames {
		addresses = append(addresses, nodeAddress(i, 7442))
		command := "run"
		if n == "witness" {
			command = "witness"
		}
		err := g.all(ctx, fmt.Sprintf(`mkfs.ext4 -q -F /dev/disk/by-id/virtio-%[1]s
mkdir -p /data
mount /dev/disk/by-id/virtio-%[1]s /data
cat >/run/node.toml <<'END'
%[2]sEND
%[3]s %[4]s --config /run/node.toml >/run/node.log 2>&1 &
echo $! >/run/node.pid`, sanDisk, nodeConfig(i), machine.ProgramPath, command), n)
		if err != nil {
			return l, nil, err
		}
	}
	if g.api, err = client.New(client.Config{Addresses: addresses, Timeout: 5 * time.Second, RetryFor: -1}); err != nil {
		return l, nil, err
	}
	stop = func(ctx context.Context) error {
		return g.all(ctx, "kill $(cat /run/node.pid)\ntimeout 60 sh -c 'while kill -0 $(cat /run/node.pid) 2>/dev/null; do sleep 0.2; done'\numount /data", guestNames...)
	}
	asked := false
	for {
		var err error
		if !asked {
			_, err = g.api.CreateLUN(ctx, api.LUNSpec{Name: guestLUN, SizeBytes: bytes, Media: "file", BlockBytes: 512, Nodes: []string{"a", "b"}, Preferred: "a", Open: true, SinglePath: true}, 0)
			asked = err == nil
		}
		if asked {
			if l, err = g.api.LUN(ctx, guestLUN); err == nil && l.Health == api.HealthHealthy && l.View.Source == api.SourceOwner {
				if l.Owner == "a" {
					return l, stop, nil
				}
				_, err = g.api.MoveLUN(ctx, guestLUN, "a", time.Second)
			}
		}
		select {
		case <-ctx.Done():
			return l, nil, fmt.Errorf("the nodes in the guests do not serve: %w\n%s", errors.Join(ctx.Err(), err), g.words(ctx))
		case <-time.After(200 * time.Millisecond): // a poll of other machines: there is nothing to wait on
		}
	}
}

// alone runs this program again for one table, in a network namespace of its own.
func alone(ctx context.Context, image string, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), insideVariable+"="+image)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd.Run()
}
