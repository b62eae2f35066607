package rig

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStatSurvivesNamesWithBrackets(t *testing.T) {
	t.Parallel()
	line := []byte("42 (a) b (c) S 7 1 1 0 -1 4194304 1 2 3 4 150 50 7 3 20 0 1 0 100")
	s, err := parseStat(line)
	if err != nil || s.parent != 7 || s.cpu != 2100*time.Millisecond {
		t.Errorf("parseStat = %+v, %v; want parent 7, 2.1s", s, err)
	}
	for _, bad := range []string{"", "42", "42 (x) S 7", "42 (x) S y 1 1 0 -1 4194304 1 2 3 4 150 50 7 3 20"} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) = %+v, want an error", bad, s)
		}
	}
}

func TestSplitURL(t *testing.T) {
	t.Parallel()
	a, iqn, lun, err := SplitURL("iscsi://127.0.0.1:3260/iqn.2026-11.local:x/0")
	if err != nil || a != "127.0.0.1:3260" || iqn != "iqn.2026-11.local:x" || lun != "0" {
		t.Errorf("got %q %q %q, %v", a, iqn, lun, err)
	}
	for _, bad := range []string{"", "iscsi://", "http://a/b/0", "iscsi://a/b", "iscsi://a//0", "iscsi://a/b/0/c"} {
		if _, _, _, err := SplitURL(bad); err == nil {
			t.Errorf("SplitURL(%q) found nothing wrong", bad)
		}
	}
}

func TestURLsAreFoundInProse(t *testing.T) {
	t.Parallel()
	found := make(chan string, 4)
	scanURLs(strings.NewReader("try: iscsi-inq 'iscsi://127.0.0.1:1/iqn.a:b/0'\n  iscsi://127.0.0.1:2/iqn.a:b/0\niscsi://x\n"), found)
	var got []string
	for u := range found {
		got = append(got, u)
	}
	if want := []string{"iscsi://127.0.0.1:1/iqn.a:b/0", "iscsi://127.0.0.1:2/iqn.a:b/0"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// TestDemoIsStoppedWithItsPortalsKnown uses a script in place of the binary: what is under test is this side of it. The scripts are
// written while no other test runs: a child that another one starts would hold them open for writing, and they could not be run.
func TestDemoIsStoppedWithItsPortalsKnown(t *testing.T) {
	for _, c := range []struct{ name, script, wantErr string }{
		{"serves", "echo try iscsi://127.0.0.1:1/iqn.a:b/0; echo iscsi://127.0.0.1:1/iqn.a:b/0; echo iscsi://127.0.0.1:2/iqn.a:b/0; while :; do sleep 0.05; done", ""},
		{"ends early", "echo iscsi://127.0.0.1:1/iqn.a:b/0; exit 1", "ended after 1 of 2 portals"},
		{"says nothing", "while :; do sleep 0.05; done", "printed 0 of 2 portals"},
	} {
		dir := t.TempDir()
		binary := filepath.Join(dir, "fake")
		if err := os.WriteFile(binary, []byte("#!/bin/sh\ntrap 'exit 0' INT\n"+c.script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			target, err := StartDemo(ctx, Demo{Binary: binary, Dir: dir, Media: "ram", SizeBytes: 1 << 20, Nodes: 3})
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error %v, want %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(target.URLs) != 2 || !target.Alive() {
				t.Errorf("URLs %q, alive %v", target.URLs, target.Alive())
			}
			if pids, err := target.Processes(); err != nil || !slices.Contains(pids, target.root) {
				t.Errorf("processes %v, %v: want %d among them", pids, err, target.root)
			}
			if err := target.Stop(); err != nil || target.Alive() {
				t.Errorf("stop: %v, alive %v", err, target.Alive())
			}
		})
	}
}

// TestReferenceServesAndCosts starts the real tgt where it is installed.
func TestReferenceServesAndCosts(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"tgtd", "tgtadm", "qemu-io"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: scripts/setup test", program)
		}
	}
	dir, err := os.MkdirTemp("", "rig") // short: a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	target, err := StartTgt(ctx, dir, dir, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	url, err := target.Serving(ctx)
	if err != nil || url != target.URLs[0] {
		t.Errorf("serving %q, %v", url, err)
	}
	out, err := exec.CommandContext(ctx, "qemu-io", "-f", "raw", "-c", "write -P 7 0 16M", "-c", "read -P 7 0 16M", url).CombinedOutput()
	if err != nil {
		t.Errorf("write and read through it: %v: %s", err, out)
	}
	if cpu, err := target.CPU(); err != nil || cpu <= 0 {
		t.Errorf("processor time %v, %v: want some for 32 MiB", cpu, err)
	}
	if err := target.Stop(); err != nil || target.Alive() {
		t.Errorf("stop: %v, alive %v", err, target.Alive())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.img")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
