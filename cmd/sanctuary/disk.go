package main

import (
	"context"
	"fmt"
	"math"

	"sanctuary/node/api"
	"sanctuary/target/initiator"
)

// multipath is the built-in initiator's disk as a drill sees it. The outcome it reports besides the error is not needed:
// to the ledger every write that was not acknowledged may have happened.
type multipath struct{ d *initiator.Disk }

func (m multipath) ReadAt(ctx context.Context, p []byte, off int64) error {
	_, err := m.d.ReadAt(ctx, p, off)
	return err
}

func (m multipath) WriteAt(ctx context.Context, p []byte, off int64) error {
	_, err := m.d.WriteAt(ctx, p, off)
	return err
}

func (m multipath) Close() error {
	m.d.Close()
	return nil
}

// open opens the LUN with the built-in initiator over all its portals (stage).
func (d *demo) open(ctx context.Context, l api.LUN, event func(string)) (disk, error) {
	cfg, err := multipathConfig(l, event)
	if err != nil {
		return nil, err
	}
	m, err := initiator.OpenMultipath(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if got := m.Capacity().Bytes(); got != l.SizeBytes {
		m.Close()
		return nil, fmt.Errorf("initiators are told that LUN %s has %d bytes; it should have %d", l.Name, got, l.SizeBytes)
	}
	return multipath{m}, nil
}

// multipathConfig names the LUN's portals, the owner's first.
func multipathConfig(l api.LUN, event func(string)) (initiator.MultipathConfig, error) {
	var cfg initiator.MultipathConfig
	if l.Number > math.MaxUint16 {
		return cfg, fmt.Errorf("LUN %s has number %d, which no initiator can address", l.Name, l.Number)
	}
	all := portals(l)
	if len(all) == 0 {
		return cfg, fmt.Errorf("LUN %s has no portal", l.Name)
	}
	for _, p := range all {
		cfg.Paths = append(cfg.Paths, initiator.PathConfig{Address: p.Address, Target: l.IQN, LUN: uint16(l.Number)})
	}
	cfg.OnPath = func(e initiator.PathEvent) {
		what := fmt.Sprintf("to %s (%s) %s", all[e.Path].Node, all[e.Path].Address, e.What)
		if e.Err != nil {
			what += ": " + e.Err.Error()
		}
		event(what)
	}
	return cfg, nil
}
