package journal

import (
	"errors"
	"slices"
	"time"

	"sanctuary/blockstore/vfs"
)

// A journal whose file system is full helps itself, for what it needs is in its own files: segments are used again as soon as logs are cut off at the front. But
// to cut one off is a record too, and so is a vote. So as long as there is no next segment the last part of a segment is kept for what makes room
// and for what Raft must store to have an owner; entries wait, each in its order, and whoever owns a log is to cut it off (Log.Tight).

// reserveShare is the part of a segment that is kept: 16 MiB of 128.
const reserveShare = 8

// reserve is how much of the last segment is kept now, in bytes. Called with mu held.
func (j *Journal) reserve(s *segment) int64 {
	if j.spare != nil && j.spare.sequence == s.sequence+1 {
		return 0
	}
	return s.bytes / reserveShare
}

// leave notes how much of the last segment is left. Called with mu held, by whoever leads.
func (j *Journal) leave(s *segment) { j.left.Store(s.bytes - j.head.at - 2*s.bytes/reserveShare) }

// makesRoom says whether a request may use the reserve, and go before others: none of its group's depends on whether it does. A group that is not
// known yet has its name in a request that waits. Called with mu held.
func (j *Journal) makesRoom(r *request) bool {
	return !slices.ContainsFunc(r.records, func(rec record) bool {
		switch rec.kind {
		case kindFront, kindForget, kindStable, kindMoved, kindLost:
			return j.index.groups[rec.group] == nil
		}
		return true
	})
}

// awaitRoom makes the next segment, or pauses for a moment if that cannot be.
func (j *Journal) awaitRoom() error {
	j.ahead.Store(true)
	if _, err := j.prepare(); err != nil {
		return j.noRoom(err)
	}
	return nil
}

// noRoom pauses if err says that there is no room; if not, or if the journal is being closed, it returns err.
func (j *Journal) noRoom(err error) error {
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed || !errors.Is(err, vfs.ErrNoSpace) {
		return err
	}
	j.poke()           // the janitor says so, and empties what it can
	j.writing.Store(0) // it is not the disk that is slow
	time.Sleep(j.opts.noRoomPause)
	return nil
}

// Tight says that the file system has no room for the next segment.
func (j *Journal) Tight() bool { return j.tight.Load() }

// takes says whether entries would be stored now. Well before the reserve it says no: what others have on its way by then still finds room.
func (j *Journal) takes() bool { return !j.tight.Load() || j.left.Load() > 0 }

// strain notes that there is no room for the next segment.
func (j *Journal) strain(err error) {
	if !j.tight.Swap(true) {
		j.opts.Logger.Error("the journal's file system is full: logs are cut off as far as can be, and writes to LUNs with a copy here may have to wait until there is room", "error", err)
	}
}
