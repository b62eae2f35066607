package guest

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"sanctuary/node/api"
)

// Exit statuses of sg3-utils (sg3_utils(8)).
const (
	sgNotReady      = 2
	sgUnitAttention = 6
	sgMiscompare    = 14
	sgConflict      = 24
)

// has reports every pattern that the output of a tool lacks.
func has(t *testing.T, what, out string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(out) {
			t.Errorf("%s does not say %q:\n%s", what, p, out)
		}
	}
}

// number returns the hexadecimal number behind a pattern with one group.
func number(t *testing.T, out, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no %q in\n%s", pattern, out)
	}
	return m[1]
}

// told runs a script with commands for a disk again when a path has something to tell first: a unit attention, once each.
func (l *lab) told(t *testing.T, format string, args ...any) (out string) {
	t.Helper()
	l.soon(t, "no more unit attentions", func() error {
		r := l.vm.try(t, format, args...)
		if r.Status == sgUnitAttention {
			return fmt.Errorf("status %d: %s%s", r.Status, r.Out, r.Err)
		}
		if r.Status != 0 {
			t.Fatalf("status %d: %s\n%s%s", r.Status, fmt.Sprintf(format, args...), r.Out, r.Err)
		}
		out = r.Out
		return nil
	})
	return out
}

// onOwner runs a script with the path to the owner in place of SG. On a busy machine a LUN may change hands meanwhile, and then a
// path answers that it is not ready, having done nothing: the other one is tried.
func (d *disk) onOwner(t *testing.T, format string, args ...any) (r result) {
	t.Helper()
	d.l.soon(t, "the owner answers", func() error {
		r = d.l.vm.try(t, "SG=%s\n%s", d.paths[d.l.lun(t, d.lun.Name).Owner].sg, fmt.Sprintf(format, args...))
		if r.Status == sgNotReady || r.Status == sgUnitAttention {
			return fmt.Errorf("status %d: %s%s", r.Status, r.Out, r.Err)
		}
		return nil
	})
	return r
}

// good is onOwner for a script that must succeed.
func (d *disk) good(t *testing.T, format string, args ...any) string {
	t.Helper()
	r := d.onOwner(t, format, args...)
	if r.Status != 0 {
		t.Fatalf("in the guest, status %d: %s\n%s%s", r.Status, fmt.Sprintf(format, args...), r.Out, r.Err)
	}
	return r.Out
}

// TestSgInquiryIsTheSameDiskThroughEveryPath: standard data and every page of vital product data, through both nodes and
// through the map.
func TestSgInquiryIsTheSameDiskThroughEveryPath(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "inquiry", 64*mib)
	ports := map[string]bool{}
	for _, dev := range []string{d.paths[alpha].sg, d.paths[beta].sg, d.dev} {
		has(t, "sg_inq "+dev, l.vm.sh(t, "sg_inq %s; sg_inq -d %[1]s", dev),
			`Vendor identification: SANCTRY`, `Product identification: Sanctuary LUN`, `TPGS=3`, `CmdQue=1`, `3PC=1`, `PDT=0`,
			`SPC-4`, `SBC-3`, `iSCSI`)
		pages := l.vm.sh(t, "sg_vpd -p sv %s", dev)
		has(t, "VPD 00h", pages, `\[sn\]`, `\[di\]`, `\[ei\]`, `\[tpc\]`, `\[bl\]`, `\[bdc\]`, `\[lbpv\]`)
		for _, m := range regexp.MustCompile(`\[(\w+)\]`).FindAllStringSubmatch(pages, -1) {
			l.vm.sh(t, "sg_vpd -p %s %s", m[1], dev)
		}
		id := l.vm.sh(t, "sg_vpd -p di %s", dev)
		has(t, "VPD 83h", id, `(?i)0x`+d.lun.NAA, `SCSI name string:\s+iqn\.`)
		if dev != d.dev {
			ports[number(t, id, `Relative target port: (0x[0-9a-f]+)`)+" in "+number(t, id, `Target port group: (0x[0-9a-f]+)`)] = true
		}
		has(t, "VPD 80h", l.vm.sh(t, "sg_vpd -p sn %s", dev), d.lun.Serial)
		has(t, "VPD B0h", l.vm.sh(t, "sg_vpd -p bl %s", dev), `Maximum compare and write length: 255`, `Maximum unmap LBA count: [1-9]`,
			`Unmap granularity alignment valid: true`, `\(WSNZ\): 1`, `Maximum write same length: 0x[1-9a-f]`)
		has(t, "VPD B2h", l.vm.sh(t, "sg_vpd -p lbpv %s", dev), `\(LBPU\): 1`, `\(LBPWS\): 1`, `\(LBPWS10\): 1`, `\(LBPRZ\): 1`, `thin provisioned`)
		has(t, "capacity", l.vm.sh(t, "sg_readcap --16 %s", dev), `Device size: 67108864 bytes`, `lbpme=1, lbprz=1`, `exponent=3`)
		has(t, "sg_luns", l.vm.sh(t, "sg_luns %s", dev), `0000000000000000`)
	}
	if len(ports) != 2 {
		t.Errorf("the two nodes are not two ports in two groups: %v", ports)
	}
}

// portGroup is the target port group of a path.
func (d *disk) portGroup(t *testing.T, node string) string {
	t.Helper()
	return number(t, d.l.vm.sh(t, "sg_vpd -p di %s", d.paths[node].sg), `Target port group: (0x[0-9a-f]+)`)
}

// TestSgSetTargetPortGroupsMovesTheLUN: both nodes report the same groups, and a host may choose (explicit ALUA).
func TestSgSetTargetPortGroupsMovesTheLUN(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "groups", 64*mib)
	from := l.lun(t, d.lun.Name).Owner
	to := other(from)
	state := func(node string) string {
		return `target port group id : ` + d.portGroup(t, node) + ` [^\n]*\n[^\n]*access state : `
	}
	for _, node := range []string{from, to} {
		has(t, "sg_rtpg at "+node, l.vm.sh(t, "sg_rtpg -d -e %s", d.paths[node].sg),
			state(from)+`0x00`, state(to)+`0x0[12]`, `Implicit transition time: \d+`, `T_SUP : 1`, `AO_SUP : 1`)
	}
	l.vm.sh(t, "dd if=/dev/urandom of=/tmp/pattern bs=64k count=8 status=none; dd if=/tmp/pattern of=%s bs=64k oflag=direct status=none", d.dev)
	l.soon(t, "sg_stpg moves the LUN to "+to, func() error {
		// Repeated, for a LUN that has just got its owner stays there for a while; sg_stpg 2.10 says so, but ends with status 0.
		r := l.vm.try(t, "sg_stpg --tp=%s --state=ao %s", d.portGroup(t, to), d.paths[from].sg)
		if owner := l.lun(t, d.lun.Name).Owner; r.Status != 0 || owner != to {
			return fmt.Errorf("it is owned by %s: status %d: %s%s", owner, r.Status, r.Out, r.Err)
		}
		return nil
	})
	for _, node := range []string{from, to} {
		l.soon(t, "sg_rtpg at "+node, func() error {
			out := l.vm.sh(t, "sg_rtpg -d %s", d.paths[node].sg)
			if !regexp.MustCompile(state(to) + `0x00`).MatchString(out) {
				return fmt.Errorf("%s is not active:\n%s", to, out)
			}
			return nil
		})
	}
	l.vm.sh(t, "dd if=%s bs=64k count=8 iflag=direct status=none | cmp - /tmp/pattern", d.dev)
	d.isActive(t, to)
}

// TestSgPersistentReservations: registrations through both nodes are one table, which outlives the owner.
func TestSgPersistentReservations(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "reserve", 64*mib)
	first := l.lun(t, d.lun.Name).Owner
	a, b := d.paths[first].sg, d.paths[other(first)].sg
	out := func(sg, args string) { t.Helper(); l.vm.sh(t, "sg_persist --out %s %s", args, sg) }
	write := func(sg string) result {
		t.Helper()
		return l.vm.try(t, "head -c 512 /dev/zero >/tmp/zero; sg_raw -s 512 -i /tmp/zero %s 2a 00 00 00 00 00 00 00 01 00", sg)
	}
	agree := func(what string, patterns ...string) {
		t.Helper()
		for _, sg := range []string{a, b} {
			has(t, what+" through "+sg, l.told(t, "sg_persist --in --read-keys %s && sg_persist --in --read-reservation %[1]s", sg), patterns...)
		}
	}

	has(t, "REPORT CAPABILITIES", l.vm.sh(t, "sg_persist --in --report-capabilities %s", a), `\(PTPL_C\): 1`, `Type Mask Valid`, `Write Exclusive, all registrants: 1`)
	out(a, "--register --param-sark=0xa1")
	out(b, "--register --param-sark=0xb2")
	agree("registration", `2 registered`, `0xa1`, `0xb2`, `there is NO reservation held`)
	out(a, "--reserve --param-rk=0xa1 --prout-type=5")
	agree("reservation", `Key=0xa1`, `Write Exclusive, registrants only`)
	status := l.vm.sh(t, "sg_persist --in --read-full-status %s", a)
	has(t, "READ FULL STATUS", status, `Key=0xa1`, `Key=0xb2`, `Reservation holder`, `not reservation holder`, regexp.QuoteMeta(initiatorName))
	if ports := regexp.MustCompile(`Relative port address: (0x[0-9a-f]+)`).FindAllStringSubmatch(status, -1); len(ports) != 2 || ports[0][1] == ports[1][1] {
		t.Errorf("READ FULL STATUS does not tell the ports of the registrations apart:\n%s", status)
	}

	out(b, "--preempt --param-rk=0xb2 --param-sark=0xa1 --prout-type=5")
	agree("preempted", `1 registered`, `Key=0xb2`)
	if r := write(a); r.Status != sgConflict && r.Status != sgUnitAttention {
		t.Errorf("a write of who was preempted ends in status %d, want RESERVATION CONFLICT: %s", r.Status, r.Err)
	} else if r = write(a); r.Status != sgConflict {
		t.Errorf("a write of who was preempted ends in status %d, want RESERVATION CONFLICT: %s", r.Status, r.Err)
	}

	l.move(t, d.lun.Name, other(first))
	agree("after a move", `1 registered`, `Key=0xb2`, `Write Exclusive, registrants only`)
	killed, _ := l.killOwner(t, d.lun.Name)
	survivor := d.paths[other(killed)].sg
	l.lun(t, d.lun.Name)
	has(t, "after a kill", l.vm.sh(t, "sg_persist --in --read-reservation %s", survivor), `Key=0xb2`, `Write Exclusive, registrants only`)
	l.restart(t, killed, d.lun.Name)
	l.soon(t, "the killed node's path answers", func() error {
		r := l.vm.try(t, "sg_persist --in --read-keys %s", d.paths[killed].sg)
		if r.Status != 0 || !strings.Contains(r.Out, "0xb2") {
			return fmt.Errorf("status %d: %s%s", r.Status, r.Out, r.Err)
		}
		return nil
	})
	// The session to the killed node is a new one with the same name (ISID): still the same nexus, so still registered.
	out(b, "--clear --param-rk=0xb2")
	agree("cleared", `there are NO registered reservation keys`, `there is NO reservation held`)
	l.soon(t, "writes are allowed again", func() error {
		if r := write(d.paths[l.lun(t, d.lun.Name).Owner].sg); r.Status != 0 {
			return fmt.Errorf("status %d: %s", r.Status, r.Err)
		}
		return nil
	})
}

// TestSgBlockCommands: atomic test and set, unmapping, and one block written many times.
func TestSgBlockCommands(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "blocks", 64*mib)
	// Four times 512 bytes, each of one byte.
	l.vm.sh(t, `for c in A B C D; do head -c 512 /dev/zero | tr '\0' $c >/tmp/$c; done
dd if=/tmp/A of=%s bs=512 seek=1000 oflag=direct status=none
cat /tmp/A /tmp/B >/tmp/AB; cat /tmp/C /tmp/D >/tmp/CD; head -c 512 /dev/zero >/tmp/0`, d.dev)
	is := func(lba int, file string) {
		t.Helper()
		l.vm.sh(t, "dd if=%s bs=512 skip=%d count=1 iflag=direct status=none | cmp - %s", d.dev, lba, file)
	}
	mapped := func(lba int, want string) {
		t.Helper()
		has(t, fmt.Sprintf("GET LBA STATUS of %d", lba), d.good(t, "sg_get_lba_status --lba=%d $SG", lba), fmt.Sprintf(`(?i)LBA: 0x0*%x\s+blocks:\s+\d+\s+%s`, lba, want))
	}

	d.good(t, "sg_compare_and_write --lba=1000 --num=1 --xferlen=1024 --in=/tmp/AB $SG")
	is(1000, "/tmp/B")
	if r := d.onOwner(t, "sg_compare_and_write --lba=1000 --num=1 --xferlen=1024 --in=/tmp/CD $SG"); r.Status != sgMiscompare {
		t.Errorf("COMPARE AND WRITE with other data: status %d, want a miscompare: %s%s", r.Status, r.Out, r.Err)
	}
	is(1000, "/tmp/B")
	mapped(1000, "mapped")
	d.good(t, "sg_unmap --force --lba=1000 --num=8 $SG")
	mapped(1000, "deallocated")
	is(1000, "/tmp/0")

	d.good(t, "sg_write_same --10 --lba=2048 --num=64 --xferlen=512 --in=/tmp/C $SG")
	d.good(t, "sg_write_same --16 --lba=2112 --num=64 --xferlen=512 --in=/tmp/D $SG")
	for lba, file := range map[int]string{2048: "/tmp/C", 2111: "/tmp/C", 2112: "/tmp/D", 2175: "/tmp/D", 2176: "/tmp/0"} {
		is(lba, file)
	}
	mapped(2048, "mapped")
	d.good(t, "sg_write_same --16 --ndob --unmap --lba=2048 --num=128 $SG")
	is(2048, "/tmp/0")
	is(2175, "/tmp/0")
	mapped(2048, "deallocated")
	if r := d.onOwner(t, "sg_unmap --force --lba=131072 --num=1 $SG"); r.Status == 0 {
		t.Errorf("UNMAP beyond the end succeeds")
	}
}

// TestSgCopiesWithinTheLUN: EXTENDED COPY moves blocks without the host reading them.
func TestSgCopiesWithinTheLUN(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "copy", 64*mib)
	l.vm.sh(t, `dd if=/dev/urandom of=/tmp/data bs=512 count=4096 status=none
dd if=/tmp/data of=%s bs=64k oflag=direct conv=fsync status=none`, d.dev)
	d.good(t, "sg_xcopy if=$SG of=$SG bs=512 count=4096 skip=0 seek=40960")
	l.vm.sh(t, "dd if=%s bs=512 skip=40960 count=4096 iflag=direct status=none | cmp - /tmp/data", d.dev)
}

// TestSgSaysWhatItCanDo: the lists of commands, task management functions, log and mode pages are what the tests here use.
func TestSgSaysWhatItCanDo(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "lists", 64*mib)
	for _, p := range d.paths {
		has(t, "sg_opcodes", l.vm.sh(t, "sg_opcodes %s", p.sg), `(?m)^ 28 +10`, `(?m)^ 2a +10`, `(?m)^ 42 +10 .*Unmap`, `(?m)^ 83 `, `(?m)^ 84 `, `(?m)^ 88 +16`,
			`(?m)^ 89 +16 .*Compare and write`, `(?m)^ 8b `, `(?m)^ 93 +16`, `(?m)^ 5e `, `(?m)^ 5f `, `(?m)^ 4d `, `(?m)^ 55 `, `(?m)^ a3 +a `, `(?m)^ a4 +a `, `(?m)^ 34 `, `(?m)^ 90 `)
		has(t, "sg_opcodes --tmf", l.vm.sh(t, "sg_opcodes --tmf %s", p.sg), `(?i)abort task`, `(?i)logical unit reset`)
		has(t, "sg_modes", l.vm.sh(t, "sg_modes -a %s", p.sg), `Read-Write error recovery`, `Caching`, `Control`, `Informational exceptions`, `DpoFua=1`, `WP=0`)
		has(t, "sg_logs", l.vm.sh(t, "sg_logs --page=0 %s", p.sg), `(?i)0x0?c +.*`)
	}
	has(t, "sg_logs of provisioning", d.good(t, "sg_logs --page=0xc $SG"), `(?i)logical block provisioning`)
}

// TestSgResetTellsEveryPath: a logical unit reset through one path is heard of on the other, and I/O goes on.
func TestSgResetTellsEveryPath(t *testing.T) {
	l := useLab(t)
	d := l.attach(t, "reset", 64*mib)
	// multipathd's checker would hear of it first.
	l.vm.sh(t, "kill -STOP $(pidof multipathd)")
	t.Cleanup(func() { l.vm.again(t, "kill -CONT $(pidof multipathd)") })
	owner := l.lun(t, d.lun.Name).Owner
	a, b := d.paths[owner].sg, d.paths[other(owner)].sg
	l.vm.try(t, "sg_turs %s; sg_turs %s", a, b) // what is left of the login
	l.vm.sh(t, "sg_reset --device %s", a)
	r := l.vm.try(t, "sg_turs -vv %s", b)
	if r.Status != sgUnitAttention {
		t.Errorf("TEST UNIT READY on the other path after a reset: status %d, want a unit attention\n%s%s", r.Status, r.Out, r.Err)
	}
	has(t, "unit attention after a reset", r.Out+r.Err, `(?i)reset`)
	l.vm.again(t, "kill -CONT $(pidof multipathd)")
	l.vm.sh(t, "dd if=/dev/urandom of=%s bs=64k count=4 oflag=direct status=none", d.dev)
	l.vm.sh(t, "sg_reset --target %s; dd if=/dev/urandom of=%s bs=64k count=4 oflag=direct status=none", a, d.dev)
}

// TestSgCopiesBetweenLUNs: a host's own target presents its LUNs under their numbers, and EXTENDED COPY works between them, whichever
// nodes own them.
func TestSgCopiesBetweenLUNs(t *testing.T) {
	l := useLab(t)
	h := l.host(t, "copier", api.HostSpec{Initiators: []string{initiatorName + "-copier"}})
	one, two := h.grant(t, "copy-from", 64*mib), h.grant(t, "copy-to", 64*mib)
	h.login(t)
	h.sg(t, one)
	h.sg(t, two)
	// A LUN that holds nothing yet may still go to the node it was meant for.
	l.vm.sh(t, "for dev in %s %s; do dd if=/dev/urandom of=$dev bs=64k count=1 oflag=direct status=none; done", one.dev(), two.dev())
	owner := l.lun(t, one.lun.Name).Owner
	from, to := h.path(t, one, owner).sg, h.path(t, two, owner).sg
	l.vm.sh(t, `dd if=/dev/urandom of=/tmp/data bs=512 count=4096 status=none
dd if=/tmp/data of=%s bs=64k oflag=direct conv=fsync status=none`, one.dev())
	// The command goes to the first LUN's owner. Where the second LUN is owned elsewhere, its path there is standby, and its owner is asked.
	for i, node := range []string{owner, other(owner)} {
		l.move(t, two.lun.Name, node)
		l.vm.sh(t, `for n in 1 2 3; do sg_turs %[1]s >/dev/null || true; sg_turs %[2]s >/dev/null || true; done # what the move has left to tell
sg_xcopy --on_src if=%[1]s of=%[2]s bs=512 count=4096 skip=0 seek=%[3]d
dd if=%[4]s bs=512 skip=%[3]d count=4096 iflag=direct status=none | cmp - /tmp/data
sg_xcopy --on_dst if=%[2]s of=%[1]s bs=512 count=4096 skip=%[3]d seek=%[5]d
dd if=%[6]s bs=512 skip=%[5]d count=4096 iflag=direct status=none | cmp - /tmp/data`, from, to, 8192*(i+1), two.dev(), 32768*(i+1), one.dev())
	}
}
