package rig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is USER_HZ, the unit of times in /proc/PID/stat: 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// CPU returns the processor time, user and system, that the target's processes have used so far: what they used themselves
// and what children they have waited for used. Source: proc(5), /proc/PID/stat fields 14 to 17.
func (t *Target) CPU() (time.Duration, error) {
	pids, err := t.Processes()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, pid := range pids {
		s, err := readStat(pid)
		if errors.Is(err, fs.ErrNotExist) {
			continue // ended since it was listed: its parent's account has it
		}
		if err != nil {
			return 0, err
		}
		sum += s.cpu
	}
	return sum, nil
}

// Processes returns the ids of the target's first process and all its living descendants.
func (t *Target) Processes() ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(filepath.Base(e))
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil { // one that ended meanwhile is not ours to count
			children[s.parent] = append(children[s.parent], pid)
		}
	}
	all := []int{t.root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

type stat struct {
	parent int
	cpu    time.Duration
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, fmt.Errorf("processor time: %w", err)
	}
	return parseStat(text)
}

// parseStat reads one line of /proc/PID/stat. The second field is the program's name in brackets and may hold anything, so
// counting starts behind the last bracket, with field 3.
func parseStat(text []byte) (stat, error) {
	end := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[end+1:]))
	if end < 0 || len(fields) < 15 {
		return stat{}, fmt.Errorf("processor time: unexpected line %q", text)
	}
	var numbers [5]int64
	for i, field := range []int{4, 14, 15, 16, 17} {
		n, err := strconv.ParseInt(fields[field-3], 10, 64)
		if err != nil {
			return stat{}, fmt.Errorf("processor time: field %d: %w", field, err)
		}
		numbers[i] = n
	}
	ticks := numbers[1] + numbers[2] + numbers[3] + numbers[4]
	return stat{parent: int(numbers[0]), cpu: time.Duration(ticks) * clockTick}, nil
}
