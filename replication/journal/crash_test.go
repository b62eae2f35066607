package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
	"sanctuary/blockstore/vfs"
	"sanctuary/blockstore/vfs/crashdev"
)

// state is what a log may be found with.
type state struct {
	first, last uint64
	logs        map[uint64]*raft.Log
	stable      map[string]uint64
}

func (s state) clone() state {
	s.logs, s.stable = maps.Clone(s.logs), maps.Clone(s.stable)
	return s
}

func (s *state) append(logs []*raft.Log) {
	switch first := logs[0].Index; {
	case s.last == 0 || first > s.last+1 || first < s.first:
		s.logs, s.first = map[uint64]*raft.Log{}, first
	case first <= s.last:
		s.cutBack(first)
		if s.last == 0 {
			s.first = first
		}
	}
	for _, l := range logs {
		s.logs[l.Index] = l
	}
	s.last = logs[len(logs)-1].Index
}

func (s *state) cutBack(i uint64) {
	for ; s.last >= i && s.last >= s.first && s.last > 0; s.last-- {
		delete(s.logs, s.last)
	}
	if s.last < s.first {
		s.first, s.last = 0, 0
	}
}

func (s *state) cutFront(i uint64) {
	for ; s.first < i; s.first++ {
		delete(s.logs, s.first)
	}
}

// user is one group with random work, which knows what it may find after a power cut.
type user struct {
	name string
	rnd  *rand.Rand
	log  Log
	term uint64
	// acknowledged is what it was told; possible, what its last call may have made of that: any of them, in order.
	acknowledged state
	possible     []state
}

func newUser(name string, seed uint64) *user {
	return &user{name: name, rnd: rand.New(rand.NewPCG(seed, uint64(len(name)))), acknowledged: state{logs: map[uint64]*raft.Log{}, stable: map[string]uint64{}}}
}

// step does one thing.
func (u *user) step() error {
	a := &u.acknowledged
	u.possible = nil
	try := func(next state, f func() error) error {
		u.possible = append(u.possible, next)
		if err := f(); err != nil {
			return err
		}
		u.acknowledged, u.possible = next, nil
		return nil
	}
	switch k := u.rnd.IntN(20); {
	case k < 2:
		u.term++
		next := a.clone()
		next.stable["CurrentTerm"] = u.term
		return try(next, func() error { return u.log.SetUint64([]byte("CurrentTerm"), u.term) })
	case k == 2 && a.last > a.first+1:
		from := a.first + 1 + u.rnd.Uint64N(a.last-a.first)
		next := a.clone()
		next.cutBack(from)
		u.term++
		return try(next, func() error { return u.log.DeleteRange(from, a.last) })
	case k < 6 && a.last > a.first:
		to := a.first + u.rnd.Uint64N(a.last-a.first)
		next := a.clone()
		next.cutFront(to + 1)
		return try(next, func() error { return u.log.DeleteRange(a.first, to) })
	case k == 6 && u.rnd.IntN(8) == 0:
		next := a.clone()
		next.logs, next.first, next.last = map[uint64]*raft.Log{}, 0, 0
		return try(next, u.log.Reset)
	}
	from := a.last + 1
	switch {
	case a.last > 0 && u.rnd.IntN(30) == 0:
		from += 1000
	case a.last > a.first && u.rnd.IntN(10) == 0:
		from = a.last - u.rnd.Uint64N(a.last-a.first)
		u.term++
	}
	var logs []*raft.Log
	next := *a
	for i := range 1 + u.rnd.Uint64N(8) {
		data := make([]byte, u.rnd.IntN(12_000))
		binary.LittleEndian.PutUint64(append(data, make([]byte, 8)...)[:8], from+i)
		logs = append(logs, &raft.Log{Index: from + i, Term: u.term, Type: raft.LogCommand, Data: append(fmt.Appendf(nil, "%s %d %d", u.name, from+i, u.term), data...)})
		next = next.clone()
		next.append(logs[len(logs)-1:])
		u.possible = append(u.possible, next)
	}
	var err error
	if u.rnd.IntN(2) == 0 {
		err = u.log.StoreLogs(logs)
	} else if err = u.log.Append(logs); err == nil {
		err = u.log.AwaitDurable(logs[len(logs)-1].Index, nil)
	}
	if err == nil {
		u.acknowledged, u.possible = next, nil
	}
	return err
}

// differs says how what is found differs from a state.
func differs(l Log, s state) error {
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if first != s.first || last != s.last {
		return fmt.Errorf("log is %d..%d, not %d..%d", first, last, s.first, s.last)
	}
	for i := range s.logs {
		var got raft.Log
		if err := l.GetLog(i, &got); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if got.Term != s.logs[i].Term || !bytes.Equal(got.Data, s.logs[i].Data) {
			return fmt.Errorf("entry %d: it is another one, of term %d, not %d", i, got.Term, s.logs[i].Term)
		}
	}
	for key, want := range s.stable {
		if got, err := l.GetUint64([]byte(key)); got != want || err != nil {
			return fmt.Errorf("%s is %d, not %d (%v)", key, got, want, err)
		}
	}
	return nil
}

// check finds out which of the states that may be it is, and goes on from it.
func (u *user) check() error {
	err := differs(u.log, u.acknowledged)
	if err == nil {
		return nil
	}
	for i := len(u.possible) - 1; i >= 0; i-- {
		if differs(u.log, u.possible[i]) == nil {
			u.acknowledged = u.possible[i]
			return nil
		}
	}
	return fmt.Errorf("%s: %w (and none of %d states that its last call may have left)", u.name, err, len(u.possible))
}

// Several groups work at random; the power fails at a random moment, and the disk keeps any sectors of what was not synced. Afterwards everything that was acknowledged is there, and
// of a call that was under way a first part at most. Several times in a row on the same disk, and sometimes
// only the process is killed.
func TestNothingAcknowledgedIsLostInPowerCuts(t *testing.T) {
	seeds := uint64(150)
	if n, err := strconv.ParseUint(os.Getenv("JOURNAL_SEEDS"), 10, 64); err == nil {
		seeds = n
	}
	for seed := range seeds {
		powerCuts(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func powerCuts(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	power := crashdev.NewPower(int64(rnd.IntN(60)))
	folder := crashdev.NewFolder(power)
	users := []*user{newUser("a", seed), newUser("bb", seed), newUser("ccc", seed)}
	for life := range 5 {
		err := live(t, folder, power, users, rnd.IntN(2) == 0, rnd.IntN(2) == 0)
		if err != nil && !power.Lost() { // the janitor takes power, too, at any moment
			t.Errorf("life %d: %v", life, err)
			return
		}
		power = crashdev.NewPower(int64(rnd.IntN(400)))
		if rnd.IntN(3) == 0 {
			folder = folder.Clone(power) // the process was killed: what it had not synced is still there, and the power may fail later
		} else {
			folder = folder.CloneForCrash(rnd.Uint64(), power)
		}
	}
}

// live is one life of a process, until the power is lost or everybody has done enough; on a file system that is full, most of the time, if full.
func live(t *testing.T, folder *crashdev.Folder, power *crashdev.Power, users []*user, inOrder, full bool) error {
	opts := small
	opts.noRoomPause = 100 * time.Microsecond
	var made atomic.Uint64
	var opened atomic.Bool
	// Where nothing was ever stored there is perhaps no segment yet: then there has to be room for one.
	begun := slices.ContainsFunc(users, func(u *user) bool { return u.acknowledged.last > 0 || len(u.acknowledged.stable) > 0 })
	folder.SetHook(func(_ string, k crashdev.Kind, _, _ int64) error {
		if k == crashdev.Allocate && full && (begun || opened.Load()) && made.Add(1)%5 != 0 {
			return vfs.ErrNoSpace
		}
		return nil
	})
	j, err := Open(folder, opts)
	if err != nil {
		return err
	}
	opened.Store(true)
	defer func() { _ = j.Close() }()
	for _, u := range users {
		if u.log, err = j.Log(u.name); err != nil {
			return err
		}
		if err := u.check(); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	for _, u := range users {
		wg.Go(func() {
			for range 200 {
				if err := u.step(); err != nil {
					if !power.Lost() {
						t.Errorf("%s: %v", u.name, err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	if !power.Lost() && inOrder {
		for _, u := range users {
			_ = u.log.Close()
		}
	}
	return nil
}

// Every block of a journal goes bad in turn, in one of several ways. What is read afterwards is right, or said to be damaged; nothing is
// missing without a word, and no vote is forgotten.
func TestDamageAnywhereIsNoticed(t *testing.T) {
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	users := []*user{newUser("a", 5), newUser("bb", 6), newUser("ccc", 7)}
	for range 3 { // each life closes the journal: three ends of it
		j := mustOpen(t, folder, small)
		for _, u := range users {
			u.log = mustLog(t, j, u.name)
		}
		for range 12 {
			for _, u := range users {
				if err := u.step(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	names, _ := folder.List()
	entriesLost, groupsLost, blocks := 0, 0, 0
	for _, name := range names {
		size := folder.Dev(name).Size()
		for at := int64(0); at < size; at += blockBytes {
			if blank(t, folder.Dev(name), at) {
				continue
			}
			blocks++
			for way := range 3 {
				copied := folder.Clone(crashdev.NewPower(-1))
				spoil(t, copied.Dev(name), at, way)
				e, g := damaged(t, copied, users, fmt.Sprintf("%s, block %d, way %d", name, at/blockBytes, way))
				entriesLost, groupsLost = entriesLost+e, groupsLost+g
			}
		}
	}
	t.Logf("%d blocks: %d entries damaged, %d times a group that must begin anew", blocks, entriesLost, groupsLost)
	if entriesLost == 0 {
		t.Fatal("no entry was ever damaged")
	}
	if groupsLost > 0 {
		t.Fatalf("one bad block made a group unusable %d times", groupsLost)
	}
}

func blank(t *testing.T, d *crashdev.Dev, at int64) bool {
	b := make([]byte, blockBytes)
	if err := d.Clone(crashdev.NewPower(-1)).ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(b, make([]byte, blockBytes))
}

func spoil(t *testing.T, d *crashdev.Dev, at int64, way int) {
	switch way {
	case 0:
		d.FlipBit(at+17, 3)
		return
	case 1:
		d.FlipBit(at+3000, 3)
		return
	}
	if err := errors.Join(d.WriteAt(make([]byte, blockBytes), at), d.Sync()); err != nil {
		t.Fatal(err)
	}
}

// damaged opens a journal with one bad block.
func damaged(t *testing.T, folder *crashdev.Folder, users []*user, where string) (entriesLost, groupsLost int) {
	t.Helper()
	j, err := Open(folder, small)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	defer func() { _ = j.Close() }()
	for _, u := range users {
		l, err := j.Log(u.name)
		if errors.Is(err, ErrDamaged) {
			groupsLost++
			t.Logf("%s: %v", where, err)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		want := u.acknowledged
		first, _ := l.FirstIndex()
		last, _ := l.LastIndex()
		if first != want.first || last != want.last {
			t.Fatalf("%s: %s is %d..%d, not %d..%d", where, u.name, first, last, want.first, want.last)
		}
		for key, v := range want.stable {
			if got, _ := l.GetUint64([]byte(key)); got != v {
				t.Fatalf("%s: %s: %s is %d, not %d", where, u.name, key, got, v)
			}
		}
		for i, w := range want.logs {
			var got raft.Log
			err := l.GetLog(i, &got)
			var corrupt *block.CorruptError
			switch {
			case errors.As(err, &corrupt):
				entriesLost++
				if err := l.Mend(&raft.Log{Index: i, Term: w.Term, Type: w.Type, Data: []byte("another one")}); err == nil {
					t.Fatalf("%s: entry %d was mended with something else", where, i)
				}
				if err := l.Mend(w); err != nil {
					t.Fatalf("%s: %v", where, err)
				}
				if err := l.GetLog(i, &got); err != nil || !bytes.Equal(got.Data, w.Data) {
					t.Fatalf("%s: entry %d after it was mended: %v", where, i, err)
				}
			case err != nil:
				t.Fatalf("%s: entry %d: %v", where, i, err)
			case got.Term != w.Term || !bytes.Equal(got.Data, w.Data):
				t.Fatalf("%s: entry %d is another one", where, i)
			}
		}
		if left := l.Damaged(); len(left) > 0 {
			t.Fatalf("%s: still damaged: %v", where, left)
		}
	}
	return entriesLost, groupsLost
}

// The last batch before a pause is told apart from a torn end, though nobody closed the journal.
func TestDamageToTheLastBatchBeforeAPauseIsNoticed(t *testing.T) {
	opts := small
	opts.IdleAfter = 10 * time.Millisecond
	folder := crashdev.NewFolder(crashdev.NewPower(-1))
	j := mustOpen(t, folder, opts)
	l := mustLog(t, j, "a")
	mustStore(t, l, entries(1, 3, 1))
	wait(t, "a pause", j.marked.Load)
	mustStore(t, l, entries(4, 4, 1))
	wait(t, "a pause", func() bool { return j.marked.Load() && j.Stalled() == 0 })
	crashed := folder.CloneForCrash(1, crashdev.NewPower(-1))
	d := crashed.Dev(segmentName(1))
	b := make([]byte, minSegmentBytes)
	if err := d.Clone(crashdev.NewPower(-1)).ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	d.FlipBit(int64(bytes.Index(b, []byte("entry 4 of"))), 0)
	l = mustLog(t, mustOpen(t, crashed, small), "a")
	wantBounds(t, l, 1, 4)
	if lost := l.Damaged(); len(lost) != 1 || lost[0].Index != 4 {
		t.Fatalf("damaged: %v", lost)
	}
}
