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
//
// That takes a checkpoint, and for one Raft's goroutine is needed, which waits while entries do. So what is to be stored is counted before Raft has it (Log.Admit),
// and let through only if it fits into the segments that are ready with all that is on its way: by the time it is known that there is no room
// for another segment that can be more than is left of this one.

const (
	// reserveShare is the part of a segment that is kept: 16 MiB of 128.
	reserveShare = 8
	// tightFor is how long after the last time without room an operator is told of it: it comes and goes with every segment.
	tightFor = time.Minute
)

// reserve is how much of the last segment is kept now, in bytes. Called with mu held.
func (j *Journal) reserve(s *segment) int64 {
	if j.hasNext(s) {
		return 0
	}
	return s.bytes / reserveShare
}

// hasNext says whether the segment behind s is ready. Called with mu held.
func (j *Journal) hasNext(s *segment) bool { return j.spare != nil && j.spare.sequence == s.sequence+1 }

// leave notes how much of the last segment is left. Called with mu held, by whoever leads.
func (j *Journal) leave(s *segment) { j.left.Store(s.bytes - j.head.at - 2*s.bytes/reserveShare) }

// makesRoom says whether a request may use the reserve, and go before others. Nothing of its group depends on whether it does: what is cut off at the front is
// durable, and each key of the stable store is set by one caller at a time, who waits. A group that is not known yet has its name in a request that
// waits; and the journal's end (a marker) is behind everything. Called with mu held.
func (j *Journal) makesRoom(r *request) bool {
	return r.moved || len(r.records) > 0 && !slices.ContainsFunc(r.records, func(rec record) bool {
		switch rec.kind {
		case kindFront, kindForget, kindStable:
			return j.index.groups[rec.group] == nil
		}
		return true
	})
}

// goOn begins the segment behind one that is sealed, at a start. Without room for it the journal starts all the same: what is in it can be read, and whatever is to be
// stored waits for the next segment. There is no reserve in one that is sealed, so that is true of votes and of what cuts logs off, too: only room that somebody
// else makes helps.
func (j *Journal) goOn(last *segment) error {
	j.making.Lock()
	defer j.making.Unlock()
	next, err := j.pick(last.sequence + 1)
	if errors.Is(err, vfs.ErrNoSpace) {
		j.strain(err)
		j.mu.Lock()
		j.head.at = last.bytes // nothing fits
		j.leave(last)
		j.mu.Unlock()
		return nil
	}
	if err != nil {
		return err
	}
	return j.begin(next)
}

// awaitRoom makes the next segment, or waits for a moment if that cannot be.
func (j *Journal) awaitRoom() error {
	j.ahead.Store(true)
	if _, err := j.prepare(); err != nil {
		return j.noRoom(err)
	}
	return nil
}

// noRoom waits if err says that there is no room, until there may be or something has come that makes some; if it says anything else, or the journal is
// being closed, it returns err.
func (j *Journal) noRoom(err error) error {
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed || !errors.Is(err, vfs.ErrNoSpace) {
		return err
	}
	j.strain(err)
	j.poke()           // the janitor empties what it can
	j.writing.Store(0) // it is not the disk that is slow
	timer := time.NewTimer(j.opts.noRoomPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-j.hurried:
	}
	return nil
}

// hurry has whoever waits for room look again.
func (j *Journal) hurry() {
	select {
	case j.hurried <- struct{}{}:
	default:
	}
}

// Tight says that the file system has had no room for the next segment, within the last minute.
func (j *Journal) Tight() bool {
	at := j.strained.Load()
	return j.tight.Load() || at != 0 && time.Since(j.opened)-time.Duration(at) < tightFor
}

// takes says whether entries would be stored now. Well before the reserve it says no: what others have on its way by then still finds room.
func (j *Journal) takes() bool { return !j.tight.Load() || j.left.Load() > 0 }

// Cost is what entries may take in a segment, in bytes: each in a frame of its own, with its directory. bytes is what they carry.
func Cost(entries int, bytes int64) int64 { return bytes + int64(entries)*2*blockBytes }

// cost is what the request may take in a segment, in bytes.
func (r *request) cost() (bytes int64) {
	for i := r.next; i < len(r.records); i++ {
		bytes += r.records[i].payloadBytes()
	}
	return Cost(len(r.records)-r.next, bytes)
}

// keep makes queue what has not been taken. Called with mu held.
func (j *Journal) keep(queue []*request) {
	var bytes int64
	for _, r := range queue {
		bytes += r.cost()
	}
	j.queue = queue
	j.queued.Store(bytes)
}

// admit is takes for what others have on its way too. Where that has all there is it is not too large for the next segment, however small that is.
func (j *Journal) admit(bytes int64) bool {
	way, next := j.onWay.Add(bytes), j.next.Load()
	if way <= j.left.Load()+next-j.queued.Load() || way == bytes && next > 0 && j.queued.Load() == 0 || j.Failed() != nil {
		return true // a journal that has failed says so to whoever stores something
	}
	j.onWay.Add(-bytes)
	if next == 0 && !j.ahead.Swap(true) {
		j.poke()
	}
	return false
}

// strain notes that there is no room for the next segment.
func (j *Journal) strain(err error) {
	if !j.Tight() {
		j.opts.Logger.Error("the journal's file system is full: logs are cut off as far as can be, and writes to LUNs with a copy here may have to wait until there is room", "error", err)
	}
	j.strained.Store(int64(time.Since(j.opened)))
	j.tight.Store(true)
}
