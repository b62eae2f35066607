package guest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/scripts/guest/machine"
)

// booting is what a guest may take to boot from a LUN.
const booting = 90 * time.Second

// TestQEMUBootsFromTheLUNWhileTheOwnerIsKilled: firmware, boot loader, kernel and root file system of a guest come from a LUN
// through QEMU's own initiator, which knows one portal: that of a node that does not own the LUN and sends it to the owner. The
// owner is killed while the guest boots, and again while it writes; the guest hears of no error and keeps what was acknowledged.
func TestQEMUBootsFromTheLUNWhileTheOwnerIsKilled(t *testing.T) {
	l := useLab(t)
	image := l.bootImage(t)
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	// QEMU's initiator is a host with a single path; this name is also how it is told from the kernel's.
	name := initiatorName + "-qemu"
	if _, err := l.cluster.api.SetHost(t.Context(), "qemu", api.HostSpec{Initiators: []string{name}, SinglePath: true}, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.cluster.api.DeleteHost(context.Background(), "qemu", true); err != nil {
			t.Errorf("delete host qemu: %v", err)
		}
	})
	lun := l.create(t, api.LUNSpec{Name: "boot", SizeBytes: info.Size(), Hosts: []string{"qemu"}})
	portal := other(lun.Owner)
	drive := fmt.Sprintf("driver=iscsi,transport=tcp,portal=%s,target=%s,lun=0,initiator-name=%s", l.cluster.portals[portal], lun.IQN, name)
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-n", "-f", "raw", "--target-image-opts", image, drive).CombinedOutput(); err != nil {
		t.Fatalf("write the image to the LUN: %v: %s", err, out)
	}

	// The portal stays, the owner goes: so after each kill it is moved away from the portal's node again.
	v := l.bootFrom(t, drive)
	l.soon(t, "the kernel starts", v.says("guest: looking for the root file system"))
	first, _ := l.killOwner(t, lun.Name)
	if first == portal {
		t.Fatalf("%s owns the LUN, although nobody moved it there", portal)
	}
	ctx, cancel := context.WithTimeout(t.Context(), booting)
	defer cancel()
	l.until(ctx, t, "the guest boots on without its first owner", v.says("guest: ready"))
	l.restart(t, first, lun.Name)
	l.soon(t, "the agent answers", func() error {
		_, err := v.Do(t.Context(), "true")
		return err
	})
	v.sh(t, "mount -o remount,rw / && [ \"$(findmnt -n -o SOURCE /)\" = /dev/vda2 ]")

	l.move(t, lun.Name, first)
	v.sh(t, "%s", writer)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the guest:\n%s", machine.Tail(v.Console))
		}
	})
	l.soon(t, "writes are acknowledged", v.acknowledged(t, 20))
	before, _ := v.last(t)
	l.killOwner(t, lun.Name)
	l.soon(t, "writes go on without the second owner", v.acknowledged(t, before+30))
	l.restart(t, first, lun.Name)
	v.sh(t, "touch /stop; while [ -e /stop ]; do sleep 0.1; done")
	n, longest := v.last(t)
	t.Logf("owner killed under QEMU's initiator: %d files acknowledged, longest pause between two %v", n, longest)
	v.sh(t, `sync; echo 3 >/proc/sys/vm/drop_caches
i=1
while [ $i -le %d ]; do
	[ "$(cat /kept/$i)" = "content of file $i" ] || { echo "file $i: $(cat /kept/$i)"; exit 1; }
	i=$((i + 1))
done`, n)
	for _, line := range strings.Split(v.sh(t, "dmesg --raw"), "\n") {
		if complaint(line) || strings.Contains(line, "I/O error") {
			t.Errorf("the kernel of the guest says: %s", line)
		}
	}
	v.sh(t, "mount -o remount,ro /")
	v.Kill()
	// What is on the LUN is a sound file system with those files: through the kernel of the other guest it would be mounted;
	// the tools of this machine read it as it is.
	after := filepath.Join(l.dir, "after.img")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "--image-opts", "-O", "raw", drive, after).CombinedOutput(); err != nil {
		t.Fatalf("read the LUN: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-f", "-n", after+"?offset="+strconv.Itoa(rootOffset)).CombinedOutput(); err != nil {
		t.Errorf("the root file system on the LUN: %v: %s", err, out)
	}
}

// rootOffset is where scripts/guest/build puts the root file system on the disk it makes.
const rootOffset = (1 + 48) << 20

// writer runs in the background: one file after the other, each on the disk before it is called written, on the console, which
// is out of the guest's hands.
const writer = `mkdir -p /kept
cat >/writer <<'END'
#!/bin/sh
i=0
until [ -e /stop ]; do
	i=$((i + 1))
	echo "content of file $i" >/kept/$i || echo "wrote: error" >/dev/console
	sync /kept/$i /kept && echo "wrote: $i at $(cut -d ' ' -f 1 /proc/uptime)" >/dev/console || echo "wrote: error" >/dev/console
done
rm /stop
END
setsid sh /writer >/dev/null 2>&1 </dev/null &`

// bootImage is a copy of the disk scripts/guest/build makes, whose boot loader tells the kernel about this machine.
func (l *lab) bootImage(t *testing.T) string {
	t.Helper()
	image, settings := filepath.Join(l.dir, "boot.img"), filepath.Join(l.dir, "syslinux.cfg")
	text := "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\nLINUX /vmlinuz\nINITRD /initrd\nAPPEND " + machine.KernelArguments() + "\n"
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"cp", "--sparse=always", filepath.Join(l.image, "boot.img"), image},
		{"mcopy", "-o", "-i", image + "@@1M", settings, "::/syslinux.cfg"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	return image
}

// bootFrom starts a PC that boots from a disk through QEMU's own block driver. Errors go to the guest, as QEMU's default is, and
// Proxmox's: werror=report would be seen there, and werror=stop would hide a lost write behind a pause.
func (l *lab) bootFrom(t *testing.T, drive string) *vm {
	t.Helper()
	v := &vm{&machine.Machine{Console: filepath.Join(l.dir, "boot.console"), Agent: net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000)))}}
	cmd := exec.Command("nice", "-n", "10", "qemu-system-x86_64",
		"-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "512",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "file:"+v.Console,
		"-drive", "id=disk,if=none,format=raw,cache=none,werror=report,rerror=report,"+"file."+strings.ReplaceAll(drive, ",", ",file."),
		"-device", "virtio-blk-pci,drive=disk,bootindex=0",
		"-netdev", "user,id=net,hostfwd=tcp:"+v.Agent+"-10.0.2.15:1024", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci")
	var err error
	if v.Process, err = machine.Run("guest boot", filepath.Join(l.dir, "boot.qemu.log"), cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Kill)
	return v
}

// says looks for a text on the console.
func (v *vm) says(text string) func() error {
	return func() error {
		if err := v.Ended(); err != nil {
			return err
		}
		if console, err := os.ReadFile(v.Console); err != nil || !strings.Contains(string(console), text) {
			return fmt.Errorf("the console does not say %q:\n%s", text, machine.Tail(v.Console))
		}
		return nil
	}
}

// acknowledgement is a line of the writer: a file on the disk, and when the guest said so, in seconds since it started.
var acknowledgement = regexp.MustCompile(`(?m)^wrote: (\d+) at ([0-9.]+)\r$`)

// last is the number of the last file that was called written, and the longest the guest waited between two.
func (v *vm) last(t *testing.T) (n int, longest time.Duration) {
	t.Helper()
	console, err := os.ReadFile(v.Console)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(console, []byte("wrote: error")) {
		t.Fatalf("a write failed in the guest:\n%s", machine.Tail(v.Console))
	}
	before := 0.0
	for _, m := range acknowledgement.FindAllSubmatch(console, -1) {
		i, err := strconv.Atoi(string(m[1]))
		at, err2 := strconv.ParseFloat(string(m[2]), 64)
		if err != nil || err2 != nil || i != n+1 {
			t.Fatalf("the console is garbled behind file %d: %q", n, m[0])
		}
		if n > 0 {
			longest = max(longest, time.Duration((at-before)*float64(time.Second)))
		}
		n, before = i, at
	}
	return n, longest
}

// acknowledged waits for n files in all.
func (v *vm) acknowledged(t *testing.T, n int) func() error {
	return func() error {
		if err := v.Ended(); err != nil {
			return err
		}
		if have, _ := v.last(t); have < n {
			return fmt.Errorf("%d of %d files acknowledged", have, n)
		}
		return nil
	}
}
