// Package machine boots a guest of scripts/guest/build in QEMU and runs scripts in it.
//
// Invariant: a guest ends with the process that started it, and leaves nothing behind but its console and QEMU's log. What it
// writes to its root file system is gone with it; other disks are the caller's.
// Without KVM, a guest is emulated: it shows whether something works, and not how fast.
package machine

import (
	"bufio"
	"bytes"
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
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	bootTime    = 90 * time.Second
	commandTime = 2 * time.Minute // the longest a script in the guest may take, unless its context says less
	pollEvery   = 50 * time.Millisecond
	agentPort   = "1024"
)

// Impossible says why no guest can run here, or nothing.
func Impossible() string {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return runtime.GOOS + "/" + runtime.GOARCH + ": the guest is Debian for amd64 and emulated, which only its own kind does quickly enough"
	}
	for _, tool := range []string{"qemu-system-x86_64", "qemu-img", "mmdebstrap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed: scripts/setup guest"
		}
	}
	if os.Getuid() != 0 {
		return "building its image needs root"
	}
	return ""
}

// Image builds the guest if it is not there yet, which needs the machine's network, and returns the directory it is in. folder is
// scripts/guest.
func Image(ctx context.Context, folder string) (string, error) {
	build := exec.CommandContext(ctx, "./build")
	build.Dir = folder
	build.Stderr = os.Stderr
	out, err := build.Output()
	if err != nil {
		return "", fmt.Errorf("%s/build: %w", folder, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Config is what a guest is made of.
type Config struct {
	Name      string // unique among guests that run at the same time
	Image     string // directory: see Image
	Logs      string // directory for console and QEMU's log
	MemoryMiB int    // default 768
	CPUs      int    // default 2
	Disks     []Disk
	Program   string // file of the host; the guest has it as ProgramPath, to be run. Empty: none
	// Tap is a network device that QEMU attaches the guest to, made by the caller, and Address the guest's own there, with its
	// length ("10.77.0.11/24"). Without them it has QEMU's user networking and is reached by its agent only.
	Tap, Address string
}

// ProgramPath is where a guest has Config.Program.
const ProgramPath = "/run/program"

// programDisk is the disk it comes on, from the first byte on.
const programDisk = "program"

// Disk is one more disk of a guest, there as /dev/disk/by-id/virtio-NAME.
type Disk struct {
	Name string // at most 20 characters
	// Drive is the rest of QEMU's -drive, such as "format=raw,file=/tmp/x".
	Drive string
}

// Machine is a running guest with an agent that runs scripts.
type Machine struct {
	*Process
	Console string // file
	Agent   string // host:port
}

// KernelArguments of every guest: no device that is not needed, and the clock of the machine it is emulated on. Without
// tsc_early_khz the kernel measures it, which on a busy machine can take for ever.
func KernelArguments() string {
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

// Start boots a guest and returns when its agent answers.
func Start(ctx context.Context, c Config) (*Machine, error) {
	var last error
	for range 3 { // another process may take the agent's port first
		m, err := try(ctx, c)
		if err == nil {
			return m, nil
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

func (c Config) arguments(agent string) []string {
	kernel := KernelArguments()
	network := "user,id=net,hostfwd=tcp:" + agent + "-10.0.2.15:" + agentPort
	device := "virtio-net-device,netdev=net"
	if c.Tap != "" {
		kernel += " guest.address=" + c.Address
		network = "tap,id=net,script=no,downscript=no,ifname=" + c.Tap
		address, _, _ := strings.Cut(c.Address, "/")
		device += ",mac=52:54:00:00:00:" + fmt.Sprintf("%02x", net.ParseIP(address).To4()[3])
	}
	args := []string{
		"-M", "microvm,rtc=on", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(c.CPUs), "-m", strconv.Itoa(c.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "file:" + filepath.Join(c.Logs, c.Name+".console"),
		"-kernel", filepath.Join(c.Image, "vmlinux"), "-initrd", filepath.Join(c.Image, "initrd"), "-append", kernel,
		"-drive", "id=root,format=raw,if=none,snapshot=on,cache=unsafe,file=" + filepath.Join(c.Image, "root.img"), "-device", "virtio-blk-device,drive=root",
		"-netdev", network, "-device", device,
		"-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-device,rng=random",
	}
	disks := c.Disks
	if c.Program != "" {
		disks = append([]Disk{{Name: programDisk, Drive: "format=raw,readonly=on,file=" + c.Program}}, disks...)
	}
	for _, d := range disks {
		args = append(args, "-drive", "if=none,id="+d.Name+","+d.Drive, "-device", "virtio-blk-device,drive="+d.Name+",serial="+d.Name)
	}
	return args
}

func try(ctx context.Context, c Config) (*Machine, error) {
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 768
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	m := &Machine{Console: filepath.Join(c.Logs, c.Name+".console"), Agent: net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000)))}
	if c.Tap != "" {
		address, _, _ := strings.Cut(c.Address, "/")
		m.Agent = net.JoinHostPort(address, agentPort)
	}
	if err := os.Remove(m.Console); err != nil && !errors.Is(err, os.ErrNotExist) { // of the one before
		return nil, err
	}
	// nice: what is emulated must not starve what it is tested with.
	cmd := exec.Command("nice", append([]string{"-n", "10", "qemu-system-x86_64"}, c.arguments(m.Agent)...)...)
	log := filepath.Join(c.Logs, c.Name+".qemu.log")
	var err error
	if m.Process, err = Run("guest "+c.Name, log, cmd); err != nil {
		return nil, err
	}
	err = m.booted(ctx)
	if err == nil && c.Program != "" {
		err = m.place(ctx, c.Program)
	}
	if err != nil {
		m.Kill()
		return nil, fmt.Errorf("%w\n%s\n%s", err, Tail(log), Tail(m.Console))
	}
	return m, nil
}

// place puts the program where it can be run from: the disk is longer than it.
func (m *Machine) place(ctx context.Context, program string) error {
	info, err := os.Stat(program)
	if err != nil {
		return err
	}
	_, err = m.Sh(ctx, fmt.Sprintf("head -c %d /dev/disk/by-id/virtio-%s >%[3]s\nchmod +x %[3]s", info.Size(), programDisk, ProgramPath))
	return err
}

// booted waits until the agent answers.
func (m *Machine) booted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	tick := time.NewTicker(pollEvery) // a poll of another process: there is nothing to wait on
	defer tick.Stop()
	for {
		if console, err := os.ReadFile(m.Console); err == nil && bytes.Contains(console, []byte("guest: ready")) {
			// QEMU takes the connection before the agent listens, and drops it.
			if _, err := m.Do(ctx, "true"); err == nil {
				return nil
			}
		}
		if err := m.Ended(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not boot within %v: %w", m.Name, bootTime, ctx.Err())
		case <-tick.C:
		}
	}
}

// Result is what a script in the guest said.
type Result struct {
	Status   int
	Out, Err string
}

// Do runs a shell script in the guest.
func (m *Machine) Do(ctx context.Context, script string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", m.Agent)
	if err != nil {
		return Result{}, fmt.Errorf("agent of %s: %w", m.Name, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintf(conn, "%d\n%s", len(script), script); err != nil {
		return Result{}, fmt.Errorf("agent of %s: %w", m.Name, err)
	}
	in := bufio.NewReader(conn)
	var r Result
	var outBytes, errBytes int
	head, err := in.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscanf(head, "%d %d %d", &r.Status, &outBytes, &errBytes)
	}
	if err == nil && (outBytes < 0 || errBytes < 0 || outBytes+errBytes > 64<<20) {
		err = errors.New("answers with more than 64 MiB")
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s ended by %v: agent of %s: %w", oneLine(script), ctx.Err(), m.Name, err)
	}
	both := make([]byte, outBytes+errBytes)
	if _, err := io.ReadFull(in, both); err != nil {
		return Result{}, fmt.Errorf("agent of %s: %w", m.Name, err)
	}
	r.Out, r.Err = string(both[:outBytes]), string(both[outBytes:])
	return r, nil
}

// Sh runs a script of which every command must succeed, and returns what it printed.
func (m *Machine) Sh(ctx context.Context, script string) (string, error) {
	r, err := m.Do(ctx, "set -e\n"+script)
	if err == nil && r.Status != 0 {
		err = fmt.Errorf("in %s, status %d:\n%s\n%s%s", m.Name, r.Status, script, r.Out, r.Err)
	}
	return r.Out, err
}

func oneLine(script string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(script, "set -e\n")), "\n")
	return strconv.Quote(line)
}

// Tail returns the end of a file, for a message.
func Tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
}
