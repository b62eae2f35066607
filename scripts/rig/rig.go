// Package rig starts iSCSI targets as real processes for checks from outside: this project's binary, and tgt as the
// reference, with the same few facts about each: where it serves, which processes it is made of, what they cost.
//
// Invariant: a target that was started is gone after Stop, with every process it was made of, and nothing else is: processes
// are ended by id, never by name. Everything listens on loopback, on ports that were free a moment before.
//
// It does not load or judge a target: bench, conformance and interop do.
package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// Target is one running target.
type Target struct {
	Name  string   // for people: "tgt", "sanctuary, 2 copies"
	URLs  []string // iscsi://host:port/iqn/lun of every portal of the one LUN, never empty
	root  int      // process id; it and its descendants are the target
	stop  func() error
	ended func() bool
}

// Stop ends every process of the target and waits for them.
func (t *Target) Stop() error { return t.stop() }

// Alive reports whether the target's first process still runs.
func (t *Target) Alive() bool { return !t.ended() }

// probeTimeout bounds one look at a portal: a target that says nothing for that long does not serve.
const probeTimeout = 5 * time.Second

// Serving returns the URL of the first portal through which the LUN can be read right now: with several nodes that is the
// owner's, for the others' are standby. It waits for one until ctx ends.
func (t *Target) Serving(ctx context.Context) (string, error) {
	var last error
	for {
		for _, u := range t.URLs {
			if last = probe(ctx, u); last == nil {
				return u, nil
			}
		}
		if t.ended() {
			return "", fmt.Errorf("%s ended before it served: %w", t.Name, last)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s serves through none of %s: %w", t.Name, strings.Join(t.URLs, " "), errors.Join(ctx.Err(), last))
		case <-time.After(200 * time.Millisecond): // a poll of a foreign process: there is nothing to wait on
		}
	}
}

// probe reads block 0 through url with qemu's initiator, which no one here wrote.
func probe(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-io", "-r", "-f", "raw", "-c", "read 0 512", url).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "read 512/512 bytes") {
		return fmt.Errorf("read block 0 of %s: %w: %s", url, errors.Join(err, errNotRead), lastLine(out))
	}
	return nil
}

var errNotRead = errors.New("not read")

// urlPattern finds the portals a program prints.
var urlPattern = regexp.MustCompile(`iscsi://[^\s"'<>]+/[^\s"'<>]+/\d+`)

// SplitURL takes iscsi://host:port/iqn/lun apart.
func SplitURL(url string) (address, iqn, lun string, err error) {
	rest, ok := strings.CutPrefix(url, "iscsi://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return "", "", "", fmt.Errorf("%q is not iscsi://host:port/iqn/lun", url)
	}
	return parts[0], parts[1], parts[2], nil
}

// freePort returns a loopback TCP port nobody listens on. Another process may take it before the target does; the target
// then fails to start and says so.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// process runs a command in a process group of its own and knows when it has ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// terminate asks for an orderly end, and after grace takes the process away.
func (p *process) terminate(grace time.Duration) error {
	if p.ended() {
		return nil
	}
	// An error means that it has ended meanwhile; the wait below sees that.
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s (pid %d) had to be killed after %s", p.cmd.Path, p.cmd.Process.Pid, grace)
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
