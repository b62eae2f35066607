package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/node/catalog"
	"sanctuary/replication"
	"sanctuary/target"
)

// How a node that stops in order takes its leave: the leadership of the catalog goes to another member, the LUNs it owns go to copies in sync, so that nobody has to find out by silence that they
// have no owner, and then the initiators are asked to log out, which they do and look elsewhere at once, instead of taking a broken connection
// for a fault of the network. Both are courtesies with a limit: a node that is killed skips them, and what it had acknowledged is safe.

const (
	// handOverFor bounds the wait for a catalog with another leader and LUNs with other owners; elections take less.
	handOverFor = 2 * time.Second
	// letGoFor is how long initiators have to log out before they are cut off.
	letGoFor = 3 * time.Second
)

// leave lets go of LUNs and initiators, in this order: one with a single path is asked to log out as soon as its LUN has moved, as with every
// move, and sent on to the new owner when it comes back here.
func (n *Node) leave(portal *target.Portal) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), handOverFor)
	defer cancel()
	if err := n.catalog.HandOver(ctx); err != nil { // first: the LUNs' next owners may want to change something
		n.log.Info("the catalog's leadership is not handed over before this node stops: the others elect a leader when they miss it", "reason", err)
	}
	moved, kept := n.replicas.handOverAll(ctx)
	ctx, cancel = context.WithTimeout(context.Background(), letGoFor)
	defer cancel()
	sessions := len(portal.Sessions())
	err := portal.Drain(ctx)
	n.log.Info("node leaves", "luns_handed_over", moved, "luns_kept", kept, "sessions", sessions, "all_logged_out", err == nil,
		"took", time.Since(began).Round(time.Millisecond))
	return portal.Close()
}

// handOverAll gives every LUN that this node owns to another node with a copy in sync, and returns once their owners are known here, or ctx
// has ended. What stays is counted: a LUN without such a copy.
func (s *replicas) handOverAll(ctx context.Context) (moved, kept int) {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.running))
	s.mu.Unlock()
	var (
		wg sync.WaitGroup
		mu sync.Mutex // guards moved and kept
	)
	for _, r := range all {
		if r.target == nil || !r.group.Serving() {
			continue
		}
		wg.Go(func() {
			err := s.handOver(ctx, r)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				kept++
				s.n.log.Info("a LUN is not handed over before this node stops: its other copies elect an owner when they miss it",
					"lun", r.lun.Name, "reason", err)
				return
			}
			moved++
		})
	}
	wg.Wait()
	return moved, kept
}

// handOver tries the copies in sync one after another, the preferred owner first.
func (s *replicas) handOver(ctx context.Context, r *running) error {
	var err error
	for _, to := range heirs(r.current(s.n.catalog.Model()), s.n.cfg.Node, r.group.Status().Peers) {
		if err = r.group.Transfer(ctx, to); err == nil {
			return r.awaitOwner(ctx)
		}
	}
	if err == nil {
		err = fmt.Errorf("no other copy is in sync")
	}
	return err
}

// heirs returns the replicas with data on other nodes that are in sync, the preferred owner's first.
func heirs(l catalog.LUN, self string, peers []replication.PeerStatus) []raft.ServerID {
	var out []raft.ServerID
	replicas := slices.Clone(l.Replicas)
	slices.SortStableFunc(replicas, func(a, b catalog.Replica) int {
		return strings.Compare(rank(a, l.Preferred), rank(b, l.Preferred))
	})
	for _, r := range replicas {
		if r.Witness || r.Node == self {
			continue
		}
		if slices.ContainsFunc(peers, func(p replication.PeerStatus) bool { return string(p.ID) == r.ID && p.InSync }) {
			out = append(out, raft.ServerID(r.ID))
		}
	}
	return out
}

// rank sorts the preferred node before the others, and those by name.
func rank(r catalog.Replica, preferred string) string {
	if r.Node == preferred {
		return ""
	}
	return r.Node
}

// awaitOwner returns when this node knows that another one owns the LUN.
func (r *running) awaitOwner(ctx context.Context) error {
	for {
		changed := r.accessChanged()
		if owner := r.group.Status().Owner.Node; owner != "" && owner != string(r.replica.Node) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("handed over, but the new owner is not known: %w", ctx.Err())
		}
	}
}
