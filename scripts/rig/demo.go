package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Demo says which cluster StartDemo starts.
type Demo struct {
	Binary    string // path of the sanctuary binary
	Dir       string // where the cluster's state and logs go; must exist
	Media     string // "ram" or "file"
	SizeBytes int64  // of the LUN, a multiple of 1 MiB
	Nodes     int    // 1: one data node, unreplicated; 3: two data nodes and a witness
}

// portals is how many portals the LUN has: one for each data node.
func (d Demo) portals() int { return max(1, d.Nodes-1) }

// stopGrace is what a cluster has to close its disks in order.
const stopGrace = 15 * time.Second

// StartDemo runs "sanctuary demo" and returns once it has printed a portal for every data node, or ctx ends. The log is
// demo.log in Dir.
func StartDemo(ctx context.Context, d Demo) (*Target, error) {
	cmd := exec.Command(d.Binary, "demo", "--dir", filepath.Join(d.Dir, "state"), "--media", d.Media,
		"--size", strconv.FormatInt(d.SizeBytes>>20, 10)+"MiB", "--nodes", strconv.Itoa(d.Nodes))
	reader, writer := io.Pipe()
	cmd.Stdout = writer
	logFile := filepath.Join(d.Dir, "demo.log")
	p, err := start(cmd, logFile)
	if err != nil {
		return nil, err
	}
	go func() {
		<-p.done
		writer.Close() // ends the scan below
	}()
	found := make(chan string)
	go scanURLs(reader, found)

	t := &Target{
		Name:  fmt.Sprintf("sanctuary, %d nodes, %s", d.Nodes, d.Media),
		root:  cmd.Process.Pid,
		ended: p.ended,
		stop:  func() error { return p.terminate(stopGrace) },
	}
	for len(t.URLs) < d.portals() {
		select {
		case url, more := <-found:
			if !more {
				return nil, errors.Join(fmt.Errorf("sanctuary demo ended after %d of %d portals, see %s", len(t.URLs), d.portals(), logFile), t.Stop())
			}
			if !slices.Contains(t.URLs, url) {
				t.URLs = append(t.URLs, url)
			}
		case <-ctx.Done():
			err := fmt.Errorf("sanctuary demo printed %d of %d portals, see %s: %w", len(t.URLs), d.portals(), logFile, ctx.Err())
			go drain(found)
			return nil, errors.Join(err, t.Stop())
		}
	}
	go drain(found) // demo goes on printing, and must not block on it
	return t, nil
}

// scanURLs sends every portal found in r and closes found at its end.
func scanURLs(r io.Reader, found chan<- string) {
	defer close(found)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		for _, url := range urlPattern.FindAllString(lines.Text(), -1) {
			found <- url
		}
	}
	// A line beyond the scanner's limit: nothing of ours. The writer must still not block.
	_, _ = io.Copy(io.Discard, r)
}

func drain(found <-chan string) {
	for range found {
	}
}
