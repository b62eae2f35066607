package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"sanctuary/scripts/rig"
)

const (
	lunBytes      = 128 << 20
	imageMiB      = 64
	initiatorName = "iqn.2026-11.local.check:interop"
	startTime     = 2 * time.Minute // for a cluster to serve, on a busy machine
	toolTime      = time.Minute     // for one tool to end
)

// TestReference is the control: the same checks on a target that the world has used for years.
func TestReference(t *testing.T) {
	gate(t)
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	dir := shortTempDir(t)
	target, err := rig.StartTgt(ctx, dir, dir, lunBytes)
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, target)
}

// TestReplicatedLUN: two data nodes and a witness, on both media.
func TestReplicatedLUN(t *testing.T) {
	gate(t)
	for _, media := range []string{"ram", "file"} {
		t.Run(media, func(t *testing.T) { checkDemo(t, rig.Demo{Media: media, Nodes: 3}) })
	}
}

// TestUnreplicatedLUN: one data node alone.
func TestUnreplicatedLUN(t *testing.T) {
	gate(t)
	checkDemo(t, rig.Demo{Media: "ram", Nodes: 1})
}

func checkDemo(t *testing.T, d rig.Demo) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	d.Binary, d.Dir, d.SizeBytes = binary(), shortTempDir(t), lunBytes
	target, err := rig.StartDemo(ctx, d)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(filepath.Join(d.Dir, "demo.log")))
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the cluster:\n%s", tail(filepath.Join(d.Dir, "demo.log")))
		}
	})
	checkAll(t, target)
}

// checkAll runs every check through the portal that serves, then the ones that any portal must pass, and stops the target.
func checkAll(t *testing.T, target *rig.Target) {
	t.Helper()
	t.Cleanup(func() {
		if err := target.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	url, err := target.Serving(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("identity", func(t *testing.T) { checkIdentity(t, url) })
	t.Run("capacity", func(t *testing.T) { checkCapacity(t, url) })
	t.Run("discovery", func(t *testing.T) {
		for _, u := range target.URLs {
			checkDiscovery(t, u)
		}
	})
	t.Run("same disk everywhere", func(t *testing.T) { checkOneIdentity(t, target.URLs) })
	for _, u := range target.URLs {
		if u != url {
			t.Run("standby portal", func(t *testing.T) { checkStandby(t, u) })
		}
	}
	t.Run("file system there and back", func(t *testing.T) { checkImage(t, url) })
	t.Run("patterns", func(t *testing.T) { checkPatterns(t, url) })
	t.Run("load", func(t *testing.T) { checkLoad(t, url) })
	if len(target.URLs) == 1 { // the tool ends with an error at the first standby portal
		t.Run("list of LUNs", func(t *testing.T) { checkList(t, url) })
	}
	if !target.Alive() {
		t.Error("the target ended during the checks")
	}
}

// checkIdentity: a disk that says what it is, in the standard data and in every VPD page it lists.
func checkIdentity(t *testing.T, url string) {
	std := run(t, "iscsi-inq", "-i", initiatorName, url)
	mustMatch(t, "standard INQUIRY", std, `(?m)Peripheral Qualifier:\s*CONNECTED`, `(?m)Peripheral Device Type:\s*DIRECT_ACCESS`, `(?m)Vendor:\s*\S`, `(?m)Product:\s*\S`)

	pages := run(t, "iscsi-inq", "-i", initiatorName, "-e", "1", "-c", "0", url)
	for _, page := range []string{"0x00", "0x80", "0x83", "0xb0"} {
		if !strings.Contains(strings.ToLower(pages), "page:"+page) {
			t.Errorf("VPD page %s is not listed:\n%s", page, pages)
		}
	}
	mustMatch(t, "VPD 80h", vpd(t, url, 0x80), `(?m)^Unit Serial Number:\s*\[?\s*\w`)
	mustMatch(t, "VPD 83h", vpd(t, url, 0x83), `(?i)NAA|EUI|T10`)
	mustMatch(t, "VPD B0h", vpd(t, url, 0xb0), `(?i)max(imum)?[_ ]?xfer|maximum transfer|wsnz`)
	mustMatch(t, "VPD B1h", vpd(t, url, 0xb1), `(?i)rotation`)
	mustMatch(t, "VPD B2h", vpd(t, url, 0xb2), `(?i)lbpu`)
}

func vpd(t *testing.T, url string, page int) string {
	t.Helper()
	return run(t, "iscsi-inq", "-i", initiatorName, "-e", "1", "-c", strconv.Itoa(page), url)
}

var capacityPattern = regexp.MustCompile(`(?s)RETURNED LOGICAL BLOCK ADDRESS:(\d+).*LOGICAL BLOCK LENGTH IN BYTES:(\d+).*Total size:(\d+)`)

func checkCapacity(t *testing.T, url string) {
	out := run(t, "iscsi-readcapacity16", "-i", initiatorName, url)
	m := capacityPattern.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("unexpected answer:\n%s", out)
	}
	last, _ := strconv.ParseInt(m[1], 10, 64)
	block, _ := strconv.ParseInt(m[2], 10, 64)
	if (last+1)*block != lunBytes || m[3] != strconv.Itoa(lunBytes) {
		t.Errorf("capacity is (%d+1) × %d, total %s; want %d bytes", last, block, m[3], lunBytes)
	}
	if block != 512 {
		t.Errorf("logical blocks of %d bytes, want 512", block)
	}
}

// checkDiscovery: a portal names its target at an address that one can reach, and lists the LUN with its size.
func checkDiscovery(t *testing.T, url string) {
	address, iqn, _, err := rig.SplitURL(url)
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, "iscsi-ls", "-i", initiatorName, "iscsi://"+address)
	if !strings.Contains(out, "Target:"+iqn) || !strings.Contains(out, "Portal:"+address) {
		t.Errorf("discovery at %s does not name %s there:\n%s", address, iqn, out)
	}
	if strings.Contains(out, "0.0.0.0") || strings.Contains(out, "[::]") {
		t.Errorf("discovery names an address no one can reach:\n%s", out)
	}
}

// checkOneIdentity: a multipath initiator puts two paths together by what VPD 83h and the serial say. libiscsi's tools will not
// log in where the LUN is standby, so this is our own initiator.
func checkOneIdentity(t *testing.T, urls []string) {
	var serials, names [][]byte
	for _, u := range urls {
		s := dial(t, u)
		serial, err := s.VPD(t.Context(), 0x80)
		if err != nil {
			t.Fatal(err)
		}
		name, err := s.NAA(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		serials, names = append(serials, serial), append(names, name)
	}
	for i := range urls {
		if !bytes.Equal(serials[i], serials[0]) || len(names[i]) == 0 || !bytes.Equal(names[i], names[0]) {
			t.Errorf("%s is serial %q, NAA %x; %s is %q, %x", urls[0], serials[0], names[0], urls[i], serials[i], names[i])
		}
	}
}

// checkImage: a real file system goes onto the LUN and comes back the same, file by file and byte by byte.
func checkImage(t *testing.T, url string) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	writeTree(t, tree)
	image, back := filepath.Join(dir, "image.raw"), filepath.Join(dir, "back.raw")
	run(t, "mkfs.ext4", "-q", "-F", "-d", tree, image, fmt.Sprintf("%dM", imageMiB))

	// -n: the LUN is there already, and larger than the image; so the way back is bounded to the image's size.
	quiet(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url)
	run(t, "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", fmt.Sprintf("count=%d", imageMiB), "if="+url, "of="+back)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, back)
	run(t, "cmp", image, back)
	run(t, "e2fsck", "-f", "-n", back)

	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "debugfs", "-R", "rdump / "+out, back)
	if want, got := hashTree(t, tree), hashTree(t, out); want != got {
		t.Errorf("the files differ: %s there, %s back", want, got)
	}

	// The whole LUN, as qemu sees it: the image, and zeros behind it.
	whole := filepath.Join(dir, "whole.raw")
	quiet(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", url, whole)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, whole)
	if info, err := os.Stat(whole); err != nil || info.Size() != lunBytes {
		t.Errorf("the whole LUN: %v, %v; want %d bytes", info, err, lunBytes)
	}
}

// writeTree makes files of many sizes; the same every time, and not compressible.
func writeTree(t *testing.T, root string) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	for i, size := range []int{0, 1, 511, 512, 4095, 4096, 4097, 65536, 1 << 20, 3<<20 + 17, 10 << 20} {
		data := make([]byte, size)
		_, _ = random.Read(data) // never fails
		name := filepath.Join(root, fmt.Sprintf("folder %d", i%3), fmt.Sprintf("file-%d", size))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// hashTree sums names and contents of the regular files below root; what mkfs adds (lost+found) is empty.
func hashTree(t *testing.T, root string) string {
	t.Helper()
	sum := sha256.New()
	files := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, name)
		fmt.Fprintf(sum, "%s %d\n", relative, len(data))
		sum.Write(data)
		files++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d files %x", files, sum.Sum(nil))
}

// binary is what is checked: what make build made, unless SANCTUARY_BINARY names another, such as a release's.
func binary() string {
	if b := os.Getenv("SANCTUARY_BINARY"); b != "" {
		return b
	}
	return "../../bin/sanctuary"
}

func gate(t *testing.T) {
	t.Helper()
	if os.Getenv("SANCTUARY_E2E") != "1" {
		t.Skip("starts real processes: make e2e")
	}
}

// run runs a tool, which must succeed, and returns its standard output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, _ := outputs(t, name, args...)
	return out
}

// quiet is run for a tool that must have nothing to complain about.
func quiet(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, errs := outputs(t, name, args...); errs != "" {
		t.Errorf("%s %s complains:\n%s", name, strings.Join(args, " "), errs)
	}
}

func outputs(t *testing.T, name string, args ...string) (out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), stderr.String()
}

func mustMatch(t *testing.T, what, text string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(text) {
			t.Errorf("%s: nothing like %s in:\n%s", what, p, text)
		}
	}
}

// shortTempDir makes a folder whose path leaves room for a socket's name in the kernel's 107 bytes.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// tail returns the end of a log.
func tail(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	const keep = 8 << 10
	if len(text) > keep {
		text = text[len(text)-keep:]
	}
	return string(text)
}
