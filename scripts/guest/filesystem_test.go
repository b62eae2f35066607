package guest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
)

const mib = 1 << 20

// stallLimit is the longest an I/O may wait for a new owner, on a machine that emulates a guest beside everything else.
const stallLimit = 20 * time.Second

// TestGuestKeepsFilesOverFailover: a tree of files on ext4 and on xfs, the owner killed while it is copied; every file is what it
// was, before and after the file system has been mounted again, and fsck has nothing to say.
func TestGuestKeepsFilesOverFailover(t *testing.T) {
	l := useLab(t)
	for _, fs := range []struct{ name, make, check string }{
		{"ext4", "mkfs.ext4 -q -F", "fsck.ext4 -f -n"},
		{"xfs", "mkfs.xfs -q -f", "xfs_repair -n"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			d := l.attach(t, "files-"+fs.name, 400*mib)
			l.vm.sh(t, `%s %s
mkdir -p /mnt
mount -t %s %[2]s /mnt
cd /usr/lib/python3.11 && find . -maxdepth 1 -type f -size -100k | sort >/tmp/names && xargs md5sum </tmp/names >/tmp/sums
[ $(wc -l </tmp/names) -gt 100 ]`, fs.make, d.dev, fs.name)
			copied := l.vm.background(t, `cd /usr/lib/python3.11
for turn in 1 2 3; do
	mkdir /mnt/$turn
	tar -cf - -T /tmp/names | tar -xf - -C /mnt/$turn
	sync -f /mnt
	echo $turn >/tmp/turn
done`)
			l.soon(t, "the first files are on the disk", func() error {
				if r := l.vm.try(t, "test -s /tmp/turn"); r.Status != 0 {
					return fmt.Errorf("nothing copied yet")
				}
				return nil
			})
			owner, _ := l.killOwner(t, d.lun.Name)
			copied()
			check := "for turn in 1 2 3; do cd /mnt/$turn && md5sum --quiet -c /tmp/sums; done; rm -f /tmp/turn"
			l.vm.sh(t, "%s", "echo 3 >/proc/sys/vm/drop_caches\n"+check)
			l.restart(t, owner, d.lun.Name)
			l.vm.sh(t, "umount /mnt\n%s %s\nmount -t %s %s /mnt\n%s\ncd /\numount /mnt", fs.check, d.dev, fs.name, d.dev, check)
		})
	}
}

// fioJob is what is read of fio's report, times in nanoseconds.
type fioJob struct {
	Error int         `json:"error"`
	Read  fioTransfer `json:"read"`
	Write fioTransfer `json:"write"`
}

type fioTransfer struct {
	Total   int64 `json:"total_ios"`
	Latency struct {
		Max float64 `json:"max"`
	} `json:"clat_ns"`
}

// fio starts a job of random writes with a checksum in every block, which are all read back at its end. wait returns the longest
// time a write took.
func (d *disk) fio(t *testing.T, writes int) (wait func() time.Duration) {
	t.Helper()
	const writesPerSecond = 100
	done := d.l.vm.background(t, `fio --name=verify --filename=%s --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --size=%dk \
--rate_iops=%d --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=json`, d.dev, writes*4, writesPerSecond)
	return func() time.Duration {
		t.Helper()
		out := done()
		if i := strings.Index(out, "{"); i > 0 { // what fio has to say before its report
			out = out[i:]
		}
		var report struct {
			Jobs []fioJob `json:"jobs"`
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Jobs) != 1 {
			t.Fatalf("fio's report: %v\n%s", err, out)
		}
		job := report.Jobs[0]
		if job.Error != 0 || job.Write.Total != int64(writes) || job.Read.Total != int64(writes) {
			t.Fatalf("fio: error %d, %d writes, %d read back; want %d", job.Error, job.Write.Total, job.Read.Total, writes)
		}
		return time.Duration(job.Write.Latency.Max)
	}
}

// wroteTo waits until n more writes have gone to the disk.
func (d *disk) wroteTo(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		// Fifth field: writes completed (Documentation/admin-guide/iostats.rst).
		f := strings.Fields(d.l.vm.sh(t, "cat /sys/block/$(basename $(readlink %s))/stat", d.dev))
		if len(f) < 5 {
			t.Fatalf("statistics of %s: %v", d.dev, f)
		}
		n, err := strconv.Atoi(f[4])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	until := count() + n
	d.l.soon(t, "writes go on", func() error {
		if have := count(); have < until {
			return fmt.Errorf("%d of %d writes", have, until)
		}
		return nil
	})
}

// TestOwnerKilledUnderFio: no I/O error, every block verified, and the time the longest write took.
func TestOwnerKilledUnderFio(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "killed", 64*mib)
	wait := d.fio(t, 2000) // 20 s: more than all of the following takes, also on a busy machine
	d.wroteTo(t, 100)
	owner, _ := l.killOwner(t, d.lun.Name)
	d.wroteTo(t, 100) // by the other node now
	l.restart(t, owner, d.lun.Name)
	d.wroteTo(t, 100)
	stall := wait()
	t.Logf("owner killed under the kernel's initiator and dm-multipath: longest write %v", stall.Round(time.Millisecond))
	if stall > stallLimit {
		t.Errorf("a write took %v, limit %v", stall, stallLimit)
	}
	d.usesTheOwner(t)
}

// TestOwnerMovedUnderFio: a planned move, there and back, is no more than a pause.
func TestOwnerMovedUnderFio(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "moved", 64*mib)
	wait := d.fio(t, 1000)
	d.wroteTo(t, 100)
	for range 2 {
		l.move(t, d.lun.Name, other(l.lun(t, d.lun.Name).Owner))
		d.wroteTo(t, 100)
	}
	stall := wait()
	t.Logf("owner moved under the kernel's initiator and dm-multipath: longest write %v", stall.Round(time.Millisecond))
	if stall > stallLimit {
		t.Errorf("a write took %v, limit %v", stall, stallLimit)
	}
}

// poolBytes is what the pool of a node's files occupies on its disk.
func (l *lab) poolBytes(t *testing.T, node string) int64 {
	t.Helper()
	return diskUsage(t, l.cluster.dir+"/"+node+"/pool")
}

// TestDiscardFreesSpace: blkdiscard and fstrim in the guest give the space back on both nodes, and the LUN says so.
func TestDiscardFreesSpace(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "discard", 256*mib)
	empty := map[string]int64{alpha: l.poolBytes(t, alpha), beta: l.poolBytes(t, beta)}
	grown := func(atLeast, below int64) {
		t.Helper()
		for node := range empty {
			l.soon(t, "space of "+node, func() error {
				if n := l.poolBytes(t, node) - empty[node]; n < atLeast || n > below {
					return fmt.Errorf("%d MiB more than with an empty LUN, want %d to %d", n/mib, atLeast/mib, below/mib)
				}
				return nil
			})
		}
	}
	l.vm.sh(t, `mkfs.ext4 -q -F -E nodiscard %s
mount %[1]s /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count=100 status=none
sync -f /mnt`, d.dev)
	grown(100*mib, 160*mib)
	l.vm.sh(t, "rm /mnt/file && sync -f /mnt && fstrim /mnt && umount /mnt && fsck.ext4 -f -n %s", d.dev)
	grown(0, 40*mib)
	l.vm.sh(t, "blkdiscard %s", d.dev)
	grown(0, 8*mib)
	if out := l.vm.sh(t, "sg_get_lba_status --lba=0 %s", d.dev); !strings.Contains(out, "blocks:     524288  deallocated") {
		t.Errorf("after blkdiscard of all:\n%s", out)
	}
	l.vm.sh(t, "cmp -n 67108864 %s /dev/zero", d.dev) // LBPRZ: what was discarded reads as zeros
}

// TestGuestSeesTheNewSize: a LUN that grows under a mounted file system, which grows with it.
func TestGuestSeesTheNewSize(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "grow", 128*mib)
	l.vm.sh(t, "mkfs.ext4 -q -F %s && mount %[1]s /mnt && cp /usr/sbin/multipathd /mnt/before && sync -f /mnt", d.dev)
	size := int64(256 * mib)
	if _, err := l.cluster.api.ChangeLUN(t.Context(), d.lun.Name, api.LUNChange{SizeBytes: &size}); err != nil {
		t.Fatal(err)
	}
	for node, p := range d.paths {
		l.soon(t, "new size through "+node, func() error {
			out := l.vm.sh(t, "echo 1 >/sys/block/%s/device/rescan; blockdev --getsize64 %s", strings.TrimPrefix(p.sd, "/dev/"), p.sd)
			if strings.TrimSpace(out) != strconv.FormatInt(size, 10) {
				return fmt.Errorf("%s has %s bytes", p.sd, strings.TrimSpace(out))
			}
			return nil
		})
	}
	l.vm.sh(t, `multipathd resize map %[1]s
[ "$(blockdev --getsize64 %[2]s)" = %[3]d ]
resize2fs %[2]s
dd if=/dev/zero of=/mnt/after bs=1M count=160 status=none
cmp /usr/sbin/multipathd /mnt/before
umount /mnt
fsck.ext4 -f -n %[2]s`, d.wwid, d.dev, size)
}
