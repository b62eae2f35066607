package hostsetup

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata instead of comparing with it")

const iqn = "iqn.2026-11.local.sanctuary:"

var portals = []Portal{{Node: "alpha", Address: "10.0.0.1:3260", Tag: 1}, {Node: "beta", Address: "[fd00::2]:3261", Tag: 2}}

// setups are the shapes a host can have.
var setups = map[string]Setup{
	"open": {
		Cluster: "lab", Targets: []Target{{IQN: iqn + "vm1", Portals: portals, LUNs: []LUN{{0, "vm1", "6002534e000000000000000000000001", "10GiB"}}}},
	},
	"chap": {
		Cluster: "lab", Host: "h1", Initiators: []string{"iqn.1998-01.com.vmware:esx1-4a5b6c7d"}, CHAPUser: "user'1", MutualUser: "lab",
		Targets: []Target{{
			IQN: iqn + "host.lab.h1", Portals: portals,
			LUNs: []LUN{{0, "vm1", "6002534e000000000000000000000001", "10GiB"}, {7, "vm-2", "6002534e000000000000000000000002", "2TiB"}},
		}},
	},
	"sha": {
		Cluster: "lab", Host: "h1", CHAPUser: "h1", NoMD5: true,
		Targets: []Target{{IQN: iqn + "host.lab.h1", Portals: portals, LUNs: []LUN{{0, "vm1", "6002534e000000000000000000000001", "10GiB"}}}},
	},
	"single": {
		Cluster: "lab", Host: "q1", Initiators: []string{"iqn.2008-11.org.linux-kvm:a", "iqn.2008-11.org.linux-kvm:b"}, CHAPUser: "a,b", SinglePath: true,
		Targets: []Target{
			{IQN: iqn + "vm1", Portals: portals, LUNs: []LUN{{0, "vm1", "6002534e000000000000000000000001", "10GiB"}}},
			{IQN: iqn + "vm-2", Portals: portals[1:], LUNs: []LUN{{0, "vm-2", "6002534e000000000000000000000002", "2TiB"}}},
		},
	},
}

// each calls f with every client's text for every setup.
func each(t *testing.T, f func(t *testing.T, c Client, s Setup, text string)) {
	for name, s := range setups {
		for _, c := range Clients() {
			t.Run(name+"-"+string(c), func(t *testing.T) {
				text, err := Text(c, s)
				if err != nil {
					t.Fatal(err)
				}
				f(t, c, s, text)
			})
		}
	}
}

func TestTexts(t *testing.T) {
	each(t, func(t *testing.T, _ Client, _ Setup, text string) {
		_, name, _ := strings.Cut(t.Name(), "/")
		file := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("if this is meant, run the test with -update; got:\n%s\nwant:\n%s", text, want)
		}
		if strings.Contains(text, "<no value>") || strings.Contains(text, "\n\n\n") || !strings.HasSuffix(text, "\n") || strings.HasSuffix(text, "\n\n") {
			t.Error("the text has holes")
		}
		for l := range strings.SplitSeq(text, "\n") {
			if strings.TrimRight(l, " \t") != l {
				t.Errorf("trailing blanks in %q", l)
			}
		}
	})
}

// Everything but the text for PowerShell is a script for a shell.
func TestScriptsAreShell(t *testing.T) {
	each(t, func(t *testing.T, c Client, s Setup, text string) {
		if c == Windows {
			powershell(t, s, text)
			return
		}
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// powershell checks that quotes and brackets are closed on each line, and what is said about each path.
func powershell(t *testing.T, s Setup, text string) {
	paths := 0
	for l := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(l, "#") {
			continue
		}
		code, _, _ := strings.Cut(l, "   #")
		if strings.Count(code, "'")%2 != 0 || strings.Count(code, "{") != strings.Count(code, "}") || strings.Count(code, "(") != strings.Count(code, ")") {
			t.Errorf("not closed: %s", l)
		}
		if strings.HasPrefix(code, "Connect-IscsiTarget") {
			paths++
			if !strings.Contains(code, "-IsMultipathEnabled $true -IsPersistent $true @chap") {
				t.Errorf("%s", l)
			}
		}
	}
	want := 0
	for _, target := range s.Targets {
		want += len(target.Portals)
	}
	if paths != want {
		t.Errorf("%d paths, want %d", paths, want)
	}
}

// heredoc returns what a script writes into a file.
func heredoc(t *testing.T, text, file string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, file+" <<'EOF'\n")
	body, _, closed := strings.Cut(rest, "\nEOF\n")
	if !found || !closed {
		t.Fatalf("the script does not write %s", file)
	}
	return body
}

// section is a block of multipath.conf.
type section struct {
	name   string
	keys   map[string]string
	blocks []*section
}

func (s *section) find(name string) []*section {
	var out []*section
	for _, b := range s.blocks {
		if b.name == name {
			out = append(out, b)
		}
	}
	return out
}

// parseMultipath is strict: a block opens at the end of a line and closes on one of its own, a value is one word or in
// quotes, no key comes twice, and only keywords of multipath.conf(5) are taken.
func parseMultipath(text string) (*section, error) {
	allowed := map[string][]string{
		"":         {},
		"defaults": {"find_multipaths"}, "devices": {}, "multipaths": {},
		"multipath": {"wwid", "alias"},
		"device": {
			"vendor", "product", "path_grouping_policy", "prio", "detect_prio", "hardware_handler", "path_checker", "failback",
			"no_path_retry", "fast_io_fail_tmo", "dev_loss_tmo",
		},
	}
	inside := map[string]string{"defaults": "", "devices": "", "multipaths": "", "device": "devices", "multipath": "multipaths"}
	root := &section{keys: map[string]string{}}
	open := []*section{root}
	for i, l := range strings.Split(text, "\n") {
		l = strings.TrimSpace(l)
		top := open[len(open)-1]
		key, value, _ := strings.Cut(l, " ")
		switch {
		case l == "" || strings.HasPrefix(l, "#"):
		case l == "}":
			if len(open) == 1 {
				return nil, fmt.Errorf("line %d: nothing to close", i+1)
			}
			open = open[:len(open)-1]
		case value == "{":
			if parent, ok := inside[key]; !ok || parent != top.name {
				return nil, fmt.Errorf("line %d: no block %q in %q", i+1, key, top.name)
			}
			b := &section{name: key, keys: map[string]string{}}
			top.blocks = append(top.blocks, b)
			open = append(open, b)
		default:
			word := value
			if strings.HasPrefix(value, `"`) {
				var err error
				if word, err = strconv.Unquote(value); err != nil {
					return nil, fmt.Errorf("line %d: %q: %w", i+1, value, err)
				}
			} else if value == "" || strings.ContainsAny(value, " \"{}") {
				return nil, fmt.Errorf("line %d: value %q", i+1, value)
			}
			if _, twice := top.keys[key]; twice || !slices.Contains(allowed[top.name], key) {
				return nil, fmt.Errorf("line %d: keyword %q in %q", i+1, key, top.name)
			}
			top.keys[key] = word
		}
	}
	if len(open) != 1 {
		return nil, fmt.Errorf("%q is not closed", open[len(open)-1].name)
	}
	return root, nil
}

func TestMultipathConfNamesEveryLUN(t *testing.T) {
	each(t, func(t *testing.T, c Client, s Setup, text string) {
		if c != Multipath && (c != Proxmox || s.SinglePath) {
			return
		}
		conf, err := parseMultipath(heredoc(t, text, "/etc/multipath/conf.d/sanctuary.conf"))
		if err != nil {
			t.Fatal(err)
		}
		device := conf.find("devices")[0].find("device")[0].keys
		for key, want := range map[string]string{
			"vendor": "SANCTRY", "product": "Sanctuary LUN", "prio": "alua", "hardware_handler": "1 alua", "path_grouping_policy": "group_by_prio",
			"path_checker": "tur", "failback": "immediate", "no_path_retry": "queue", "fast_io_fail_tmo": "5",
		} {
			if device[key] != want {
				t.Errorf("%s %q, want %q", key, device[key], want)
			}
		}
		if conf.find("defaults")[0].keys["find_multipaths"] != "yes" {
			t.Error("Debian's default makes no map")
		}
		aliases := conf.find("multipaths")[0].find("multipath")
		if len(aliases) != len(s.LUNs()) {
			t.Fatalf("%d maps for %d LUNs", len(aliases), len(s.LUNs()))
		}
		for i, l := range s.LUNs() {
			// udev's and multipath's name for a disk with an NAA identifier: its type, 3, and the identifier.
			if aliases[i].keys["wwid"] != "3"+l.NAA || aliases[i].keys["alias"] != "sanctuary-"+l.Name {
				t.Errorf("%+v", aliases[i].keys)
			}
		}
	})
}

func TestParserOfMultipathConfIsStrict(t *testing.T) {
	for _, bad := range []string{
		"devices {", "}", "device {\n}", "devices {\n prio alua\n}", "devices {\n device {\n vendor \"A\n }\n}", "devices {\n device {\n hardware_handler 1 alua\n }\n}",
		"devices {\n device {\n prio alua\n prio alua\n }\n}", "devices {\n device {\n colour red\n }\n}", "devices { device {\n}\n}",
	} {
		if _, err := parseMultipath(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// parseISCSID is strict: "key = value", keys known to open-iscsi, each once.
func parseISCSID(text string) (map[string]string, error) {
	known := []string{
		"node.session.timeo.replacement_timeout", "node.conn[0].timeo.noop_out_interval", "node.conn[0].timeo.noop_out_timeout",
		"node.session.iscsi.DefaultTime2Wait", "node.session.cmds_max", "node.session.queue_depth", "node.session.auth.chap_algs",
	}
	for _, auth := range []string{"discovery.sendtargets.auth.", "node.session.auth."} {
		for _, k := range []string{"authmethod", "username", "password", "username_in", "password_in"} {
			known = append(known, auth+k)
		}
	}
	out := map[string]string{}
	for i, l := range strings.Split(text, "\n") {
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		key, value, found := strings.Cut(l, " = ")
		if _, twice := out[key]; !found || twice || value == "" || strings.ContainsAny(value, " \t") || !slices.Contains(known, key) {
			return nil, fmt.Errorf("line %d: %q", i+1, l)
		}
		out[key] = value
	}
	return out, nil
}

func TestISCSIDConf(t *testing.T) {
	each(t, func(t *testing.T, c Client, s Setup, text string) {
		if c != Multipath && c != OpenISCSI && (c != Proxmox || s.SinglePath) {
			return
		}
		conf, err := parseISCSID(heredoc(t, text, "/etc/iscsi/iscsid.conf"))
		if err != nil {
			t.Fatal(err)
		}
		replacement := "5"
		if c == OpenISCSI {
			replacement = "86400" // without another path, giving up early means an error
		}
		want := map[string]string{
			"node.session.timeo.replacement_timeout": replacement, "node.conn[0].timeo.noop_out_interval": "2",
			"node.conn[0].timeo.noop_out_timeout": "3", "node.session.iscsi.DefaultTime2Wait": "0", "node.session.cmds_max": "128",
		}
		for _, auth := range []string{"discovery.sendtargets.auth.", "node.session.auth."} {
			method := ""
			if s.CHAPUser != "" {
				method = "CHAP"
			}
			want[auth+"authmethod"], want[auth+"username"], want[auth+"username_in"] = method, s.CHAPUser, s.MutualUser
		}
		if s.CHAPUser != "" {
			want["node.session.auth.chap_algs"] = "SHA3-256,SHA256,SHA1,MD5"
		}
		for key, v := range want {
			if conf[key] != v {
				t.Errorf("%s = %q, want %q", key, conf[key], v)
			}
		}
	})
	if _, err := parseISCSID("node.sesion.queue_depth = 64"); err == nil {
		t.Error("a misspelt key is taken")
	}
}

// What docs/OPERATING.md tells a user to write is what client-config prints, less what depends on the host; the tests with a guest
// take it from there.
func TestTheManualSaysTheSame(t *testing.T) {
	manual, err := os.ReadFile("../../../docs/OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(begin string) string {
		_, rest, found := strings.Cut(string(manual), "\n```\n"+begin)
		body, _, closed := strings.Cut(rest, "\n```\n")
		if !found || !closed {
			t.Fatalf("no block that begins with %q", begin)
		}
		return begin + body
	}
	text, err := Text(Multipath, setups["open"])
	if err != nil {
		t.Fatal(err)
	}
	printed, err := parseISCSID(heredoc(t, text, "/etc/iscsi/iscsid.conf"))
	if err != nil {
		t.Fatal(err)
	}
	written, err := parseISCSID(block("node.session."))
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(printed, written) {
		t.Errorf("iscsid.conf: printed %v, in the manual %v", printed, written)
	}
	conf, err := parseMultipath(heredoc(t, text, "/etc/multipath/conf.d/sanctuary.conf"))
	if err != nil {
		t.Fatal(err)
	}
	manualConf, err := parseMultipath(block("defaults {"))
	if err != nil {
		t.Fatal(err)
	}
	device := func(s *section) map[string]string { return s.find("devices")[0].find("device")[0].keys }
	if !maps.Equal(device(conf), device(manualConf)) || !maps.Equal(conf.find("defaults")[0].keys, manualConf.find("defaults")[0].keys) {
		t.Errorf("multipath.conf: printed %v, in the manual %v", device(conf), device(manualConf))
	}
}

func TestEveryPortalAndLUNIsInTheText(t *testing.T) {
	each(t, func(t *testing.T, c Client, s Setup, text string) {
		for _, p := range s.Portals() {
			address := p.Address
			if c == Windows {
				address = p.Host()
			}
			if !strings.Contains(text, address) && c != QEMU && (c != Proxmox || !s.SinglePath) {
				t.Errorf("no %s", address)
			}
		}
		for _, target := range s.Targets {
			if !strings.Contains(text, target.IQN) {
				t.Errorf("no %s", target.IQN)
			}
		}
		for _, l := range s.LUNs() {
			if !strings.Contains(text, l.Name) && !strings.Contains(text, l.NAA) && c != Windows {
				t.Errorf("no LUN %s", l.Name)
			}
		}
	})
}

func TestSetupsThatCannotBe(t *testing.T) {
	for name, s := range map[string]Setup{
		"no target": {Cluster: "lab"},
		"no portal": {Cluster: "lab", Targets: []Target{{IQN: iqn + "a"}}},
		"no port":   {Cluster: "lab", Targets: []Target{{IQN: iqn + "a", Portals: []Portal{{Node: "a", Address: "10.0.0.1"}}}}},
	} {
		if _, err := Text(ESXi, s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Text("os2", setups["open"]); err == nil {
		t.Error("OS/2")
	}
}

// The program's own reading of the file, where it is installed. It looks at /etc alone, so the test gives it another one.
func TestMultipathItselfReadsTheFile(t *testing.T) {
	tool, err := exec.LookPath("multipath")
	if err != nil {
		t.Skip("multipath is not installed (multipath-tools)")
	}
	text, err := Text(Multipath, setups["chap"])
	if err != nil {
		t.Fatal(err)
	}
	etc := t.TempDir()
	conf := filepath.Join(etc, "multipath", "conf.d")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf, "sanctuary.conf"), []byte(heredoc(t, text, "/etc/multipath/conf.d/sanctuary.conf")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// -T prints what it has read and nothing of its own.
	out, err := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1" /etc && exec "$2" -T`, "sh", etc, tool).CombinedOutput()
	if err != nil {
		t.Skipf("there can be no other /etc here: %v: %s", err, out)
	}
	for _, want := range []string{
		`find_multipaths "on"`, `product "Sanctuary LUN"`, `no_path_retry "queue"`, `fast_io_fail_tmo 5`, `dev_loss_tmo "infinity"`,
		`wwid "36002534e000000000000000000000002"`, `alias "sanctuary-vm-2"`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "invalid") || strings.Contains(string(out), "line ") {
		t.Errorf("%s", out)
	}
}
