package guest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"sanctuary/node/api"
)

// host is an initiator with a name of its own in the guest (an open-iscsi interface) and the product's record of it, whose target
// presents every LUN granted to it.
type host struct {
	l    *lab
	name string // of both, the interface and the record
	spec api.HostSpec
	iqn  string // target
}

// granted is a LUN in the host's map, and what it is in the guest.
type granted struct {
	lun    api.LUN
	number int
}

func (g granted) wwid() string { return "3" + strings.ToLower(g.lun.NAA) }
func (g granted) dev() string  { return "/dev/mapper/" + g.wwid() }

// host makes both; they are gone when the test ends.
func (l *lab) host(t *testing.T, name string, spec api.HostSpec) *host {
	t.Helper()
	h, err := l.cluster.api.SetHost(t.Context(), name, spec, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := l.cluster.api.DeleteHost(context.Background(), name, true)
		var p *api.Problem
		if err != nil && (!errors.As(err, &p) || p.Status != http.StatusNotFound) {
			t.Errorf("delete host %s: %v", name, err)
		}
	})
	l.vm.sh(t, "iscsiadm -m iface -I %s -o new && iscsiadm -m iface -I %[1]s -o update -n iface.initiatorname -v %s && iscsiadm -m iface -I %[1]s -o update -n iface.transport_name -v tcp",
		name, spec.Initiators[0])
	t.Cleanup(func() { l.vm.again(t, "iscsiadm -m iface -I %s -o delete", name) })
	return &host{l: l, name: name, spec: spec, iqn: h.Target}
}

// grant makes a LUN only this host may use. Whoever logs in to it does so afterwards: it goes when the sessions have gone.
func (h *host) grant(t *testing.T, name string, bytes int64) granted {
	t.Helper()
	g := h.later(t, name, bytes)
	h.allow(t, &g)
	return g
}

// later makes a LUN nobody may use yet.
func (h *host) later(t *testing.T, name string, bytes int64) granted {
	t.Helper()
	return granted{lun: h.l.create(t, api.LUNSpec{Name: name, SizeBytes: bytes})}
}

// allow lets the host use a LUN.
func (h *host) allow(t *testing.T, g *granted) {
	t.Helper()
	lun, err := h.l.cluster.api.GrantLUN(t.Context(), g.lun.Name, h.name, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range lun.Access.Hosts {
		if a.Host == h.name {
			g.number = int(a.Number)
			return
		}
	}
	t.Fatalf("LUN %s is not granted to %s: %+v", lun.Name, h.name, lun.Access)
}

// discover returns what discovery at a node shows this host. Settings, as key and value, come first.
func (h *host) discover(t *testing.T, node string) result {
	t.Helper()
	return h.l.vm.try(t, "iscsiadm -m discovery -t sendtargets -I %s -p %s", h.name, h.l.cluster.portals[node])
}

// set changes settings of the node records of the host's target: key, value, key, value...
func (h *host) set(t *testing.T, settings ...string) {
	t.Helper()
	var script strings.Builder
	for i := 0; i+1 < len(settings); i += 2 {
		fmt.Fprintf(&script, "iscsiadm -m node -T %s -I %s -o update -n %s -v '%s'\n", h.iqn, h.name, settings[i], settings[i+1])
	}
	h.l.vm.sh(t, "%s", script.String())
}

// login discovers the host's target and logs in at every node, with settings as for set.
func (h *host) login(t *testing.T, settings ...string) {
	t.Helper()
	if r := h.discover(t, alpha); r.Status != 0 || !strings.Contains(r.Out, h.iqn) {
		t.Fatalf("discovery does not show %s to its host: status %d: %s%s", h.iqn, r.Status, r.Out, r.Err)
	}
	h.set(t, settings...)
	t.Cleanup(func() { h.logout(t) })
	h.l.vm.sh(t, "iscsiadm -m node -T %s -I %s --login", h.iqn, h.name)
}

func (h *host) logout(t *testing.T) {
	t.Helper()
	lines := h.l.vm.again(t, `for s in /sys/class/iscsi_session/session*; do
	[ "$(cat $s/targetname 2>/dev/null)" = %s ] && ls $s/device/target*/*/block/ | grep sd
done; true`, h.iqn)
	for _, sd := range strings.Fields(lines) {
		if !strings.HasPrefix(sd, "sd") {
			continue
		}
		h.l.vm.again(t, `map=$(multipathd show paths raw format "%%d %%m" | sed -n 's/^%s //p' | sed 's/[][]//g')
[ -z "$map" ] || [ ! -e /dev/mapper/$map ] || multipathd disablequeueing map $map >/dev/null
[ -z "$map" ] || [ ! -e /dev/mapper/$map ] || timeout 60 sh -c "until multipath -f $map; do sleep 0.2; done"`, sd)
	}
	h.l.vm.again(t, "timeout 60 iscsiadm -m node -T %s -I %s --logout; iscsiadm -m node -T %[1]s -I %[2]s -o delete", h.iqn, h.name)
}

// path waits for a LUN of the host, and returns its disk behind one node as sdX and sgN.
func (h *host) path(t *testing.T, g granted, node string) path {
	t.Helper()
	_, port, _ := strings.Cut(h.l.cluster.portals[node], ":")
	var p path
	h.l.soon(t, fmt.Sprintf("LUN %d of host %s through %s", g.number, h.name, node), func() error {
		r := h.l.vm.try(t, `for s in /sys/class/iscsi_session/session*; do
	[ "$(cat $s/targetname)" = %s ] || continue
	[ "$(cat $s/device/connection*/iscsi_connection/connection*/persistent_port)" = %s ] || continue
	cd $s/device/target*/*:*:*:%d && echo $(ls block) $(ls scsi_generic)
done`, h.iqn, port, g.number)
		f := strings.Fields(r.Out)
		if len(f) != 2 {
			return fmt.Errorf("no such disk: %s%s", r.Out, r.Err)
		}
		p = path{sd: "/dev/" + f[0], sg: "/dev/" + f[1]}
		return nil
	})
	return p
}

// sg is the LUN behind the node that owns it; it also waits for the map over all nodes.
func (h *host) sg(t *testing.T, g granted) string {
	t.Helper()
	h.l.soon(t, "map of "+g.lun.Name, func() error {
		if out := h.l.vm.try(t, "test -e %s && multipathd show map %s topology", g.dev(), g.wwid()).Out; strings.Count(out, "active") < 2 {
			return fmt.Errorf("not yet two paths:\n%s", out)
		}
		return nil
	})
	return h.path(t, g, h.l.lun(t, g.lun.Name).Owner).sg
}

// TestHostSeesItsOwnLUNsOnly: nobody else finds the host's target, a stranger's login is refused, and what is granted later appears.
func TestHostSeesItsOwnLUNsOnly(t *testing.T) {
	l := useLab(t)
	h := l.host(t, "mine", api.HostSpec{Initiators: []string{initiatorName + "-mine"}})
	g, second := h.grant(t, "granted", 64*mib), h.later(t, "granted-later", 64*mib)
	stranger := l.vm.try(t, "iscsiadm -m discovery -t sendtargets -I default -o nonpersistent -p %s", l.cluster.portals[alpha])
	if strings.Contains(stranger.Out, h.iqn) || strings.Contains(stranger.Out, g.lun.IQN) {
		t.Errorf("discovery shows a stranger what is not for it:\n%s", stranger.Out)
	}
	h.login(t)
	h.sg(t, g)
	l.vm.sh(t, "dd if=/dev/urandom of=%s bs=64k count=4 oflag=direct status=none", g.dev())
	h.allow(t, &second)
	if second.number == g.number {
		t.Fatalf("two LUNs of one host have number %d", g.number)
	}
	l.vm.sh(t, "iscsiadm -m session --rescan")
	h.sg(t, second)
	r := l.vm.try(t, `iscsiadm -m node -T %s -p %s -I default -o new && iscsiadm -m node -T %[1]s -I default --login; status=$?
iscsiadm -m node -T %[1]s -I default -o delete; exit $status`, h.iqn, l.cluster.portals[alpha])
	if r.Status == 0 {
		t.Errorf("a stranger logs in to the target of host %s", h.name)
	}
}

const (
	secret       = "one-way-secret-16"
	mutualSecret = "mutual-secret-17"
)

// TestCHAP: one-way and mutual, each with the right secret and with a wrong one, for discovery and for login.
func TestCHAP(t *testing.T) {
	l := useLab(t)
	discovery := func(iface, node, user, password string) result {
		return l.vm.try(t, `iscsiadm -m discoverydb -t sendtargets -p %[2]s -I %[1]s -o new >/dev/null
update() { iscsiadm -m discoverydb -t sendtargets -p %[2]s -o update -n "$1" -v "$2"; }
update discovery.sendtargets.auth.authmethod CHAP
update discovery.sendtargets.auth.username %[3]s
update discovery.sendtargets.auth.password %[4]s
iscsiadm -m discoverydb -t sendtargets -p %[2]s -I %[1]s --discover
status=$?
[ $status = 0 ] || iscsiadm -m discoverydb -t sendtargets -p %[2]s -o delete # and with it the records it made
exit $status`, iface, l.cluster.portals[node], user, password)
	}
	for _, c := range []struct {
		name string
		chap api.CHAPSpec
		// settings of a login that is right; wrong ones are made of them
		settings []string
	}{
		{"one-way", api.CHAPSpec{User: "guest-one", Secret: secret}, []string{
			"node.session.auth.authmethod", "CHAP", "node.session.auth.username", "guest-one", "node.session.auth.password", secret,
		}},
		{"mutual", api.CHAPSpec{User: "guest-two", Secret: secret, MutualUser: "the-target", MutualSecret: mutualSecret}, []string{
			"node.session.auth.authmethod", "CHAP", "node.session.auth.username", "guest-two", "node.session.auth.password", secret,
			"node.session.auth.username_in", "the-target", "node.session.auth.password_in", mutualSecret,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := l.host(t, "chap-"+c.name, api.HostSpec{Initiators: []string{initiatorName + "-" + c.name}, CHAP: &c.chap})
			g := h.grant(t, "chap-"+c.name, 64*mib)
			if r := h.discover(t, alpha); r.Status == 0 && strings.Contains(r.Out, h.iqn) {
				t.Errorf("discovery without proof shows the target:\n%s", r.Out)
			}
			if r := discovery(h.name, alpha, c.chap.User, "a-wrong-secret"); r.Status == 0 {
				t.Errorf("discovery with a wrong secret succeeds:\n%s", r.Out)
			}
			if r := discovery(h.name, alpha, c.chap.User, secret); r.Status != 0 || !strings.Contains(r.Out, h.iqn) {
				t.Fatalf("discovery with the right secret: status %d: %s%s", r.Status, r.Out, r.Err)
			}
			t.Cleanup(func() { h.logout(t) })
			login := func(settings []string) result {
				t.Helper()
				h.set(t, settings...)
				return l.vm.try(t, "iscsiadm -m node -T %s -I %s --login", h.iqn, h.name)
			}
			if r := login([]string{"node.session.auth.authmethod", "None"}); r.Status == 0 {
				t.Error("a login without proof succeeds")
			}
			for i := 1; i < len(c.settings); i += 2 {
				if !strings.Contains(c.settings[i-1], "password") {
					continue
				}
				wrong := append([]string(nil), c.settings...)
				wrong[i] = "not-the-secret-at-all"
				if r := login(wrong); r.Status == 0 {
					t.Errorf("a login with a wrong %s succeeds", wrong[i-1])
				}
			}
			if r := login(c.settings); r.Status != 0 {
				t.Fatalf("login with the right secrets: status %d: %s%s", r.Status, r.Out, r.Err)
			}
			h.sg(t, g)
			l.vm.sh(t, "dd if=/dev/urandom of=%s bs=64k count=4 oflag=direct status=none", g.dev())
		})
	}
	// With MD5 off: as target client-config says, records made one by one, and all algorithms offered.
	t.Run("without MD5", func(t *testing.T) {
		h := l.host(t, "chap-sha", api.HostSpec{Initiators: []string{initiatorName + "-sha"}, CHAP: &api.CHAPSpec{User: "guest-sha", Secret: secret}})
		g := h.grant(t, "chap-sha", 64*mib)
		set := func(algorithms string) {
			if _, err := l.cluster.api.SetSettings(context.Background(), map[string]string{"chap.algorithms": algorithms}); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { set("") })
		set("sha3-256,sha-256")
		if r := discovery(h.name, alpha, "guest-sha", secret); r.Status == 0 {
			t.Errorf("open-iscsi discovers without MD5: client-config need not make records one by one any more:\n%s", r.Out)
		}
		for _, node := range []string{alpha, beta} {
			l.vm.sh(t, "iscsiadm -m node -o new -T %s -p %s -I %s", h.iqn, l.cluster.portals[node], h.name)
		}
		t.Cleanup(func() { h.logout(t) })
		login := func(settings ...string) result {
			h.set(t, append([]string{
				"node.session.auth.authmethod", "CHAP", "node.session.auth.username", "guest-sha", "node.session.auth.password", secret,
			}, settings...)...)
			return l.vm.try(t, "iscsiadm -m node -T %s -I %s --login", h.iqn, h.name)
		}
		if r := login(); r.Status == 0 {
			t.Error("a login with MD5 succeeds")
		}
		if r := login("node.session.auth.chap_algs", "SHA3-256,SHA256,SHA1,MD5"); r.Status != 0 {
			t.Fatalf("login without MD5: status %d: %s%s", r.Status, r.Out, r.Err)
		}
		h.sg(t, g)
	})
}

// TestDigestsOnEveryPath: CRC32C over headers and data, on both nodes, with every block verified.
func TestDigestsOnEveryPath(t *testing.T) {
	l := useLab(t)
	h := l.host(t, "digests", api.HostSpec{Initiators: []string{initiatorName + "-digests"}})
	g := h.grant(t, "digests", 64*mib)
	h.login(t, "node.conn[0].iscsi.HeaderDigest", "CRC32C", "node.conn[0].iscsi.DataDigest", "CRC32C")
	h.sg(t, g)
	out := l.vm.sh(t, `for s in /sys/class/iscsi_session/session*; do
	[ "$(cat $s/targetname)" = %s ] && echo $(cat $s/device/connection*/iscsi_connection/connection*/header_digest $s/device/connection*/iscsi_connection/connection*/data_digest)
done`, h.iqn)
	if strings.Count(out, "1 1") != 2 {
		t.Fatalf("digests were not agreed on with both nodes:\n%s", out)
	}
	l.vm.sh(t, `fio --name=verify --filename=%s --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=512-256k --blockalign=512 --size=16m --io_size=8m \
--verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse >/dev/null`, g.dev())
	for _, s := range l.sessions(t, h.iqn) {
		if !s.HeaderDigest || !s.DataDigest {
			t.Errorf("the session at %s has no digests by the product's account: %+v", s.Node, s)
		}
	}
}

// sessions are the product's account of who uses a target.
func (l *lab) sessions(t *testing.T, iqn string) (of []api.Session) {
	t.Helper()
	all, err := l.cluster.api.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all.Sessions {
		if s.Target == iqn {
			of = append(of, s)
		}
	}
	if len(of) != 2 {
		t.Fatalf("%d sessions of %s by the product's account, want one at each node: %+v", len(of), iqn, all)
	}
	return of
}
