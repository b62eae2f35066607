package replication

import (
	"errors"
	"runtime"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/replication/journal"
)

// raftLog is the log as the Raft library sees it.
//
// When the library starts it reads the whole log, for the configurations in it: what an entry of ours carries is left out then, so that a start does
// not take as long as reading all data that is kept. Later, an entry that cannot be read would make it panic, and end the process with every other LUN
// it serves. So the goroutine that asks waits until the entry has been fetched from another copy (mend.go), which is as good as the
// replica being away; if that comes to nothing, the goroutine ends, not the process.
type raftLog struct {
	journal.Log
	g       *Group
	inst    *instance
	running atomic.Bool // the library has started
}

// GetLog implements raft.LogStore.
func (l *raftLog) GetLog(index uint64, out *raft.Log) error {
	if !l.running.Load() {
		err := l.Log.Head(index, out)
		if err != nil || out.Type == raft.LogCommand {
			return err
		}
	}
	for {
		err := l.Log.GetLog(index, out)
		var corrupt *block.CorruptError
		if err == nil || !errors.As(err, &corrupt) {
			if err != nil && !errors.Is(err, raft.ErrLogNotFound) && l.running.Load() {
				l.g.fail(err)
				runtime.Goexit()
			}
			return err
		}
		if !l.running.Load() {
			return err // a configuration: newRaft says that the log cannot be read
		}
		select {
		case <-l.g.mending.found():
		case <-l.inst.ctx.Done():
			runtime.Goexit()
		}
	}
}
