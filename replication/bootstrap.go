package replication

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// bootstrap writes the first configuration at the very first start, and otherwise makes sure that there is a log. born says that
// there was none: so this replica has never had a term, and cannot have promised anything to anybody.
func (g *Group) bootstrap() (born bool, err error) {
	has, err := raft.HasExistingState(g.cfg.Journal, g.cfg.Journal, g.cfg.Journal.Snapshots())
	switch {
	case err != nil || has:
		return false, err
	case !g.cfg.First, g.cfg.Store != nil && g.cfg.Store.Applied() > 0:
		return false, fmt.Errorf("LUN %s, replica %s: %w", g.cfg.LUN, g.cfg.Self.ID, ErrLogLost)
	case len(g.cfg.Bootstrap) == 0:
		return true, nil // it joins
	}
	var conf raft.Configuration
	for _, m := range g.cfg.Bootstrap {
		conf.Servers = append(conf.Servers, raft.Server{ID: m.ID, Address: raft.ServerAddress(m.Node)})
	}
	clone, err := holdsMoreThanTheLog(g.cfg.Store)
	switch {
	case err != nil:
		return false, err
	case clone:
		return true, g.bootstrapClone(conf)
	}
	rc := g.raftConfig(nil)
	return true, raft.BootstrapCluster(rc, g.cfg.Journal, g.cfg.Journal, g.cfg.Journal.Snapshots(), &raft.InmemTransport{}, conf)
}

// holdsMoreThanTheLog says of a volume to which no entry has been applied whether it has contents all the same: it is a clone.
func holdsMoreThanTheLog(s Store) (more bool, err error) {
	if s == nil {
		return false, nil
	}
	err = s.Changed(0, func(block.Range) error { more = true; return errEnough })
	if errors.Is(err, errEnough) {
		err = nil
	}
	return more, err
}

// bootstrapClone is what raft.BootstrapCluster does, but the first configuration is in a snapshot instead of the log. A log
// that began with entry 1 could make a replica out of nothing, without what the clone began with. With this one, whoever has
// not begun as a clone is further behind than the log reaches, and is rebuilt.
func (g *Group) bootstrapClone(conf raft.Configuration) error {
	sink, err := g.cfg.Journal.Snapshots().Create(1, 1, 1, conf, 1, nil)
	if err != nil {
		return err
	}
	if _, err := sink.Write(g.encodeMark(0)); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	// Last: without it there would be a term and nothing to elect in. A crash before it is harmless, for the first election
	// would then be of term 1, which nobody else has led.
	return g.cfg.Journal.SetUint64([]byte("CurrentTerm"), 1)
}
