package machine

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// Process is a child that dies with this process.
type Process struct {
	Name string
	Cmd  *exec.Cmd
	Done chan struct{} // closed when it has ended and Err is set
	Err  error
}

// Run starts a child with its output in a file, to which it is appended.
func Run(name, log string, cmd *exec.Cmd) (*Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	p := &Process{Name: name, Cmd: cmd, Done: make(chan struct{})}
	if err := spawn(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.Err = cmd.Wait()
		close(p.Done)
	}()
	return p, nil
}

// Ended says that, and why, it is no longer there.
func (p *Process) Ended() error {
	select {
	case <-p.Done:
		return fmt.Errorf("%s has ended by itself: %v", p.Name, p.Err)
	default:
		return nil
	}
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // an error: it has ended already
	<-p.Done
}

var (
	spawnOnce sync.Once
	spawnOn   chan func()
)

// spawn starts a child that the kernel kills when this process ends, however it ends. Such a child dies with the thread that
// forked it: so one thread, which lives as long as the process, forks them all.
func spawn(cmd *exec.Cmd) error {
	spawnOnce.Do(func() {
		spawnOn = make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range spawnOn {
				f()
			}
		}()
	})
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	spawnOn <- func() { result <- cmd.Start() }
	return <-result
}
