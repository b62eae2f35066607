package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
)

const (
	hostInGuest = "10.0.2.2" // this machine's loopback, as QEMU's user networking shows it to a guest
	bootTime    = 90 * time.Second
	commandTime = 2 * time.Minute // the longest a script in the guest may take
)

// vm is a running guest with an agent that runs scripts.
type vm struct {
	*process
	console string // file
	agent   string // host:port
}

// arguments of every guest: no device that is not needed, and the clock of the machine it is emulated on. Without
// tsc_early_khz the kernel measures it, which on a busy machine can take for ever.
func kernelArguments() string {
	args := "console=ttyS0 quiet mitigations=off panic=-1 loglevel=5 tsc=reliable"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^cpu MHz\s*:\s*([0-9.]+)$`).FindSubmatch(info); m != nil {
			if mhz, err := strconv.ParseFloat(string(m[1]), 64); err == nil {
				args += fmt.Sprintf(" tsc_early_khz=%d", int(mhz*1000))
			}
		}
	}
	return args
}

// startVM boots the guest from its own image, and returns when its agent answers.
func startVM(l *lab, name string) (*vm, error) {
	var last error
	for range 3 { // another process may take the port first
		v, err := tryVM(l, name)
		if err == nil {
			return v, nil
		}
		last = err
	}
	return nil, last
}

func tryVM(l *lab, name string) (*vm, error) {
	v := &vm{console: filepath.Join(l.dir, name+".console"), agent: net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000)))}
	// nice: what is emulated must not starve the nodes, whose leases run out.
	cmd := exec.Command("nice", "-n", "10", "qemu-system-x86_64",
		"-M", "microvm,rtc=on", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "768",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "file:"+v.console,
		"-kernel", filepath.Join(l.image, "vmlinux"), "-initrd", filepath.Join(l.image, "initrd"), "-append", kernelArguments(),
		"-drive", "id=root,format=raw,if=none,snapshot=on,cache=unsafe,file="+filepath.Join(l.image, "root.img"), "-device", "virtio-blk-device,drive=root",
		"-netdev", "user,id=net,hostfwd=tcp:"+v.agent+"-10.0.2.15:1024", "-device", "virtio-net-device,netdev=net",
		"-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-device,rng=random")
	log := filepath.Join(l.dir, name+".qemu.log")
	var err error
	if v.process, err = run("guest "+name, log, cmd); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(bootTime)
	for {
		if console, err := os.ReadFile(v.console); err == nil && strings.Contains(string(console), "guest: ready") {
			// QEMU takes the connection before the agent listens, and drops it.
			if _, err := v.do(context.Background(), "true"); err == nil {
				return v, nil
			}
		}
		if err := v.ended(); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, tail(log))
		}
		if time.Now().After(deadline) {
			v.kill()
			return nil, fmt.Errorf("guest %s did not boot within %v\n%s", name, bootTime, tail(v.console))
		}
		time.Sleep(pollEvery) // a poll of another process: there is nothing to wait on
	}
}

// result is what a script in the guest said.
type result struct {
	status   int
	out, err string
}

// do runs a shell script in the guest.
func (v *vm) do(ctx context.Context, script string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", v.agent)
	if err != nil {
		return result{}, fmt.Errorf("agent of %s: %w", v.name, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintf(conn, "%d\n%s", len(script), script); err != nil {
		return result{}, fmt.Errorf("agent of %s: %w", v.name, err)
	}
	in := bufio.NewReader(conn)
	var r result
	var outBytes, errBytes int
	head, err := in.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscanf(head, "%d %d %d", &r.status, &outBytes, &errBytes)
	}
	if err == nil && (outBytes < 0 || errBytes < 0 || outBytes+errBytes > 64<<20) {
		err = errors.New("answers with more than 64 MiB")
	}
	if err != nil {
		return result{}, fmt.Errorf("%s ended by %v: agent of %s: %w", oneLine(script), ctx.Err(), v.name, err)
	}
	both := make([]byte, outBytes+errBytes)
	if _, err := io.ReadFull(in, both); err != nil {
		return result{}, fmt.Errorf("agent of %s: %w", v.name, err)
	}
	r.out, r.err = string(both[:outBytes]), string(both[outBytes:])
	return r, nil
}

// sh runs a script that must succeed, and returns what it printed.
func (v *vm) sh(t *testing.T, format string, args ...any) string {
	t.Helper()
	script := "set -e\n" + fmt.Sprintf(format, args...)
	r, err := v.do(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	if r.status != 0 {
		t.Fatalf("in the guest, status %d:\n%s\n%s%s", r.status, strings.TrimPrefix(script, "set -e\n"), r.out, r.err)
	}
	return r.out
}

// try runs a script whose status is the answer.
func (v *vm) try(t *testing.T, format string, args ...any) result {
	t.Helper()
	r, err := v.do(t.Context(), fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// again is sh for cleaning up: not with the test's context, which has ended by then, and the rest of it goes on.
func (v *vm) again(t *testing.T, format string, args ...any) string {
	t.Helper()
	script := fmt.Sprintf(format, args...)
	r, err := v.do(context.Background(), script)
	if err != nil || r.status != 0 {
		t.Errorf("in the guest, status %d, %v:\n%s\n%s%s", r.status, err, script, r.out, r.err)
	}
	return r.out
}

// background runs a script that must succeed while the test goes on. The function it returns waits for its output.
func (v *vm) background(t *testing.T, format string, args ...any) func() string {
	t.Helper()
	script := "set -e\n" + fmt.Sprintf(format, args...)
	var (
		r    result
		err  error
		done = make(chan struct{})
	)
	ctx := t.Context()
	go func() {
		defer close(done)
		r, err = v.do(ctx, script)
	}()
	return func() string {
		t.Helper()
		<-done
		if err != nil {
			t.Fatal(err)
		}
		if r.status != 0 {
			t.Fatalf("in the guest, status %d:\n%s\n%s%s", r.status, script, r.out, r.err)
		}
		return r.out
	}
}

func oneLine(script string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(script, "set -e\n")), "\n")
	return strconv.Quote(line)
}
