package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"sanctuary/scripts/rig"
)

// The load generator gets one half of the cores and the targets, who are measured one after the other, get the other half. Left to
// the scheduler the two would sometimes share a core and sometimes not, which alone makes a factor of three at depth 1, and differs
// from target to target. On two machines, as in use, they share none.

// halves divides the cores this process may use. With one core there is nothing to divide: both are nil.
func halves() (generator, target []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, nil, fmt.Errorf("which cores there are: %w", err)
	}
	var all []int
	for cpu := 0; len(all) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	if len(all) < 2 {
		return nil, nil, nil
	}
	return all[:len(all)/2], all[len(all)/2:], nil
}

// pinTarget moves a running target to cores; what it starts later stays there.
func pinTarget(t *rig.Target, cores []int) error {
	pids, err := t.Processes()
	for _, pid := range pids {
		err = errors.Join(err, pin(pid, cores))
	}
	return err
}

// pin moves every thread of a process to cores, if there are any to choose from.
func pin(pid int, cores []int) error {
	if cores == nil {
		return nil
	}
	var set unix.CPUSet
	for _, cpu := range cores {
		set.Set(cpu)
	}
	// Twice: a thread started meanwhile by one not yet moved is found the second time.
	for range 2 {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has ended
		}
		if err != nil {
			return err
		}
		for _, entry := range threads {
			thread, err := strconv.Atoi(entry.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(thread, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move thread %d of process %d to cores %v: %w", thread, pid, cores, err)
			}
		}
	}
	return nil
}
