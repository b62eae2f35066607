package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const tgtName = "iqn.2026-11.local.reference:disk"

// StartTgt starts tgtd with one LUN of sizeBytes, backed by a sparse file in backing, which must exist: a folder on a tmpfs makes
// it a RAM disk, the nearest thing tgt has to one. The daemon is private: its own control socket below dir (kept short: the
// kernel allows 107 bytes), one loopback portal on a free port. Needs the package tgt; no root.
func StartTgt(ctx context.Context, dir, backing string, sizeBytes int64) (*Target, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	disk, err := os.CreateTemp(backing, "sanctuary-reference-*.img")
	if err != nil {
		return nil, fmt.Errorf("backing file of tgt: %w", err)
	}
	removeDisk := func() { _ = os.Remove(disk.Name()) }
	if err := errors.Join(disk.Truncate(sizeBytes), disk.Close()); err != nil {
		removeDisk()
		return nil, fmt.Errorf("backing file of tgt: %w", err)
	}

	socket := filepath.Join(dir, "tgt")
	env := append(os.Environ(), "TGT_IPC_SOCKET="+socket)
	cmd := exec.Command("tgtd", "--foreground", "--control-port", "0", "--iscsi", "portal=127.0.0.1:"+strconv.Itoa(port))
	cmd.Env = env
	p, err := start(cmd, filepath.Join(dir, "tgtd.log"))
	if err != nil {
		removeDisk()
		return nil, err
	}
	t := &Target{
		Name:  "tgt",
		URLs:  []string{fmt.Sprintf("iscsi://127.0.0.1:%d/%s/1", port, tgtName)},
		root:  cmd.Process.Pid,
		ended: p.ended,
		stop: func() error {
			// tgtd leaves on SIGTERM only once its targets are gone, and ours holds nothing worth an orderly end.
			if !p.ended() {
				_ = cmd.Process.Kill()
				<-p.done
			}
			return os.RemoveAll(socket + ".0")
		},
	}

	admin := func(args ...string) error {
		c := exec.CommandContext(ctx, "tgtadm", append([]string{"--control-port", "0", "--lld", "iscsi"}, args...)...)
		c.Env = env
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("tgtadm %v: %w: %s", args, err, lastLine(out))
		}
		return nil
	}
	err = untilAnswered(ctx, p, func() error { return admin("--op", "show", "--mode", "system") })
	for _, step := range [][]string{
		{"--op", "new", "--mode", "target", "--tid", "1", "--targetname", tgtName},
		{"--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "--backing-store", disk.Name()},
		{"--op", "bind", "--mode", "target", "--tid", "1", "--initiator-address", "127.0.0.1"},
	} {
		if err == nil {
			err = admin(step...)
		}
	}
	// tgtd has the file open, or will never: without a name it goes when tgtd does, however this program ends.
	removeDisk()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up tgt: %w", err), t.Stop())
	}
	return t, nil
}

// start runs cmd with its output in a log file. The child dies with this process, whatever ends it.
func start(cmd *exec.Cmd, logFile string) (*process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	defer log.Close() // the child has its own descriptor
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is of no interest: Stop ends it with a signal
	}()
	return p, nil
}

// untilAnswered repeats ask until it succeeds, the process has ended, or ten seconds are over.
func untilAnswered(ctx context.Context, p *process, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %w", p.cmd.Path, err)
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
