package membership

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/hashicorp/memberlist"
)

// delegate is Membership as memberlist calls it: with locks of its own held, so nothing here may call memberlist or block.
type delegate Membership

func (d *delegate) NodeMeta(limit int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.meta) > limit {
		return nil // maxMeta is memberlist's limit: unreachable
	}
	return d.meta
}

// NotifyMsg takes the goodbye of a node, and the answer to our own. memberlist itself tells apart who left and who died, but not to
// its delegates. If the goodbye is lost, the node counts as dead, which is no harm.
func (d *delegate) NotifyMsg(b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if name, ok := strings.CutPrefix(string(b), goodbyePrefix); ok {
		if _, up := d.members[name]; up && !d.leaving[name] {
			d.leaving[name] = true
			d.answer = append(d.answer, name)
			(*Membership)(d).stir()
		}
	}
	if name, ok := strings.CutPrefix(string(b), heardPrefix); ok && d.unheard[name] {
		if delete(d.unheard, name); len(d.unheard) == 0 {
			close(d.heard)
		}
	}
	// Anything else is of a later program.
}

// The messages between nodes, each followed by the name of the node that sends it.
const (
	goodbyePrefix = "\x01L"
	heardPrefix   = "\x01H" // the receiver's goodbye
)

func (*delegate) GetBroadcasts(int, int) [][]byte { return nil }

func (*delegate) LocalState(bool) []byte { return nil }

func (*delegate) MergeRemoteState([]byte, bool) {}

// NotifyAlive keeps out what is not a node of ours: metadata that cannot be understood, and a name used by another ID than
// the one the catalog knows, or than the one that is up under that name.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.cfg.Node {
		return nil // conflicts over our own name are memberlist's to report
	}
	meta, err := decodeMeta(n.Meta)
	if err != nil {
		d.log.Warn("gossip: a node is ignored", "node", n.Name, "address", n.Address(), "reason", err)
		return err
	}
	d.mu.Lock()
	current, up := d.members[n.Name]
	d.mu.Unlock()
	want := ""
	if d.cfg.Known != nil {
		want, _ = d.cfg.Known(n.Name)
	}
	if want == "" && up {
		want = current.Meta.ID
	}
	if want != "" && want != meta.ID {
		d.log.Error("gossip: a node is ignored because its name belongs to another: start it under another name, or with its old disk",
			"node", n.Name, "address", n.Address(), "id", meta.ID, "known id", want)
		return fmt.Errorf("node %q at %s: %w", n.Name, n.Address(), errOtherIdentity)
	}
	return nil
}

func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.log.Error("gossip: two nodes use one name; the second is ignored: give one of them another",
		"node", existing.Name, "address", existing.Address(), "other address", other.Address())
}

func (d *delegate) NotifyJoin(n *memberlist.Node) { d.put(Joined, n) }

func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.put(Updated, n) }

func (d *delegate) put(kind EventKind, n *memberlist.Node) {
	if n.Name == d.cfg.Node {
		return
	}
	meta, err := decodeMeta(n.Meta)
	if err != nil {
		return // NotifyAlive has refused and logged it
	}
	x := Member{Name: n.Name, Gossip: n.Address(), Meta: meta}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members[n.Name] = x
	if kind == Joined {
		delete(d.leaving, n.Name)
	}
	(*Membership)(d).note(kind, x)
}

func (d *delegate) NotifyLeave(n *memberlist.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	x, ok := d.members[n.Name]
	if !ok {
		return
	}
	delete(d.members, n.Name)
	kind := Died
	if d.leaving[n.Name] {
		kind = Left
	}
	delete(d.leaving, n.Name)
	(*Membership)(d).note(kind, x)
}

// logWriter turns memberlist's lines, "[WARN] memberlist: text", into records. Its warnings are about single packets
// and probes, part of every restart of a peer: they are kept for debugging, errors are shown as warnings.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.HasPrefix(b, []byte("[ERR]")) {
		level = slog.LevelWarn
	}
	text := bytes.TrimSpace(b)
	if i := bytes.Index(text, []byte("memberlist: ")); i >= 0 {
		text = text[i+len("memberlist: "):]
	}
	w.log.Log(context.Background(), level, "gossip: "+string(text))
	return len(b), nil
}
