package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demoProcess is a demo of this test binary, whose nodes have an API and nothing behind it.
type demoProcess struct {
	*exec.Cmd
	lines chan string
	errs  string // file with its standard error
}

func startDemo(t *testing.T, dir string, args ...string) *demoProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &demoProcess{Cmd: exec.Command(exe, append([]string{"demo", "--dir", dir, "--size", "64MiB"}, args...)...), lines: make(chan string, 1000)}
	p.Env = append(os.Environ(), "SANCTUARY_TEST_NODE=1")
	stderr, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	p.Stderr, p.errs = stderr, stderr.Name()
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill() // its nodes follow it
			_ = p.Wait()
		}
	})
	return p
}

// announced returns what the demo printed until it was up.
func (p *demoProcess) announced(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	late := time.After(30 * time.Second)
	for {
		select {
		case l, more := <-p.lines:
			if !more {
				t.Fatalf("the demo ended: %v\n%s\n%s", p.Wait(), text.String(), p.stderr(t))
			}
			line(&text, "%s", l)
			if strings.HasPrefix(l, "Ctrl-C") {
				return text.String()
			}
		case <-late:
			t.Fatalf("not up after 30 s:\n%s", text.String())
		}
	}
}

func (p *demoProcess) stderr(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(p.errs)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// said waits until the demo has written something to standard error.
func (p *demoProcess) said(t *testing.T, what string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(p.stderr(t), what); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in %s", what, p.stderr(t))
		}
	}
}

// end waits for the demo and returns what it wrote to standard error and its exit status.
func (p *demoProcess) end(t *testing.T) (string, int) {
	t.Helper()
	for range p.lines { // until it closes its output
	}
	err := p.Wait()
	if err != nil && p.ProcessState == nil {
		t.Fatal(err)
	}
	return p.stderr(t), p.ProcessState.ExitCode()
}

var pidColumn = regexp.MustCompile(`(?m)^(alpha|beta|witness) +(?:data|witness) +(\d+)`)

func pidsIn(t *testing.T, announced string) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for _, m := range pidColumn.FindAllStringSubmatch(announced, -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		pids[m[1]] = n
	}
	return pids
}

// dead waits until a process is gone or a zombie nobody but init will collect.
func dead(pid int, within time.Duration) bool {
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

func TestADemoComesUpToleratesAKillStopsAndResumes(t *testing.T) {
	dir := t.TempDir()
	p := startDemo(t, dir)
	text := p.announced(t)
	pids := pidsIn(t, text)
	if len(pids) != 3 {
		t.Fatalf("%v in\n%s", pids, text)
	}
	var urls []string
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, "iscsi://") {
			urls = append(urls, strings.TrimSpace(l))
		}
	}
	if len(urls) != 2 || !strings.HasPrefix(urls[0], "iscsi://127.0.0.1:3260/iqn.") {
		t.Errorf("portals %q; the owner's comes first", urls)
	}
	plan, found, err := readPlan(dir)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	for _, want := range []string{"iscsi-inq " + urls[0], "--api " + strings.Join(plan.API, ","), "kill -9 " + strconv.Itoa(pids["alpha"])} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}

	second := startDemo(t, dir)
	if errs, code := second.end(t); code != exitFailure || !strings.Contains(errs, "running in "+dir+" already") {
		t.Errorf("a second demo at the same time: %d, %s", code, errs)
	}

	// Somebody kills a node on purpose: the demo goes on, and says which.
	if err := syscall.Kill(pids["beta"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.said(t, "Node beta (pid "+strconv.Itoa(pids["beta"])+") ended: signal: killed")
	if err := p.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	errs, code := p.end(t)
	if code != exitOK || strings.Contains(errs, "Node alpha") {
		t.Errorf("%d: %s", code, errs)
	}
	for name, pid := range pids {
		if !dead(pid, 0) {
			t.Errorf("node %s outlived the demo", name)
		}
	}

	other := startDemo(t, dir, "--nodes", "4")
	if errs, code := other.end(t); code != exitUsage || !strings.Contains(errs, "leave --nodes out") {
		t.Errorf("other flags for an existing cluster: %d, %s", code, errs)
	}
	p = startDemo(t, dir)
	if again := p.announced(t); !strings.Contains(again, urls[0]) || !slices.Equal(strings.Fields(again)[:3], strings.Fields(text)[:3]) {
		t.Errorf("not the same cluster:\n%s", again)
	}
	for name, pid := range pidsIn(t, text) {
		if !dead(pid, 0) {
			t.Errorf("node %s is an old process", name)
		}
	}
}

func TestNodesDieWithADemoThatIsKilled(t *testing.T) {
	t.Parallel()
	p := startDemo(t, t.TempDir(), "--nodes", "1")
	pids := pidsIn(t, p.announced(t))
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.end(t)
	if len(pids) != 1 || !dead(pids["alpha"], 10*time.Second) {
		t.Errorf("%v lives", pids)
	}
}

func TestADemoThatCannotStartSaysWhy(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "alpha"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "alpha", "refuse"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	errs, code := startDemo(t, dir, "--nodes", "1").end(t)
	if code != exitFailure || !strings.Contains(errs, "node alpha has ended") || !strings.Contains(errs, "the disk is upside down") {
		t.Errorf("%d: %s", code, errs)
	}
}

func TestATemporaryDemoLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	p := startDemo(t, "", "--nodes", "1")
	p.announced(t)
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if errs, code := p.end(t); code != exitOK {
		t.Errorf("%d: %s", code, errs)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestAChildThatDoesNotStopIsKilled(t *testing.T) {
	t.Parallel()
	c := newChildren()
	log := filepath.Join(t.TempDir(), "log")
	ended := make(chan *child, 1)
	ch, err := c.start("deaf", "/bin/sh", []string{"-c", "trap '' TERM; echo ready; while :; do sleep 1; done"}, log, func(ch *child) { ended <- ch })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for { // until the trap is set
		if text, err := os.ReadFile(log); err == nil && len(text) > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("no output")
		}
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	if killed := c.stop(); !slices.Equal(killed, []string{"deaf"}) || time.Since(start) < stopGrace {
		t.Errorf("killed %q after %v", killed, time.Since(start))
	}
	if got := <-ended; got != ch || ch.err == nil {
		t.Errorf("ended with %v", ch.err)
	}
}
