package guest

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

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
