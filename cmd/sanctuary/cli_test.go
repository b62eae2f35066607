package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sanctuary/node/api"
)

var update = flag.Bool("update", false, "write testdata instead of comparing with it")

// scripted is an API that answers from a table and remembers what it was asked.
type scripted struct {
	answers map[string]any // "METHOD /path" → answer, or *api.Problem
	asked   []string
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	s.asked = append(s.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
	answer, ok := s.answers[r.Method+" "+r.URL.Path]
	if !ok {
		answer = api.NotFound("there is no %s", r.URL.Path)
	}
	if p, bad := answer.(*api.Problem); bad {
		w.WriteHeader(p.Status)
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		panic(err)
	}
}

func sampleStatus() api.Status {
	degraded := sampleLUN()
	degraded.Name, degraded.ID, degraded.Health, degraded.Reason, degraded.Owner = "vm2", "b", api.HealthDegraded, "beta does not answer", "beta"
	degraded.Replicas[1].InSync = false
	degraded.View.Note = "node beta did not answer within 500ms. This is what node alpha knows"
	return api.Status{
		Cluster: "lab", Node: "alpha", AsOf: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), Catalog: api.Catalog{Leader: "alpha", Term: 2, Index: 7, Voters: 3},
		Nodes: []api.Node{
			{Name: "alpha", Kind: "data", Alive: true, Self: true, CatalogLeader: true, APIAddress: "10.0.0.1:7442", ISCSIAddresses: []string{"10.0.0.1:3260"}, Version: "v1", LUNsOwned: 1},
			{Name: "beta", Kind: "data", APIAddress: "10.0.0.2:7442", ISCSIAddresses: []string{"10.0.0.2:3260"}},
			{Name: "witness", Kind: "witness", Alive: true, APIAddress: "10.0.0.3:7442", Version: "v1"},
		},
		LUNs: []api.LUN{sampleLUN(), degraded},
		Alerts: []api.Alert{{
			Severity: "warning", Subject: "node/beta", What: "node beta does not answer", Data: "No acknowledged write is lost by that alone.", Next: "Start it again.",
		}},
	}
}

// scrubbedLUN is a LUN whose scrub has found something.
func scrubbedLUN() api.LUN {
	l, at := sampleLUN(), time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	l.Scrub = []api.ReplicaScrub{
		{
			Replica: "alpha/1", Enabled: true, Running: true, Percent: 12.5, Bytes: 96 << 20, Started: &at, Bad: 3, Repaired: 2, Unrepaired: 1, LastBad: &at,
			Compared: 4096, Diverged: 1, Waits: "copies are not compared: node gamma has not said that it can",
			Findings: []api.Divergence{
				{At: at, Chunk: 7, Blocks: []uint32{1, 2}, Replicas: []string{"beta/2"}, Kept: []string{"alpha/1"}, Error: "no"},
				{At: at, Snapshot: strings.Repeat("0a", 16), Chunk: 8, Blocks: []uint32{3}, Replicas: []string{"beta/2"}, Kept: []string{"alpha/1"}, Repaired: true},
			},
		},
		{Replica: "beta/2", Enabled: true, Paused: true, Completed: &at},
	}
	return l
}

// commandLine is a command line, what is typed into it, and the answers that differ from the standard ones.
type commandLine struct {
	name, line, input string
	answers           map[string]any
}

// TestCommandLines runs each command line against a scripted API and compares everything it does (what it asks, prints
// and returns) with a file.
func TestCommandLines(t *testing.T) {
	unserved := sampleLUN()
	unserved.Owner, unserved.Health, unserved.Reason = "", api.HealthCreating, "waiting for node beta"
	st := sampleStatus()
	standard := map[string]any{
		"GET /v1/status": st, "GET /v1/nodes": api.NodeList{Nodes: st.Nodes}, "GET /v1/luns": api.LUNList{LUNs: st.LUNs},
		"GET /v1/luns/vm1": sampleLUN(), "POST /v1/luns": sampleLUN(), "POST /v1/luns/vm1/move": sampleLUN(),
		"DELETE /v1/luns/" + sampleLUN().ID: map[string]any{},
	}
	for _, more := range []map[string]any{accessAnswers(), snapshotAnswers(), recoveryAnswers()} {
		for k, v := range more {
			standard[k] = v
		}
	}
	for k, v := range poolAnswers() {
		standard[k] = v
	}
	nobody, open := sampleLUN(), sampleLUN()
	nobody.Access, open.Access = api.LUNAccess{}, api.LUNAccess{Open: true, SinglePath: true}
	for _, tc := range append(recoveryLines(), []commandLine{
		{name: "status", line: "status"},
		{name: "status-json", line: "status -o json"},
		{name: "status-quiet", line: "status", answers: map[string]any{"GET /v1/status": api.Status{Cluster: "lab", Node: "a", LUNs: []api.LUN{}, Nodes: []api.Node{}, Alerts: []api.Alert{}}}},
		{name: "node-list", line: "node list"},
		{name: "node-list-json", line: "node list -o json"},
		{name: "lun-list", line: "lun list"},
		{name: "lun-list-json", line: "lun list --output json"},
		{name: "lun-show", line: "lun show vm1"},
		{name: "lun-show-rebuild", line: "lun show vm1", answers: map[string]any{"GET /v1/luns/vm1": rebuilding()}},
		{name: "lun-show-json", line: "lun show vm1 -o json"},
		{name: "lun-show-unknown", line: "lun show nope"},
		{name: "lun-show-nothing", line: "lun show"},
		{name: "lun-create-good", line: "lun create vm1 --size 10GiB --media ram --copies 2 --node alpha --node beta --prefer alpha --block 4096 --wait 5s"},
		{name: "lun-create-no-size", line: "lun create vm1"},
		{name: "lun-create-bad-size", line: "lun create vm1 --size 10GB"},
		{name: "lun-create-bad-wait", line: "lun create vm1 --size 1GiB --wait 1h"},
		{name: "lun-create-two-names", line: "lun create vm1 vm2 --size 1GiB"},
		{name: "lun-create-not-served", line: "lun create vm1 --size 1GiB", answers: map[string]any{"POST /v1/luns": unserved}},
		{name: "lun-create-not-served-no-wait", line: "lun create vm1 --size 1GiB --wait 0 -o json", answers: map[string]any{"POST /v1/luns": unserved}},
		{name: "lun-create-exists", line: "lun create vm1 --size 1GiB", answers: map[string]any{"POST /v1/luns": api.Conflict("Choose another name.", "there is a LUN vm1")}},
		{name: "lun-move", line: "lun move vm1 --to beta"},
		{name: "lun-move-nowhere", line: "lun move vm1"},
		{name: "lun-scrub", line: "lun scrub vm1", answers: map[string]any{"GET /v1/luns/vm1": scrubbedLUN()}},
		{name: "lun-scrub-show", line: "lun show vm1", answers: map[string]any{"GET /v1/luns/vm1": scrubbedLUN()}},
		{name: "lun-scrub-unknown", line: "lun scrub vm1"},
		{name: "lun-scrub-start", line: "lun scrub vm1 --start -o json", answers: map[string]any{"POST /v1/luns/vm1/scrub": scrubbedLUN()}},
		{name: "lun-scrub-pause", line: "lun scrub vm1 --pause", answers: map[string]any{"PUT /v1/luns/vm1/scrub": scrubbedLUN()}},
		{name: "lun-scrub-resume", line: "lun scrub vm1 --resume", answers: map[string]any{"PUT /v1/luns/vm1/scrub": scrubbedLUN()}},
		{name: "lun-scrub-both", line: "lun scrub vm1 --start --pause"},
		{name: "lun-delete", line: "lun delete vm1", input: "vm1\n"},
		{name: "lun-delete-wrong-name", line: "lun delete vm1", input: "vm2\n"},
		{name: "lun-delete-nobody-there", line: "lun delete vm1"},
		{name: "lun-delete-yes", line: "lun delete vm1 --yes --force -o json"},
		{name: "lun-create-for-nobody", line: "lun create vm1 --size 10GiB", answers: map[string]any{"POST /v1/luns": nobody}},
		{name: "lun-create-overcommit", line: "lun create vm1 --size 10TiB --overcommit"},
		{name: "lun-create-zero-detect", line: "lun create vm1 --size 10GiB --zero-detect"},
		{name: "lun-create-for-hosts", line: "lun create vm1 --size 10GiB --host esx1 --host esx2"},
		{name: "lun-create-open", line: "lun create vm1 --size 10GiB --open", answers: map[string]any{"POST /v1/luns": open}},
		{name: "lun-allow", line: "lun allow vm1 --host esx1"},
		{name: "lun-allow-number", line: "lun allow vm1 --host esx1 --number 0 -o json"},
		{name: "lun-allow-any", line: "lun allow vm1 --any --single-path"},
		{name: "lun-allow-nobody", line: "lun allow vm1"},
		{name: "lun-allow-both", line: "lun allow vm1 --host esx1 --any"},
		{name: "lun-allow-number-for-two", line: "lun allow vm1 --host esx1 --host esx2 --number 3"},
		{name: "lun-allow-bad-number", line: "lun allow vm1 --host esx1 --number 255"},
		{name: "lun-deny", line: "lun deny vm1 --host esx1"},
		{name: "lun-deny-any", line: "lun deny vm1 --any"},
		{name: "lun-deny-nobody", line: "lun deny vm1"},
		{name: "lun-list-wide", line: "lun list -o wide"},
		{name: "lun-show-clone", line: "lun show vm7"},
		{name: "lun-clone", line: "lun clone vm1 golden vm7 --host esx1"},
		{name: "lun-clone-now", line: "lun clone vm1 --now vm7 --open -o json"},
		{name: "lun-clone-without-a-snapshot", line: "lun clone vm1 vm7"},
		{name: "lun-clone-not-served", line: "lun clone vm1 golden vm7", answers: map[string]any{"POST /v1/luns/vm1/clones": unserved}},
		{name: "snapshot-create", line: "lun snapshot create vm1"},
		{name: "snapshot-create-name", line: "lun snapshot create vm1 golden -o json"},
		{name: "snapshot-create-with", line: "lun snapshot create vm1 golden --with vm2,vm3", answers: map[string]any{"POST /v1/luns/vm1/snapshots": api.SnapshotSet{
			ID: "00112233445566778899aabbccddeeff", Name: "golden", LUNs: []string{"vm1", "vm2", "vm3"}, Held: 4200 * time.Microsecond,
		}}},
		{name: "snapshot-create-nothing", line: "lun snapshot create"},
		{name: "snapshot-list", line: "lun snapshot list vm1"},
		{name: "snapshot-list-json", line: "lun snapshot list vm1 -o json"},
		{name: "snapshot-list-none", line: "lun snapshot list vm1", answers: map[string]any{"GET /v1/luns/vm1/snapshots": api.SnapshotList{LUN: "vm1"}}},
		{name: "snapshot-delete", line: "lun snapshot delete vm1 golden 4455"},
		{name: "snapshot-delete-unknown", line: "lun snapshot delete vm1 golden nope"},
		{name: "snapshot-delete-ambiguous", line: "lun snapshot delete vm1 twice"},
		{name: "snapshot-delete-nothing", line: "lun snapshot delete vm1"},
		{name: "snapshot-rollback", line: "lun snapshot rollback vm1 golden", input: "vm1\n"},
		{name: "snapshot-rollback-wrong-name", line: "lun snapshot rollback vm1 golden", input: "vm2\n"},
		{name: "snapshot-rollback-force", line: "lun snapshot rollback vm1 golden --yes --force --no-safety -o json"},
		{name: "snapshot-rollback-in-use", line: "lun snapshot rollback vm1 golden --yes", answers: map[string]any{
			"POST /v1/luns/" + sampleLUN().ID + "/rollback": api.Conflict("Log it out.", "LUN vm1 is in use"),
		}},
		{name: "snapshot-diff", line: "lun snapshot diff vm1 golden"},
		{name: "snapshot-diff-json", line: "lun snapshot diff vm1 - golden -o json"},
		{name: "snapshot-diff-nothing", line: "lun snapshot diff vm1"},
		{name: "snapshot-export", line: "lun snapshot export vm1 golden --name vm7 --host backup"},
		{name: "snapshot-export-no-name", line: "lun snapshot export vm1 golden"},
		{name: "snapshot-schedule", line: "lun snapshot schedule vm1"},
		{name: "snapshot-schedule-set", line: "lun snapshot schedule vm1 --every 7d --keep 4"},
		{name: "snapshot-schedule-off", line: "lun snapshot schedule vm1 --off --name-prefix hourly"},
		{name: "snapshot-schedule-no-keep", line: "lun snapshot schedule vm1 --every 1h"},
		{name: "snapshot-schedule-bad-every", line: "lun snapshot schedule vm1 --every 1y --keep 2"},
		{name: "snapshot-schedule-contradiction", line: "lun snapshot schedule vm1 --off --keep 2"},
		{name: "lun-set", line: "lun set vm1 --non-optimized-paths on"},
		{name: "lun-set-zero-detect", line: "lun set vm1 --zero-detect on --non-optimized-paths off"},
		{name: "lun-set-zero-detect-bad", line: "lun set vm1 --zero-detect yes"},
		{name: "lun-set-nothing", line: "lun set vm1"},
		{name: "host-create", line: "host create esx1 --initiator iqn.1998-01.com.vmware:esx1"},
		{name: "host-create-chap", line: "host create esx1 --initiator iqn.1998-01.com.vmware:esx1 --chap-user esx1 --chap-secret-file -", input: "swordfish-swordfish\n"},
		{name: "host-create-prompt", line: "host create esx1 --initiator iqn.1998-01.com.vmware:esx1 --chap-user esx1", input: "swordfish-swordfish\n"},
		{name: "host-create-no-secret", line: "host create esx1 --initiator iqn.1998-01.com.vmware:esx1 --chap-user esx1"},
		{name: "host-create-no-user", line: "host create esx1 --initiator iqn.1998-01.com.vmware:esx1 --chap-generate"},
		{name: "host-create-no-initiator", line: "host create esx1"},
		{name: "host-create-no-mutual-user", line: "host create esx1 --initiator iqn.1998-01.com.vmware:esx1 --chap-user esx1 --chap-generate --chap-mutual-generate"},
		{name: "host-list", line: "host list"},
		{name: "host-list-none", line: "host list", answers: map[string]any{"GET /v1/hosts": api.HostList{}}},
		{name: "host-show", line: "host show esx1"},
		{name: "host-show-json", line: "host show esx1 -o json"},
		{name: "host-set-initiators", line: "host set esx1 --add-initiator iqn.1998-01.com.vmware:new --remove-initiator IQN.1998-01.com.vmware:esx1 --single-path"},
		{name: "host-set-unknown-initiator", line: "host set esx1 --remove-initiator iqn.1998-01.com.vmware:none"},
		{name: "host-set-no-chap", line: "host set esx1 --no-chap"},
		{name: "host-set-mutual", line: "host set esx1 --chap-mutual-user lab", input: "another-swordfish\n"},
		{name: "host-set-contradiction", line: "host set esx1 --no-chap --chap-generate"},
		{name: "host-delete", line: "host delete esx1 --force"},
		{name: "host-delete-in-use", line: "host delete esx1", answers: map[string]any{"DELETE /v1/hosts/esx1": api.Conflict("Use --force.", "host esx1 may use 1 LUN")}},
		{name: "target-show", line: "target show"},
		{name: "target-show-lun", line: "target show vm1"},
		{name: "target-show-host-json", line: "target show esx1 -o json"},
		{name: "target-show-unknown", line: "target show nope"},
		{name: "session-list", line: "session list"},
		{name: "session-close", line: "session close alpha.17"},
		{name: "session-close-unknown", line: "session close alpha.99"},
		{name: "reservation-list", line: "reservation list vm1"},
		{name: "reservation-purge", line: "reservation purge vm1 --key 0xABCD0001", input: "vm1\n"},
		{name: "reservation-purge-yes", line: "reservation purge vm1 --all --yes"},
		{name: "reservation-purge-nobody-there", line: "reservation purge vm1 --initiator iqn.1998-01.com.vmware:esx1"},
		{name: "reservation-purge-nothing", line: "reservation purge vm1 --yes"},
		{name: "reservation-purge-bad-key", line: "reservation purge vm1 --key 0 --yes"},
		{name: "lun-create-class", line: "lun create vm1 --size 10GiB --class hdd"},
		{name: "pool-list", line: "pool list"},
		{name: "pool-list-none", line: "pool list", answers: map[string]any{"GET /v1/pools": api.PoolList{Unreachable: []string{"beta"}}}},
		{name: "pool-list-json", line: "pool list -o json"},
		{name: "pool-show", line: "pool show ssd1 --node alpha"},
		{name: "pool-show-unique", line: "pool show hdd1"},
		{name: "pool-show-unclear", line: "pool show ssd1"},
		{name: "pool-show-unknown", line: "pool show nope"},
		{name: "pool-add-device", line: "pool add --node alpha --device /dev/disk/by-id/x --force"},
		{name: "pool-add-file", line: "pool add --node alpha --file /srv/p --capacity 100GiB --name p --class hdd --sparse -o json"},
		{name: "pool-add-ram", line: "pool add --node alpha --ram 4GiB"},
		{name: "pool-add-nowhere", line: "pool add --device /dev/sdb"},
		{name: "pool-add-nothing", line: "pool add --node alpha"},
		{name: "pool-add-two", line: "pool add --node alpha --device /dev/sdb --ram 1GiB"},
		{name: "pool-add-no-capacity", line: "pool add --node alpha --file /srv/p"},
		{name: "pool-add-device-capacity", line: "pool add --node alpha --device /dev/sdb --capacity 1GiB"},
		{name: "pool-add-foreign", line: "pool add --node alpha --device /dev/sdb", answers: map[string]any{"POST /v1/nodes/alpha/pools": api.Conflict("Repeat with --force.", "/dev/sdb is not empty")}},
		{name: "pool-remove", line: "pool remove hdd1"},
		{name: "pool-remove-wipe", line: "pool remove ssd1 --node alpha --wipe", input: "ssd1\n"},
		{name: "pool-remove-wrong-name", line: "pool remove ssd1 --node alpha --wipe", input: "ssd2\n"},
		{name: "pool-remove-lost", line: "pool remove hdd1 --lost --wipe --yes -o json"},
		{name: "setting-list", line: "setting list"},
		{name: "setting-set", line: "setting set portal_groups 10.0.1.0/24"},
		{name: "setting-set-nothing", line: "setting set portal_groups"},
		{name: "client-config-host", line: "target client-config --for esxi --host esx1"},
		{name: "client-config-lun-json", line: "target client-config --for qemu --host esx1 --lun vm1 -o json"},
		{name: "client-config-open", line: "target client-config --for open-iscsi"},
		{name: "client-config-unknown", line: "target client-config --for os2"},
		{name: "client-config-no-host", line: "target client-config --for windows --lun vm1"},
		{name: "client-config-nothing-allowed", line: "target client-config --for windows --host idle"},
		{name: "client-config-not-allowed", line: "target client-config --for windows --host idle --lun vm1"},
		{name: "unknown-command", line: "stats"},
		{name: "unknown-subcommand", line: "lun craete"},
		{name: "unknown-flag", line: "status --colour"},
		{name: "bad-output", line: "status -o yaml"},
		{name: "bad-address", line: "status --api nonsense"},
		{name: "demo-two", line: "demo --nodes 2"},
		{name: "drill-without-copy", line: "demo --drill --nodes 1 --media ram"},
		{name: "run-bad-member", line: "run --node a --members a"},
		{name: "witness-with-disk", line: "witness --file-capacity 1GiB"},
		{name: "help", line: "help"},
	}...) {
		t.Run(tc.name, func(t *testing.T) {
			s := &scripted{answers: map[string]any{}}
			for k, v := range standard {
				s.answers[k] = v
			}
			for k, v := range tc.answers {
				s.answers[k] = v
			}
			server := httptest.NewServer(s)
			defer server.Close()
			var out, errOut bytes.Buffer
			code := execute(t.Context(), strings.Fields(tc.line), environment{
				out: &out, err: &errOut, in: strings.NewReader(tc.input),
				getenv: func(name string) string {
					return map[string]string{"SANCTUARY_API": strings.TrimPrefix(server.URL, "http://")}[name]
				},
			})
			var got strings.Builder
			line(&got, "$ sanctuary %s", tc.line)
			for _, a := range s.asked {
				line(&got, "> %s", withoutID(a))
			}
			got.WriteString(out.String())
			for _, l := range strings.SplitAfter(errOut.String(), "\n") {
				if l != "" {
					got.WriteString("! " + l)
				}
			}
			line(&got, "exit status %d", code)
			compare(t, filepath.Join("testdata", "cli", tc.name+".txt"), got.String())
		})
	}
}

// poolAnswers is what the scripted API says about pools.
func poolAnswers() map[string]any {
	ssd := api.Pool{
		Node: "alpha", Name: "ssd1", ID: "00000000-0000-4000-8000-0000000000b1", Media: "device", Path: "/dev/disk/by-id/x", Class: "ssd",
		ClassBecause: "the kernel says that nvme0n1 does not rotate", CapacityBytes: 100 << 30, AllocatedBytes: 40 << 30, FreeBytes: 60 << 30, State: api.PoolOK,
		Replicas: []api.PoolReplica{{LUN: "vm1", LUNID: sampleLUN().ID, Replica: "alpha/1"}},
	}
	other, hdd := ssd, ssd
	other.Node, other.Replicas = "beta", nil
	hdd.Node, hdd.Name, hdd.Class, hdd.Media, hdd.Path, hdd.State, hdd.Reason = "beta", "hdd1", "hdd", "file", "/srv/p", api.PoolFailed, "its file system is not mounted"
	hdd.Sparse = true
	ram := api.Pool{Node: "alpha", Name: "ram", Media: "ram", Class: "ram", CapacityBytes: 1 << 30, FreeBytes: 1 << 30, State: api.PoolOK, Configured: true}
	return map[string]any{
		"GET /v1/pools": api.PoolList{Pools: []api.Pool{ram, ssd, hdd, other}}, "GET /v1/nodes/alpha/pools/ssd1": ssd, "POST /v1/nodes/alpha/pools": other,
		"DELETE /v1/nodes/alpha/pools/ssd1": map[string]any{}, "DELETE /v1/nodes/beta/pools/hdd1": map[string]any{},
	}
}

// accessAnswers is what the scripted API says about hosts, targets, sessions and reservations.
func accessAnswers() map[string]any {
	l := sampleLUN()
	esx := api.Host{
		Name: "esx1", Target: "iqn.2026-11.local.sanctuary:host.lab.esx1", Initiators: []string{"iqn.1998-01.com.vmware:esx1"},
		CHAP: &api.HostCHAP{User: "esx1"}, LUNs: []api.HostLUN{{Number: 3, LUN: l.Name, ID: l.ID}},
	}
	idle := api.Host{Name: "idle", Target: "iqn.2026-11.local.sanctuary:host.lab.idle", Initiators: []string{"iqn.1991-05.com.microsoft:idle"}, SinglePath: true, LUNs: []api.HostLUN{}}
	portals := []api.TargetPortal{{Node: "alpha", Address: "10.0.0.1:3260", Group: 1, Tag: 4097}, {Node: "beta", Address: "10.0.0.2:3260", Group: 1, Tag: 4098}}
	session := api.Session{
		ID: "alpha.17", Node: "alpha", Initiator: esx.Initiators[0], ISID: "00023d000001", Target: esx.Target, Remote: "10.0.0.9:50000", Local: "10.0.0.1:3260",
		Since: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), Commands: 120, ReadBytes: 3 << 20, WrittenBytes: 512, Host: "esx1", PortalGroup: 4097,
		CHAPUser: "esx1", Algorithm: "sha-256", DataDigest: true,
		Params:   api.SessionParams{MaxRecvDataSegmentLength: 262144, MaxSendDataSegmentLength: 131072, MaxBurstLength: 1048576, FirstBurstLength: 262144, MaxOutstandingR2T: 8, ImmediateData: true},
		Counters: api.SessionCounters{PDUsIn: 130, PDUsOut: 125, R2Ts: 2, Aborted: 1},
	}
	lun := session
	lun.ID, lun.Node, lun.Target, lun.CHAPUser, lun.PortalGroup = "beta.2", "beta", l.IQN, "", 4098
	targets := api.TargetList{
		Targets: []api.Target{
			{Name: l.IQN, Kind: api.TargetOfLUN, Hosts: []string{"esx1"}, LUNs: []api.TargetLUN{{Name: l.Name, ID: l.ID, NAA: l.NAA, Owner: "alpha"}}, Portals: portals, Sessions: []api.Session{lun}},
			{Name: "iqn.2026-11.local.sanctuary:vm2", Kind: api.TargetOfLUN, Open: true, LUNs: []api.TargetLUN{{Name: "vm2", ID: "b", NAA: l.NAA[:31] + "b"}}, Portals: portals},
			{Name: esx.Target, Kind: api.TargetOfHost, Host: "esx1", Hosts: []string{"esx1"}, LUNs: []api.TargetLUN{{Number: 3, Name: l.Name, ID: l.ID, NAA: l.NAA, Owner: "alpha"}}, Portals: portals, Sessions: []api.Session{session}},
			{Name: idle.Target, Kind: api.TargetOfHost, Host: "idle", Hosts: []string{"idle"}},
		},
		Logins:      []api.Logins{{Node: "alpha", Succeeded: 12, Moved: 3, NotProved: 5, Throttled: 2, NotAllowed: 1, NotFound: 7, Unavailable: 4, Malformed: 6, Unfinished: 8, TurnedAway: 9}, {Node: "gamma"}},
		Unreachable: []string{"beta"},
	}
	reserved := api.Reservations{
		LUN: l.Name, Generation: 7, Type: "Write Exclusive, Registrants Only", View: api.View{Node: "alpha", Source: "owner"},
		Registrations: []api.Registration{
			{Key: "00000000abcd0001", Initiator: esx.Initiators[0], ISID: "00023d000001", Port: 4097, Node: "alpha", Holder: true, LoggedIn: true, Host: "esx1"},
			{Key: "00000000abcd0002", Initiator: "iqn.1991-05.com.microsoft:gone", ISID: "400001370000", Port: 4099},
		},
		Reserved: &api.ReservedBy{Initiator: esx.Initiators[0], ISID: "00023d000001", Port: 4097},
	}
	left := reserved
	left.Registrations, left.Reserved = left.Registrations[:1], nil
	return map[string]any{
		"GET /v1/hosts": api.HostList{Hosts: []api.Host{esx, idle}}, "GET /v1/hosts/esx1": esx, "GET /v1/hosts/idle": idle,
		"PUT /v1/hosts/esx1": esx, "DELETE /v1/hosts/esx1": map[string]any{},
		"PUT /v1/luns/vm1/hosts/esx1": l, "DELETE /v1/luns/vm1/hosts/esx1": l, "PUT /v1/luns/vm1/access": l, "PATCH /v1/luns/vm1": l,
		"GET /v1/targets": targets, "GET /v1/sessions": api.SessionList{Sessions: []api.Session{lun, session}, Unreachable: []string{"beta"}},
		"DELETE /v1/sessions/alpha.17":  map[string]any{},
		"GET /v1/luns/vm1/reservations": reserved, "GET /v1/luns/" + l.ID + "/reservations": reserved,
		"DELETE /v1/luns/" + l.ID + "/reservations": api.Purged{Removed: 1, Left: left},
		"GET /v1/settings":                          api.Settings{Settings: map[string]string{"portal_groups": "10.0.1.0/24", "chap.algorithms": "sha-256"}},
		"PUT /v1/settings":                          api.Settings{Settings: map[string]string{"portal_groups": "10.0.1.0/24"}},
	}
}

// A secret that was made is shown once, and is what was sent.
func TestGeneratedSecretsAreSentAndShownOnce(t *testing.T) {
	s := &scripted{answers: accessAnswers()}
	server := httptest.NewServer(s)
	defer server.Close()
	var out, errOut bytes.Buffer
	code := execute(t.Context(), strings.Fields("host create esx1 --initiator iqn.a:b --chap-user u --chap-generate --chap-mutual-user m --chap-mutual-generate -o json --api "+
		strings.TrimPrefix(server.URL, "http://")), environment{out: &out, err: &errOut, in: strings.NewReader(""), getenv: func(string) string { return "" }})
	var made madeHost
	if err := json.Unmarshal(out.Bytes(), &made); err != nil || code != exitOK {
		t.Fatalf("%d %v: %s%s", code, err, out.String(), errOut.String())
	}
	if len(made.Secret) != 16 || len(made.MutualSecret) != 16 || made.Secret == made.MutualSecret {
		t.Errorf("%q and %q", made.Secret, made.MutualSecret)
	}
	if len(s.asked) != 1 || !strings.Contains(s.asked[0], `"secret":"`+made.Secret+`"`) || !strings.Contains(s.asked[0], `"mutual_secret":"`+made.MutualSecret+`"`) {
		t.Errorf("%q", s.asked)
	}
}

// withoutID blanks the ID a client chooses at random.
func withoutID(s string) string {
	before, after, found := strings.Cut(s, `"id":"`)
	if !found {
		return s
	}
	return before + `"id":"…` + after[strings.Index(after, `"`):]
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("if this is meant, run the test with -update; got:\n%s\nwant:\n%s", got, want)
	}
}

func TestTheConfigurationIsFileThenFlags(t *testing.T) {
	dir := t.TempDir()
	p, err := newPlan(dir, demoOptions{nodes: 3, media: "file", sizeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.write(dir); err != nil {
		t.Fatal(err)
	}
	run := func(env string, args ...string) (int, string) {
		var out, errOut bytes.Buffer
		code := execute(t.Context(), args, environment{out: &out, err: &errOut, in: strings.NewReader(""), getenv: func(name string) string {
			return map[string]string{"SANCTUARY_CONFIG": env}[name]
		}})
		return code, out.String() + errOut.String()
	}
	if code, out := run(p.Nodes[0].Config, "run", "--check", "--log-level", "debug", "--data-dir", "/srv/x"); code != exitOK ||
		!strings.Contains(out, "level = 'debug'") || !strings.Contains(out, "data_dir = '/srv/x'") || !strings.Contains(out, "node = 'alpha'") {
		t.Errorf("%d: %s", code, out)
	}
	if code, out := run("", "run", "--check", "--config", p.Nodes[2].Config); code != exitUsage || !strings.Contains(out, "sanctuary witness") {
		t.Errorf("a witness's file given to run: %d: %s", code, out)
	}
	if code, out := run("", "run"); code != exitUsage || !strings.Contains(out, "nothing was started") || !strings.Contains(out, "node: ") || !strings.Contains(out, "members: ") {
		t.Errorf("nothing given: %d: %s", code, out)
	}
	if code, out := run("", "run", "--check", "-o", "json", "--node", "a", "--data-dir", "/srv/a", "--listen-peer", "127.0.0.1:1", "--listen-gossip", "127.0.0.1:2",
		"--listen-iscsi", "127.0.0.1:3", "--ram-capacity", "1GiB", "--members", "a,data,127.0.0.1:1,127.0.0.1:2"); code != exitOK ||
		!strings.Contains(out, `"capacity": 1073741824`) || !strings.Contains(out, `"data_dir": "/srv/a"`) {
		t.Errorf("flags only: %d: %s", code, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "x.toml"), []byte("colour = 'red'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := run("", "run", "--check", "--config", filepath.Join(dir, "x.toml")); code != exitUsage || !strings.Contains(out, "colour") {
		t.Errorf("unknown setting: %d: %s", code, out)
	}
	if code, _ := run("", "run", "--check", "--config", filepath.Join(dir, "none.toml")); code != exitUsage {
		t.Errorf("no file: %d", code)
	}
}
