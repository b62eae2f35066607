package membership

import (
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type recorder struct {
	mu     sync.Mutex
	events []Event
	text   strings.Builder
}

func (r *recorder) event(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *recorder) logged(s string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Contains(r.text.String(), s)
}

func (r *recorder) has(kind EventKind, node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == kind && e.Member.Name == node {
			return true
		}
	}
	return false
}

func config(name string, r *recorder, join ...string) Config {
	return Config{
		Cluster: "lab", Node: name, Listen: "127.0.0.1:0", Join: join, Probe: 50 * time.Millisecond,
		Meta:    Meta{ID: "id-" + name, Kind: KindData, Peer: "127.0.0.1:1", API: "127.0.0.1:2", ISCSI: []string{"127.0.0.1:3"}},
		OnEvent: r.event, Logger: slog.New(slog.NewTextHandler(r, nil)),
	}
}

func start(t *testing.T, c Config) *Membership {
	t.Helper()
	m, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// eventually polls: gossip tells nobody when it has converged.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("still not so after 20 s: %s", what)
}

func TestNodesFindEachOtherUpdateLeaveAndDie(t *testing.T) {
	var ra, rb, rc recorder
	a := start(t, config("a", &ra))
	b := start(t, config("b", &rb, a.Address()))
	c := start(t, config("c", &rc, a.Address()))
	for _, m := range []*Membership{a, b, c} {
		eventually(t, "everybody knows two others", func() bool { return len(m.Members()) == 2 })
	}
	got, ok := c.Lookup("b")
	if !ok || !reflect.DeepEqual(got, Member{Name: "b", Gossip: b.Address(), Meta: b.cfg.Meta}) {
		t.Fatalf("%+v", got)
	}
	meta := b.cfg.Meta
	meta.PortGroup, meta.FreeRAMBytes = 7, 3<<20
	if err := b.Update(meta); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c sees b's news", func() bool {
		x, _ := c.Lookup("b")
		return x.Meta.PortGroup == 7 && x.Meta.FreeRAMBytes == 3<<20 && rc.has(Updated, "b")
	})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b has left", func() bool { return ra.has(Left, "b") && rc.has(Left, "b") })
	if _, ok := a.Lookup("b"); ok {
		t.Fatal("b is still there")
	}
	// c dies without a word.
	if err := c.end(false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c is dead", func() bool { return ra.has(Died, "c") })
	if ra.has(Died, "b") || ra.has(Left, "c") {
		t.Fatal("leaving and dying are mixed up")
	}
}

func TestNodeStartedFirstIsFoundLater(t *testing.T) {
	var ra, rb recorder
	probe := start(t, config("probe", &recorder{}))
	address := probe.Address() // a port that is free in a moment
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	a := start(t, config("a", &ra, address))
	conf := config("b", &rb)
	conf.Listen = address
	b := start(t, conf)
	eventually(t, "a has found b by itself", func() bool { return len(a.Members()) == 1 && len(b.Members()) == 1 })
}

func TestClustersDoNotMerge(t *testing.T) {
	var ra, rb recorder
	a := start(t, config("a", &ra))
	conf := config("b", &rb, a.Address())
	conf.Cluster = "other"
	b := start(t, conf)
	if _, err := b.list.Join([]string{a.Address()}); err == nil {
		t.Fatal("a node of another cluster was let in")
	}
	if len(a.Members())+len(b.Members()) != 0 {
		t.Fatalf("%v %v", a.Members(), b.Members())
	}
}

func TestNameWithAnotherIDIsIgnoredLoudly(t *testing.T) {
	var ra, rb recorder
	conf := config("a", &ra)
	conf.Known = func(node string) (string, bool) { return "id-of-the-real-b", node == "b" }
	a := start(t, conf)
	start(t, config("b", &rb, a.Address()))
	eventually(t, "the refusal is logged", func() bool { return ra.logged("level=ERROR") && ra.logged("id-of-the-real-b") })
	if len(a.Members()) != 0 {
		t.Fatalf("%+v", a.Members())
	}
}

func TestMetaSurvivesTheWire(t *testing.T) {
	text := rapid.StringN(0, 30, 40)
	rapid.Check(t, func(t *rapid.T) {
		m := Meta{
			ID: text.Draw(t, "id"), Kind: rapid.SampledFrom([]Kind{KindData, KindWitness}).Draw(t, "kind"), PortGroup: rapid.Uint16().Draw(t, "group"),
			Peer: text.Draw(t, "peer"), API: text.Draw(t, "api"), FreeFileBytes: uint64(rapid.Uint32().Draw(t, "file")) << 20, FreeRAMBytes: uint64(rapid.Uint32().Draw(t, "ram")) << 20,
			FreeSSDBytes: uint64(rapid.Uint32().Draw(t, "ssd")) << 20, FreeHDDBytes: uint64(rapid.Uint32().Draw(t, "hdd")) << 20,
		}
		for range rapid.IntRange(0, 8).Draw(t, "portals") {
			m.ISCSI = append(m.ISCSI, text.Draw(t, "portal"))
		}
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		fits := len(b) <= maxMeta-len("a later program's field")
		if !fits { // classes may have been left out for want of room
			m.FreeSSDBytes, m.FreeHDDBytes = 0, 0
			if c, err := decodeMeta(b); err == nil {
				m.FreeSSDBytes, m.FreeHDDBytes = c.FreeSSDBytes, c.FreeHDDBytes
			}
		}
		later := b
		if fits {
			later = append(slices.Clone(b), "a later program's field"...)
		}
		got, err := decodeMeta(later)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%+v came back as %+v, %v", m, got, err)
		}
		for n := range len(b) - classBytes {
			if _, err := decodeMeta(b[:n]); err == nil {
				t.Fatalf("read from %d of %d bytes", n, len(b))
			}
		}
	})
}

// A program before classes ends behind the portals; one with addresses as long as they may be has no room for classes.
func TestMetaWithoutClassesIsUnderstood(t *testing.T) {
	m := Meta{ID: "id", Kind: KindData, Peer: "p", API: "a", FreeFileBytes: 5 << 20, FreeSSDBytes: 3 << 20, FreeHDDBytes: 5 << 20}
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	m.FreeSSDBytes, m.FreeHDDBytes = 0, 0
	if got, err := decodeMeta(b[:len(b)-classBytes]); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, %v", got, err)
	}
	m.FreeSSDBytes, m.Peer, m.API = 3<<20, strings.Repeat("p", 240), strings.Repeat("a", 250)
	b, err = m.encode()
	if err != nil {
		t.Fatalf("addresses that fitted before classes do not any more: %v", err)
	}
	if got, err := decodeMeta(b); err != nil || got.Peer != m.Peer || got.FreeFileBytes != 5<<20 || got.FreeSSDBytes != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// The length of a field is one byte, and 255 its largest value.
func TestMetaTakesAddressesOfEveryLengthAByteCanSay(t *testing.T) {
	for n := range 256 {
		m := Meta{ID: "id", Kind: KindData, Peer: strings.Repeat("p", n), API: "a"}
		b, err := m.encode()
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if got, err := decodeMeta(b); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%d bytes: read as %+v, %v", n, got, err)
		}
		if _, err := decodeMeta(b[:headBytes+3+n]); err == nil {
			t.Fatalf("%d bytes: understood though cut off", n)
		}
	}
}

func TestMetaThatDoesNotFitIsRefusedAtTheSource(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, m := range []Meta{
		{Kind: KindData, ID: long, Peer: long, API: long},
		{Kind: KindData, ISCSI: make([]string, 17)},
		{Kind: KindData, Peer: strings.Repeat("x", 256)},
	} {
		if _, err := m.encode(); err == nil {
			t.Fatalf("encoded %+v", m)
		}
	}
	if _, err := decodeMeta([]byte{2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}); err == nil {
		t.Fatal("understood another version")
	}
}

func FuzzDecodeMeta(f *testing.F) {
	b, _ := Meta{ID: "i", Kind: KindData, Peer: "p", API: "a", ISCSI: []string{"s"}}.encode()
	f.Add(b)
	b, _ = Meta{ID: "i", Kind: KindData, Peer: strings.Repeat("p", 255), API: "a"}.encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			t.Fatalf("%x was read as %+v, which does not encode: %v", b, m, err)
		}
		if same, err := decodeMeta(again); err != nil || !reflect.DeepEqual(same, m) {
			t.Fatalf("%x was read as %+v, which is %x, read as %+v (%v)", b, m, again, same, err)
		}
	})
}
