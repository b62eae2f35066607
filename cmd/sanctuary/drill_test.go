package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

// image is a disk in memory that can be made to misbehave.
type image struct {
	mu     sync.Mutex
	data   map[int64][]byte
	paused chan struct{} // I/O waits until it is closed; nil: it does not
	err    error
	// drop says whether to answer GOOD to a write and forget it.
	drop func(off int64) bool
	n    int
}

func (d *image) wait(ctx context.Context) error {
	d.mu.Lock()
	paused, err := d.paused, d.err
	d.mu.Unlock()
	if paused != nil {
		select {
		case <-paused:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (d *image) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.wait(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
	if d.drop == nil || !d.drop(off) {
		d.data[off] = bytes.Clone(p)
	}
	return nil
}

func (d *image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.wait(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(p)
	copy(p, d.data[off])
	return nil
}

func (d *image) Close() error { return nil }

// fakeStage is a cluster of two data nodes around one image.
type fakeStage struct {
	img        *image
	mu         sync.Mutex
	owner      string
	term       uint64
	down       map[string]bool
	noTakeover time.Duration // how long nobody takes over, and I/O stalls
	sameTerm   bool
	noHealing  bool
	onKill     func()
}

func newStage() *fakeStage {
	return &fakeStage{img: &image{data: map[int64][]byte{}}, owner: "alpha", term: 1, down: map[string]bool{}}
}

func (s *fakeStage) lun(context.Context) (api.LUN, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := api.LUN{
		Name: "demo", SizeBytes: 64 << 20, Owner: s.owner, Term: s.term, Health: api.HealthHealthy, View: api.View{Source: api.SourceOwner},
		Replicas: []api.Replica{{Node: "alpha", Role: api.RoleData}, {Node: "beta", Role: api.RoleData}, {Node: "witness", Role: api.RoleWitness}},
	}
	return l, nil
}

func (s *fakeStage) killNode(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down[name] = true
	if s.onKill != nil {
		s.onKill()
	}
	if s.noTakeover > 0 {
		paused := make(chan struct{})
		s.img.mu.Lock()
		s.img.paused = paused
		s.img.mu.Unlock()
		time.AfterFunc(s.noTakeover, func() { close(paused) })
		return nil
	}
	if !s.sameTerm {
		s.term++
	}
	s.owner = map[string]string{"alpha": "beta", "beta": "alpha"}[name]
	return nil
}

func (s *fakeStage) restart(name string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.down, name)
	return 2, nil
}

func (s *fakeStage) untilHealthy(ctx context.Context) (api.LUN, error) {
	s.mu.Lock()
	down := len(s.down)
	s.mu.Unlock()
	if s.noHealing || down > 0 {
		<-ctx.Done()
		return api.LUN{}, errors.New("degraded")
	}
	return s.lun(ctx)
}

func (s *fakeStage) open(context.Context, api.LUN, func(string)) (disk, error) { return s.img, nil }

var quick = rhythm{before: 20 * time.Millisecond, after: 5 * time.Millisecond, tail: 5 * time.Millisecond, limit: 5 * time.Second}

func drillOn(t *testing.T, s *fakeStage, kills int, pace rhythm) report {
	t.Helper()
	l, err := s.lun(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	r, err := runDrill(t.Context(), s, l, kills, pace, func(event) { shown++ })
	if err != nil {
		t.Fatal(err)
	}
	if shown != len(r.Timeline) {
		t.Errorf("%d events shown, %d in the report", shown, len(r.Timeline))
	}
	return r
}

func TestADrillOnASoundClusterHolds(t *testing.T) {
	r := drillOn(t, newStage(), 3, quick)
	if !r.Held || r.Kills != 3 || len(r.Interruptions) != 3 || r.Verified == 0 || r.Writes < r.Verified {
		t.Errorf("%+v", r)
	}
	text := ""
	for i, e := range r.Timeline {
		text += e.What + "\n"
		if i > 0 && e.At < 0 {
			t.Errorf("event before the start: %+v", e)
		}
	}
	for _, want := range []string{"load started", "owner alpha killed", "first I/O", "new owner beta", "alpha started again", "in sync again", "owner beta killed", "verified"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestADrillSeesWhatIsBroken(t *testing.T) {
	short := quick
	short.limit = 50 * time.Millisecond
	for name, tc := range map[string]struct {
		prepare func(*fakeStage)
		pace    rhythm
		want    string
	}{
		"a lost write": {func(s *fakeStage) {
			s.img.drop = func(int64) bool { return s.img.n%100 == 0 }
		}, quick, "is lost"},
		"old data after the takeover": {func(s *fakeStage) {
			s.onKill = func() { // the survivor has none of it
				s.img.mu.Lock()
				defer s.img.mu.Unlock()
				clear(s.img.data)
			}
		}, quick, "is lost"},
		"an I/O error": {func(s *fakeStage) {
			s.onKill = func() {
				s.img.mu.Lock()
				defer s.img.mu.Unlock()
				s.img.err = errors.New("medium error")
			}
		}, short, "medium error"},
		"two owners":    {func(s *fakeStage) { s.sameTerm = true }, quick, "one owner"},
		"no return":     {func(s *fakeStage) { s.noHealing = true }, short, "catches up"},
		"no owner left": {func(s *fakeStage) { s.owner = "" }, quick, "had none"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage()
			tc.prepare(s)
			r := drillOn(t, s, 1, tc.pace)
			if r.Held || !strings.Contains(strings.Join(r.Broken, "\n"), tc.want) {
				t.Errorf("held %v: %q", r.Held, r.Broken)
			}
		})
	}
}

func TestADrillSeesThatNobodyTakesOver(t *testing.T) {
	s := newStage()
	short := quick
	short.limit = 50 * time.Millisecond
	s.noTakeover = 2 * short.limit // until the drill has given up waiting
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, err := s.lun(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r, err := runDrill(ctx, s, l, 1, short, func(event) {})
	if err != nil || r.Held || !strings.Contains(strings.Join(r.Broken, "\n"), "takes over") {
		t.Errorf("held %v: %q, %v", r.Held, r.Broken, err)
	}
}

func TestADrillEndsWithItsContext(t *testing.T) {
	s := newStage()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := s.lun(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = runDrill(ctx, s, l, 1, quick, func(event) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestTheLedgerJudges(t *testing.T) {
	const run, lba = 77, 5
	content := func(seq uint64) []byte {
		p := make([]byte, block.Size)
		fillBlock(p, run, lba, seq)
		return p
	}
	damaged := func(at int) []byte {
		p := content(2)
		p[at] ^= 1
		return p
	}
	elsewhere := make([]byte, block.Size)
	fillBlock(elsewhere, run, lba+1, 2)
	earlier := make([]byte, block.Size)
	fillBlock(earlier, run-1, lba, 2)
	torn := append(bytes.Clone(content(2)[:2048]), content(3)[2048:]...)

	for name, tc := range map[string]struct {
		acked uint64 // of writes 1…3
		read  []byte
		bad   bool
	}{
		"the newest acknowledged":             {2, content(2), false},
		"a later one of unknown outcome":      {2, content(3), false},
		"an older one":                        {2, content(1), true},
		"nothing":                             {2, make([]byte, block.Size), true},
		"an earlier run's":                    {2, earlier, true},
		"one never made":                      {2, content(4), true},
		"damaged pattern":                     {2, damaged(2000), true},
		"damaged sequence":                    {2, damaged(24), true},
		"damaged checksum":                    {2, damaged(4095), true},
		"another block's":                     {2, elsewhere, true},
		"half of each":                        {2, torn, true},
		"nothing acknowledged, nothing there": {0, make([]byte, block.Size), false},
		"nothing acknowledged, an old run's":  {0, earlier, false},
		"nothing acknowledged, one of them":   {0, content(2), false},
		"nothing acknowledged, damaged":       {0, damaged(100), true},
	} {
		l := newLedger(run)
		p := make([]byte, block.Size)
		for range 3 {
			l.begin(lba, p)
		}
		if tc.acked > 0 {
			l.acknowledge(lba, tc.acked)
		}
		if err := l.judge(lba, tc.read); (err != nil) != tc.bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAValueThatWasReadMustNotGoAway(t *testing.T) {
	l := newLedger(1)
	one, two := make([]byte, block.Size), make([]byte, block.Size)
	l.acknowledge(9, l.begin(9, one))
	l.begin(9, two) // outcome unknown
	if err := l.judge(9, two); err != nil {
		t.Fatal(err)
	}
	if err := l.judge(9, one); err == nil {
		t.Error("a read went behind an earlier read")
	}
}

func TestOnlyIOBegunAfterTheKillEndsTheInterruption(t *testing.T) {
	l := &load{}
	early := time.Now()
	first := l.markNow()
	l.ended(t.Context(), &l.writes, early, nil, nil)
	select {
	case <-first:
		t.Fatal("an I/O that the old owner may have answered counts for the new one")
	default:
	}
	l.ended(t.Context(), &l.writes, time.Now().Add(time.Nanosecond), nil, nil)
	select {
	case <-first:
	default:
		t.Fatal("an I/O begun after the kill does not count")
	}
	if l.writes != 2 {
		t.Errorf("%d writes", l.writes)
	}
}

func TestTheDrillUsesEveryPortalTheOwnersFirst(t *testing.T) {
	l := sampleLUN()
	l.Owner, l.Number = "beta", 3
	var events []string
	cfg, err := multipathConfig(l, func(e string) { events = append(events, e) })
	if err != nil {
		t.Fatal(err)
	}
	want := []initiator.PathConfig{{Address: "10.0.0.2:3260", Target: l.IQN, LUN: 3}, {Address: "10.0.0.1:3260", Target: l.IQN, LUN: 3}}
	if !slices.Equal(cfg.Paths, want) {
		t.Errorf("%+v", cfg.Paths)
	}
	cfg.OnPath(initiator.PathEvent{Path: 1, What: initiator.PathLost, Err: errors.New("reset")})
	if !slices.Equal(events, []string{"to alpha (10.0.0.1:3260) lost: reset"}) {
		t.Errorf("%q", events)
	}
	l.Number = 1 << 16
	if _, err := multipathConfig(l, nil); err == nil {
		t.Error("a LUN number no initiator can address is accepted")
	}
	l.Number, l.Portals = 0, nil
	if _, err := multipathConfig(l, nil); err == nil {
		t.Error("a LUN without portals is accepted")
	}
}
