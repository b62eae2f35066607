package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// stopGrace is what a child has to stop in order before it is killed: more than a node needs to take its leave of initiators that do not listen.
const stopGrace = 10 * time.Second

// child is one process of the demo's cluster.
type child struct {
	name string
	pid  int
	proc *os.Process
	done chan struct{} // closed when it has ended; state may be read then
	err  error         // how it ended: nil for exit status 0
}

// ended says whether it has.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// children starts processes and waits for them. No child outlives this process, however it ends: each asks the kernel for
// SIGKILL when its parent dies. That signal is tied to the thread that forked, so one thread, held for the lifetime of
// this value, does it for all.
type children struct {
	spawn chan func()
	wg    sync.WaitGroup

	mu  sync.Mutex // guards all
	all []*child
}

func newChildren() *children {
	c := &children{spawn: make(chan func())}
	c.wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, after the last child
		for f := range c.spawn {
			f()
		}
	})
	return c
}

// start runs a program with its output appended to a file. ended is called once, from a goroutine of its own, when it ends.
func (c *children) start(name, program string, args []string, logFile string, ended func(*child)) (*child, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of node %s: %w", name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: Ctrl-C in the terminal is for the demo, which then stops the nodes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	c.spawn <- func() { result <- cmd.Start() }
	if err := <-result; err != nil {
		return nil, fmt.Errorf("start node %s: %w", name, err)
	}
	ch := &child{name: name, pid: cmd.Process.Pid, proc: cmd.Process, done: make(chan struct{})}
	c.mu.Lock()
	c.all = append(c.all, ch)
	c.mu.Unlock()
	c.wg.Go(func() {
		ch.err = cmd.Wait()
		close(ch.done)
		ended(ch)
	})
	return ch, nil
}

// kill ends a child with SIGKILL and waits for it.
func (c *children) kill(ch *child) error {
	if err := ch.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill node %s (pid %d): %w", ch.name, ch.pid, err)
	}
	<-ch.done
	return nil
}

// stop ends all children, in order if they can within stopGrace, and returns those that could not. No start may follow.
func (c *children) stop() (killed []string) {
	c.mu.Lock()
	all := c.all
	c.mu.Unlock()
	for _, ch := range all {
		// One that has ended already needs no signal, and its process ID may be another's: Process.Signal knows.
		_ = ch.proc.Signal(syscall.SIGTERM)
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	for _, ch := range all {
		select {
		case <-ch.done:
			continue
		case <-grace.C:
			grace.Reset(0) // the rest have had theirs
		}
		if ch.ended() {
			continue
		}
		killed = append(killed, ch.name)
		_ = ch.proc.Kill() // gone meanwhile: as good
		<-ch.done
	}
	close(c.spawn)
	c.wg.Wait()
	return killed
}
