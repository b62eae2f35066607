package interop

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sanctuary/scripts/rig"
	"sanctuary/target/initiator"
	"sanctuary/target/scsi"
)

// dial logs in with our own initiator, which, as multipath drivers do, also logs in where the LUN is standby.
func dial(t *testing.T, url string) *initiator.Session {
	t.Helper()
	address, iqn, lun, err := rig.SplitURL(url)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(lun, 10, 14)
	if err != nil {
		t.Fatal(err)
	}
	s, err := initiator.Dial(t.Context(), initiator.Config{Address: address, Target: iqn, LUN: uint16(n), HeaderDigest: true, DataDigest: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	// Every login begins with unit attentions (29h/00h, then what has changed meanwhile).
	for range 8 {
		var status *initiator.StatusError
		if err := s.TestUnitReady(t.Context()); !errors.As(err, &status) || status.Key != scsi.UnitAttention {
			return s
		}
	}
	t.Fatal("unit attentions without end")
	return nil
}

// checkStandby: where the LUN is standby it says what it is and where it is active, moves no data, and says so at once; an
// initiator that knows one path only gets an error instead of waiting.
func checkStandby(t *testing.T, url string) {
	s := dial(t, url)
	ctx := t.Context()
	if standard, err := s.Inquiry(ctx); err != nil || len(standard) < 36 || standard[0] != 0 {
		t.Errorf("INQUIRY: % x, %v", standard, err)
	}
	if c, err := s.ReadCapacity16(ctx); err != nil || c.Bytes() != lunBytes {
		t.Errorf("READ CAPACITY: %+v, %v", c, err)
	}
	luns := make([]byte, 16)
	if r, err := s.Do(ctx, &initiator.Command{CDB: [16]byte{0xA0, 9: 16}, In: luns}); err != nil || r.Err() != nil || luns[3] != 8 {
		t.Errorf("REPORT LUNS: % x, %v, %v", luns, err, r.Err())
	}
	groups, err := s.ReportTargetPortGroups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	count := func(state scsi.AccessState) (n int) {
		for _, g := range groups {
			if g.State == state {
				n++
			}
		}
		return n
	}
	if count(scsi.ActiveOptimized) != 1 || count(scsi.Standby) != len(groups)-1 {
		t.Errorf("port groups %+v: want one active, the others standby", groups)
	}
	buf := make([]byte, 512)
	for name, err := range map[string]error{
		"TEST UNIT READY": s.TestUnitReady(ctx), "READ": s.Read(ctx, 0, 1, buf), "WRITE": s.Write(ctx, 0, 1, buf),
		"UNMAP": s.Unmap(ctx, 0, 8), "COMPARE AND WRITE": s.CompareAndWrite(ctx, 0, 1, buf, buf), "SYNCHRONIZE CACHE": s.SyncCache(ctx),
	} {
		var status *initiator.StatusError
		if !errors.As(err, &status) || status.Key != scsi.NotReady || status.Code != 0x040B {
			t.Errorf("%s: %v, want 2/04/0B", name, err)
		}
	}

	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(within, "qemu-io", "-f", "raw", "-c", "write -P 1 0 4096", url).CombinedOutput()
	if within.Err() != nil || err == nil || !strings.Contains(string(out), "NOT READY") {
		t.Errorf("qemu-io: %v; want an error that says NOT READY:\n%s", errors.Join(err, within.Err()), out)
	}
}

// checkList: iscsi-ls logs in to every portal it finds, and shows the LUN behind it with its size.
func checkList(t *testing.T, url string) {
	address, iqn, _, err := rig.SplitURL(url)
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, "iscsi-ls", "-i", initiatorName, "-s", "iscsi://"+address)
	if i := slices.IndexFunc(strings.Split(out, "\n"), func(l string) bool { return strings.HasPrefix(l, "Lun:") && strings.Contains(l, "DIRECT_ACCESS") }); i < 1 || !strings.Contains(out, iqn) {
		t.Errorf("no LUN with its type:\n%s", out)
	}
}
