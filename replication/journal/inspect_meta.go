package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
	"go.etcd.io/bbolt"

	"sanctuary/blockstore/vfs"
)

// damagedError is what is wrong with a bbolt file.
type damagedError struct{ what string }

func (e *damagedError) Error() string { return e.what }

// readBolt returns the values of a bucket, of a copy in memory: bbolt would lock the file, and wait for whoever has it.
func readBolt(path, bucket string) (values map[string][]byte, err error) {
	copied, err := vfs.CopyToMemory(path)
	if err != nil {
		return nil, err
	}
	values = map[string][]byte{}
	err = guard(func() error {
		db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, OpenFile: func(string, int, os.FileMode) (*os.File, error) { return copied, nil }})
		if err != nil {
			_ = copied.Close() // bbolt may have done that
			return &damagedError{fmt.Sprintf("it cannot be opened: %v", err)}
		}
		viewed := db.View(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte(bucket))
			if b == nil {
				return &damagedError{fmt.Sprintf("it has no %q", bucket)}
			}
			return b.ForEach(func(key, value []byte) error {
				values[string(key)] = bytes.Clone(value)
				return nil
			})
		})
		return errors.Join(viewed, db.Close())
	})
	return values, err
}

// guard turns the panics of bbolt on a damaged file, and memory faults in its mapping, into errors.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &damagedError{fmt.Sprint(r)}
		}
	}()
	return fn()
}

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// readTable reads which segments there are. bbolt's pages have no checksums, but what does not decode is noticed, and what does is compared with the files.
func readTable(path string) (state types.PersistentState, err error) {
	values, err := readBolt(path, metadb.MetaBucket)
	if err != nil {
		return state, err
	}
	if raw, ok := values[metadb.MetaKey]; ok {
		if err := json.Unmarshal(raw, &state); err != nil {
			return state, &damagedError{fmt.Sprintf("the table of segments does not decode: %v", err)}
		}
	}
	return state, nil
}

func segmentName(i types.SegmentInfo) string { return segment.FileName(i) }

// segmentFiles returns the names of all segment files.
func segmentFiles(dir string) (map[string]struct{}, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := map[string]struct{}{}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), filepath.Ext(segmentName(types.SegmentInfo{}))) {
			names[f.Name()] = struct{}{}
		}
	}
	return names, nil
}

// flaws returns what is wrong with one line of the table of segments.
func flaws(state types.PersistentState, i int) (flaws []string) {
	add := func(format string, args ...any) { flaws = append(flaws, fmt.Sprintf(format, args...)) }
	s, last := state.Segments[i], i == len(state.Segments)-1
	sealed := !s.SealTime.IsZero()
	switch codec := (&wal.BinaryCodec{}).ID(); {
	case s.Codec != codec:
		add("segment %d is written with codec %d, not %d", s.ID, s.Codec, codec)
	case s.ID >= state.NextSegmentID:
		add("segment %d, the next one is to be %d", s.ID, state.NextSegmentID)
	case s.BaseIndex == 0 || s.MinIndex < s.BaseIndex || sealed && (s.MaxIndex < s.MinIndex || s.IndexStart == 0):
		add("segment %d has the entries %d to %d of those from %d on", s.ID, s.MinIndex, s.MaxIndex, s.BaseIndex)
	case !sealed && !last:
		add("segment %d is not closed, and not the last one", s.ID)
	case sealed && last:
		add("segment %d is the last one, and closed", s.ID)
	case i > 0 && state.Segments[i-1].MaxIndex+1 != s.BaseIndex:
		add("segment %d begins with entry %d, the one before it ends with %d", s.ID, s.BaseIndex, state.Segments[i-1].MaxIndex)
	}
	return flaws
}
