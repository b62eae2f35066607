package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"sanctuary/node/api"
	"sanctuary/node/config"
)

// TestMain lets the test binary stand in for the program: the demo starts itself as its nodes.
func TestMain(m *testing.M) {
	if os.Getenv("SANCTUARY_TEST_NODE") != "" {
		runNode = runFakeNode
		main()
	}
	os.Exit(m.Run())
}

// fakeNode is a node that has an API and nothing behind it: its LUN is a file, so that a restart finds it.
type fakeNode struct {
	api.SnapshotService // nothing asks it about snapshots

	cfg config.Config
	mu  sync.Mutex // guards the file
}

var _ api.Service = (*fakeNode)(nil)

func runFakeNode(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "refuse")); err == nil {
		return fmt.Errorf("the disk is upside down")
	}
	s, err := api.New(api.Config{Service: &fakeNode{cfg: cfg}, Logger: log})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", cfg.Listen.API)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

func (f *fakeNode) Name() string                                         { return f.cfg.Node }
func (f *fakeNode) APIAddress(string) (string, bool)                     { return "", false }
func (f *fakeNode) Cluster() string                                      { return f.cfg.Cluster }
func (f *fakeNode) Catalog() api.Catalog                                 { return api.Catalog{Leader: f.cfg.Members[0].Name} }
func (f *fakeNode) Alerts(context.Context) ([]api.Alert, error)          { return nil, nil }
func (f *fakeNode) Logins() (api.Logins, bool)                           { return api.Logins{}, false }
func (f *fakeNode) Sessions(context.Context) ([]api.Session, error)      { return nil, nil }
func (f *fakeNode) Settings(context.Context) (map[string]string, error)  { return nil, nil }
func (f *fakeNode) SetSettings(context.Context, map[string]string) error { return nil }
func (f *fakeNode) Propose(context.Context, []byte) ([]byte, error)      { return nil, nil }
func (f *fakeNode) StartScrub(context.Context, string) error             { return nil }
func (f *fakeNode) PauseScrub(context.Context, string, bool) error       { return nil }
func (f *fakeNode) MoveLUN(context.Context, string, string) error        { return nil }
func (f *fakeNode) DeleteLUN(context.Context, string) error              { return os.Remove(f.file()) }

func (f *fakeNode) Recovery(context.Context, string, string) (api.Recovery, error) {
	return api.Recovery{}, nil
}

func (f *fakeNode) RecoverLUN(context.Context, string, api.RecoverSpec) (api.Recovery, error) {
	return api.Recovery{}, nil
}

func (f *fakeNode) RevertReplica(context.Context, string) (api.RebuildBefore, error) {
	return api.RebuildBefore{}, nil
}

func (f *fakeNode) ChangeReplicas(context.Context, string, api.ReplicaChange) (api.LUN, error) {
	return api.LUN{}, nil
}

func (f *fakeNode) DrainNode(context.Context, string) (api.Drain, error) { return api.Drain{}, nil }
func (f *fakeNode) RemoveNode(context.Context, string) error             { return nil }

func (f *fakeNode) Hosts(context.Context) ([]api.Host, error)                 { return nil, nil }
func (f *fakeNode) SetHost(context.Context, string, api.HostSpec, bool) error { return nil }
func (f *fakeNode) RemoveHost(context.Context, string, bool) error            { return nil }
func (f *fakeNode) GrantLUN(context.Context, string, string, *uint16) error   { return nil }
func (f *fakeNode) RevokeLUN(context.Context, string, string) error           { return nil }
func (f *fakeNode) OpenLUN(context.Context, string, api.LUNOpen) error        { return nil }
func (f *fakeNode) ChangeLUN(context.Context, string, api.LUNChange) error    { return nil }
func (f *fakeNode) Pools(context.Context) ([]api.Pool, error)                 { return nil, nil }
func (f *fakeNode) CloseSession(context.Context, string) error                { return nil }
func (f *fakeNode) Reservations(context.Context, string) (api.Reservations, error) {
	return api.Reservations{}, nil
}

func (f *fakeNode) AddPool(context.Context, api.PoolSpec) (api.Pool, error) {
	return api.Pool{}, nil
}
func (f *fakeNode) RemovePool(context.Context, string, api.PoolRemoval) error { return nil }

func (f *fakeNode) PurgeReservations(context.Context, string, api.ReservationPurge) (int, error) {
	return 0, nil
}

func (f *fakeNode) Health() api.NodeHealth {
	return api.NodeHealth{Node: f.cfg.Node, Ready: true, PID: os.Getpid()}
}
func (f *fakeNode) file() string { return filepath.Join(f.cfg.DataDir, "lun.json") }

func (f *fakeNode) Nodes(context.Context) ([]api.Node, error) {
	var out []api.Node
	for _, m := range f.cfg.Members {
		out = append(out, api.Node{Name: m.Name, Kind: m.Kind, Alive: true})
	}
	return out, nil
}

func (f *fakeNode) LUNs(context.Context) ([]api.LUN, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, err := os.ReadFile(f.file())
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l api.LUN
	return []api.LUN{l}, json.Unmarshal(text, &l)
}

func (f *fakeNode) LUN(_ context.Context, ref string) (api.LUN, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l api.LUN
	text, err := os.ReadFile(f.file())
	if os.IsNotExist(err) {
		return l, api.NotFound("there is no LUN %q", ref)
	}
	if err != nil {
		return l, err
	}
	return l, json.Unmarshal(text, &l)
}

func (f *fakeNode) CreateLUN(_ context.Context, s api.LUNSpec) (api.LUN, error) {
	l := sampleLUN()
	l.Name, l.ID, l.SizeBytes, l.Media, l.Owner = s.Name, s.ID, s.SizeBytes, s.Media, f.cfg.Node
	l.Portals = nil
	for i, m := range f.cfg.Members {
		if m.Kind == config.KindData {
			addr := fmt.Sprintf("127.0.0.1:%d", 3260+i)
			l.Portals = append([]api.Portal{{Node: m.Name, Address: addr, URL: "iscsi://" + addr + "/" + l.IQN + "/0", State: api.PortalActive}}, l.Portals...)
		}
	}
	text, err := json.Marshal(l)
	if err != nil {
		return l, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return l, os.WriteFile(f.file(), text, 0o600)
}

// sampleLUN is the LUN the golden files show.
func sampleLUN() api.LUN {
	const iqn = "iqn.2026-11.local.sanctuary:vm1"
	return api.LUN{
		Name: "vm1", ID: "00000000-0000-4000-8000-00000000000a", SizeBytes: 10 << 30, BlockBytes: 512, Media: "file", IQN: iqn,
		NAA: "6000000000000000000000000000000a", Serial: "0000000a", Owner: "alpha", Health: api.HealthHealthy, Term: 4, AppliedIndex: 120,
		Replicas: []api.Replica{
			{ID: "alpha/1", Node: "alpha", Role: "data", State: "active", Connected: true, InSync: true, IsOwner: true, MatchIndex: 120},
			{ID: "beta/2", Node: "beta", Role: "data", State: "active", Connected: true, InSync: true, MatchIndex: 120},
			{ID: "witness/3", Node: "witness", Role: "witness", State: "active", Connected: true, InSync: true},
		},
		Portals: []api.Portal{
			{Node: "alpha", Address: "10.0.0.1:3260", URL: "iscsi://10.0.0.1:3260/" + iqn + "/0", State: "active"},
			{Node: "beta", Address: "10.0.0.2:3260", URL: "iscsi://10.0.0.2:3260/" + iqn + "/0", State: "standby"},
		},
		Access: api.LUNAccess{Hosts: []api.LUNGrant{{Host: "esx1", Number: 3}, {Host: "esx2", Number: 0}}},
		View:   api.View{Node: "alpha", Source: "owner", AsOf: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)},
	}
}
