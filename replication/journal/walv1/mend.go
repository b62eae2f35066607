package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// raft-wal v0.4.2 takes nothing more for a segment in which it has seen an index, and closes one only right after it has written that
// index. So a log whose last segment has one when it is opened refuses every write, for ever. That is what a crash leaves
//
//   - between the write of the index and that of the table of segments, which follows on another goroutine: then the segment is whole, and
//     the table is told so here, as the library would have done;
//   - in the midst of the write of the index, if a later sector of it reached the disk and an earlier one did not: then that write does
//     not count, and what there is of it is wiped.
//
// Both are done before the library opens the log, and may be interrupted: the table is one transaction, and what is wiped does not count.

// mend makes the log in dir one that goes on, if a crash has left it as described.
func mend(dir string, table *metadb.BoltMetaDB) error {
	state, err := table.Load(dir)
	if err != nil || len(state.Segments) == 0 {
		return err
	}
	tail := &state.Segments[len(state.Segments)-1]
	if !tail.SealTime.IsZero() {
		return nil
	}
	path := filepath.Join(dir, segmentName(*tail))
	end, err := endOf(path, *tail)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // the library makes it
	case err != nil:
		return fmt.Errorf("read %s: %w", path, err)
	case end.strayIndex:
		return wipe(path, end.counts)
	case end.index == 0:
		return nil
	}
	tail.SealTime, tail.MaxIndex, tail.IndexStart = time.Now(), end.last, uint64(end.index)
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID: state.NextSegmentID, BaseIndex: end.last + 1, MinIndex: end.last + 1, SizeLimit: tail.SizeLimit, Codec: tail.Codec, CreateTime: time.Now(),
	})
	state.NextSegmentID++
	return table.CommitState(state)
}

// segmentEnd is where the last segment ends, as the library sees it when it opens the log.
type segmentEnd struct {
	counts     int64  // what lies behind counts for nothing
	last       uint64 // the last entry that counts
	index      int64  // offset of the index, behind its frame's header, if it counts; else 0
	strayIndex bool   // there is one that does not count
}

// endOf reads a segment through. As in the library, the last write counts if its checksum is right, or if another began behind it.
func endOf(path string, info types.SegmentInfo) (end segmentEnd, err error) {
	f, err := os.Open(path)
	if err != nil {
		return end, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := bufio.NewReaderSize(f, windowBytes)
	var (
		head                 [segmentHeader]byte
		off                  = int64(segmentHeader)
		entries, index       = uint64(0), int64(0) // seen so far
		before, final        = segmentEnd{counts: segmentHeader}, segmentEnd{counts: segmentHeader}
		finalRight, finalAll = true, uint64(0) // of the last write: its checksum, and the entries seen with it
	)
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return before, atEnd(err)
	}
	sum := crc32.Update(0, castagnoli, head[:])
	for {
		frame := head[:frameHeader]
		if _, err := io.ReadFull(r, frame); atEnd(err) != nil {
			return end, err
		} else if err != nil {
			break
		}
		typ, n := frame[0], binary.LittleEndian.Uint32(frame[4:])
		if typ == segment.FrameCommit {
			before = final
			final = segmentEnd{counts: off + frameHeader, last: info.BaseIndex + entries - 1, index: index}
			finalRight, finalAll = n == sum, entries
			sum, off = 0, off+frameHeader
			continue
		}
		if typ != segment.FrameEntry && typ != segment.FrameIndex || n > segment.MaxEntrySize {
			break
		}
		sum = crc32.Update(sum, castagnoli, frame)
		body := &summing{sum: sum}
		got, err := io.CopyN(body, r, int64(padded(int(n))))
		if atEnd(err) != nil {
			return end, err
		}
		// The library notes the frame before it finds that the file ends in it.
		if typ == segment.FrameEntry {
			entries++
		} else {
			index = off + frameHeader
		}
		if err != nil {
			break
		}
		sum, off = body.sum, off+frameHeader+got
	}
	end = final
	if !finalRight && finalAll == entries {
		end = before
	}
	end.strayIndex = index != 0 && end.index == 0
	return end, nil
}

// atEnd takes the end of a file for no error.
func atEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// summing is the CRC32C of what is written to it.
type summing struct{ sum uint32 }

func (s *summing) Write(b []byte) (int, error) {
	s.sum = crc32.Update(s.sum, castagnoli, b)
	return len(b), nil
}

// wipe makes a segment read as zeros from an offset on, durably.
func wipe(path string, from int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	zeros := make([]byte, windowBytes)
	for off := from; off < info.Size(); {
		n, err := f.WriteAt(zeros[:min(windowBytes, info.Size()-off)], off)
		if err != nil {
			return fmt.Errorf("wipe what was not written whole in %s: %w", path, err)
		}
		off += int64(n)
	}
	return f.Sync()
}
