package prove

import (
	"math/rand/v2"
	"testing"
	"time"

	"sanctuary/node/api"
)

const (
	// partitionLasts is how long a single partition stands: long enough for everybody to have given everybody up.
	partitionLasts = 3 * time.Second
	// healLimit bounds how long the LUN may take to be served when all nodes run and hear each other again. TCP asks
	// less and less often while a partition lasts.
	healLimit = 10 * time.Second
)

// roles are the nodes of a cluster as a partition finds them.
type roles struct {
	owner, copy string
	third       string   // the witness, or a second copy
	all         []string // and clients
}

func (c *cluster) roles(l api.LUN) roles {
	r := roles{owner: l.Owner, all: c.net.hosts}
	for _, n := range c.nodes {
		switch {
		case n == r.owner:
		case r.copy == "" && n != witness:
			r.copy = n
		default:
			r.third = n
		}
	}
	return r
}

// partition is one way in which a network breaks.
type partition struct {
	name string
	// keeps: the owner hears a majority that hears it, so that nobody may replace it. Otherwise somebody must.
	keeps bool
	deaf  func(r roles, d deafness)
	// first, if there is one, is what holds for a moment before: shorter than a copy takes to be given up.
	first func(r roles, d deafness)
}

// moment is how long a first partition stands.
const moment = 400 * time.Millisecond

// peersOf are the nodes but one.
func (r roles) peersOf(node string) (out []string) {
	for _, n := range []string{r.owner, r.copy, r.third} {
		if n != node {
			out = append(out, n)
		}
	}
	return out
}

// alone takes a node off the network.
func alone(node func(roles) string) func(roles, deafness) {
	return func(r roles, d deafness) {
		d.apart(node(r), clients)
		for _, p := range r.peersOf(node(r)) {
			d.apart(node(r), p)
		}
	}
}

// apart makes two nodes deaf to each other.
func apart(a, b func(roles) string) func(roles, deafness) {
	return func(r roles, d deafness) { d.apart(a(r), b(r)) }
}

// unheard: nobody hears a node; it hears all. The initiators still reach it.
func unheard(node func(roles) string) func(roles, deafness) {
	return func(r roles, d deafness) {
		for _, p := range r.peersOf(node(r)) {
			d.to(p, node(r))
		}
	}
}

// hearsNobody: a node hears no other; they hear it. The initiators still reach it.
func hearsNobody(node func(roles) string) func(roles, deafness) {
	return func(r roles, d deafness) {
		for _, p := range r.peersOf(node(r)) {
			d.to(node(r), p)
		}
	}
}

func ownerOf(r roles) string { return r.owner }
func copyOf(r roles) string  { return r.copy }
func thirdOf(r roles) string { return r.third }

// partitions are those with which the LUN has to go on being served: a majority is left that hears each other.
var partitions = []partition{
	{name: "owner off the network", deaf: alone(ownerOf)},
	{name: "owner off the network, right after it was apart from the copy", first: apart(ownerOf, copyOf), deaf: alone(ownerOf)},
	{name: "owner without peers, initiators reach it", deaf: func(r roles, d deafness) {
		d.apart(r.owner, r.copy)
		d.apart(r.owner, r.third)
	}},
	{name: "nobody hears the owner", deaf: unheard(ownerOf)},
	{name: "the owner hears nobody", deaf: hearsNobody(ownerOf)},
	{name: "copy off the network", keeps: true, deaf: alone(copyOf)},
	{name: "third node off the network", keeps: true, deaf: alone(thirdOf)},
	{name: "owner and copy apart", keeps: true, deaf: apart(ownerOf, copyOf)},
	{name: "owner and third node apart", keeps: true, deaf: apart(ownerOf, thirdOf)},
	{name: "copy and third node apart", keeps: true, deaf: apart(copyOf, thirdOf)},
	{name: "the owner does not hear the copy", keeps: true, deaf: func(r roles, d deafness) { d.to(r.owner, r.copy) }},
	{name: "the copy does not hear the owner", keeps: true, deaf: func(r roles, d deafness) { d.to(r.copy, r.owner) }},
	{name: "the third node does not hear the owner", keeps: true, deaf: func(r roles, d deafness) { d.to(r.third, r.owner) }},
}

// TestProveEachPartition breaks the network of a healthy cluster in each way that leaves a majority. The LUN must be served while the partition stands,
// and again with all copies when it is over.
func TestProveEachPartition(t *testing.T) { eachPartition(t, clusterSpec{}) }

// TestProveEachPartitionOfThree does so with three copies and no witness.
func TestProveEachPartitionOfThree(t *testing.T) { eachPartition(t, clusterSpec{three: true}) }

func eachPartition(t *testing.T, s clusterSpec) {
	rng := prove(t)
	if !inside(t) {
		return
	}
	s.media, s.sizeBytes, s.network = "file", 256<<20, true
	cl := startCluster(t, s)
	w := startLoad(t, cl, cl.healthy(), rng)
	var during, after []time.Duration
	for _, at := range rng.Perm(len(partitions)) {
		p := partitions[at]
		wait(t, 300*time.Millisecond)
		before := cl.healthy()
		if p.first != nil {
			d := deafness{}
			p.first(cl.roles(before), d)
			cl.net.set(d)
			wait(t, moment)
		}
		d := deafness{}
		p.deaf(cl.roles(before), d)
		cut := time.Now()
		cl.net.set(d)
		wait(t, partitionLasts)
		served := w.answered(time.Now())
		during = append(during, w.longest(cut, served))
		healed := time.Now()
		cl.net.set(deafness{})
		after = append(after, w.answered(healed).Sub(healed))
		l := cl.healthy()
		if kept := l.Term == before.Term; kept != p.keeps {
			t.Errorf("%s: owner %s (term %d) before, %s (term %d) after; want the same one: %v", p.name, before.Owner, before.Term, l.Owner, l.Term, p.keeps)
		}
		t.Logf("%s (owner %s; %s): longest I/O %v; healed: first I/O after %v, owner %s, in sync after %v", p.name, before.Owner, d,
			during[len(during)-1].Round(time.Millisecond), after[len(after)-1].Round(time.Millisecond), l.Owner, time.Since(healed).Round(time.Millisecond))
		w.heat(rng)
	}
	w.finish(cl)
	// An initiator whose owner has gone silent finds out after 1.5 s, when the others may have long agreed on another.
	stalls(t, "partitions that leave a majority", during, 2*stallLimit(t))
	stalls(t, "healed partitions, until I/O went on", after, healLimit)
}

// TestProvePartitions breaks the network in any way, again and again, and kills, stops and starts nodes meanwhile, without waiting for anything.
// I/O may wait as long as nobody can serve it; nothing that was acknowledged may be missing, nobody may read what is old, and when all
// run and hear each other again the LUN is served within a bound.
func TestProvePartitions(t *testing.T) { anyPartitions(t, clusterSpec{}) }

// TestProvePartitionsOfThree does so with three copies and no witness.
func TestProvePartitionsOfThree(t *testing.T) { anyPartitions(t, clusterSpec{three: true}) }

func anyPartitions(t *testing.T, s clusterSpec) {
	rng := prove(t)
	if !inside(t) {
		return
	}
	s.media, s.sizeBytes, s.keepBytes, s.network = "file", 256<<20, 16<<20, true
	cl := startCluster(t, s)
	w := startLoad(t, cl, cl.healthy(), rng)
	var waits []time.Duration
	for round := range count(t, "PROVE_PARTITIONS", max(2, kills(t)/4)) {
		q := newSequence(cl, rng)
		for range 5 + rng.IntN(8) {
			if rng.IntN(5) < 3 {
				d := anyDeafness(rng, cl.net.hosts)
				cl.net.set(d)
				q.done = append(q.done, d.String())
			} else {
				q.step()
			}
			wait(t, time.Duration(rng.IntN(2000))*time.Millisecond)
		}
		cl.net.set(deafness{})
		waits = append(waits, q.end(round, w))
	}
	w.finish(cl)
	stalls(t, "partitions, until I/O went on when all was whole", waits, healLimit)
}

// anyDeafness draws a way for the network to be broken, or whole again.
func anyDeafness(rng *rand.Rand, hosts []string) deafness {
	d := deafness{}
	nodes := hosts[1:]
	at := rng.Perm(len(nodes))
	a, b := nodes[at[0]], nodes[at[1]]
	others := func(list []string, f func(string)) {
		for _, h := range list {
			if h != a {
				f(h)
			}
		}
	}
	switch rng.IntN(9) {
	case 0: // whole
	case 1: // a off the network
		others(hosts, func(h string) { d.apart(a, h) })
	case 2: // a without peers; the initiators reach it
		others(nodes, func(h string) { d.apart(a, h) })
	case 3: // two of the nodes
		d.apart(a, b)
	case 4:
		d.to(a, b)
	case 5: // a hears no other node
		others(nodes, func(h string) { d.to(a, h) })
	case 6: // no other node hears a
		others(nodes, func(h string) { d.to(h, a) })
	case 7: // a chain: both are heard by the third alone
		d.apart(a, b)
		d.apart(a, clients)
	default: // each of what there is, one way, with one chance in three
		for _, x := range hosts {
			for _, y := range hosts {
				if x != y && rng.IntN(3) == 0 {
					d.to(x, y)
				}
			}
		}
	}
	return d
}
