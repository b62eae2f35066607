// Package sim runs whole clusters in one process, on a clock of their own, and breaks them: real Groups and Hosts, the real transport (gRPC), real
// journals, pools and volumes, over simulated disks (blockstore/vfs/crashdev) and a simulated network. It is run by make sim.
//
// Invariant: a seed fails if the history of all clients' operations has no linearization, block by block (a lost write, a stale read, a write that
// lands after it was given up), if a term has two leaders or two owners, if a command takes effect that was accepted before another owner served, if a replica does not start, if
// nobody serves ten seconds after everything was healed, if redundancy does not come back by itself, if the copies differ in one byte at an equal
// index, if nobody serves ten seconds after the owner of a healthy LUN was lost, or if a goroutine is left behind. Time is virtual (testing/synctest): a minute of waiting costs nothing.
//
// Clusters: two copies and a witness, three copies, one; in one of eight seeds four copies and a witness, or five copies (shapeOf). SIM_LARGE=1 has those only,
// SIM_LARGE=0 none: all other seeds are the same either way.
//
// Faults: processes killed; power cut, so that any sector that was not synced is lost, kept, torn or reordered; all power at once; disks that fail to
// sync, write or read, and stay so; a journal's file system that is full; syncs, which always take time, that are slow; bits that flip and blocks that land in a wrong place; disks that are lost; the network cut whole, in part, or in one
// direction; delay, loss (as TCP shows it: a stall), connections that break; ownership handed over; commands that arrive seconds after they were sent. Bytes in a
// connection are never repeated or reordered, since TCP does not let a network do that; requests are, by those who ask again.
//
// Between faults of chance are some that are aimed (aimed_test.go): a sequence that tempts the product to break one rule, at the moment at which
// it could, as power that is cut between an acknowledgement and the sync that it stands for. And whoever is seen to serve is asked at once for everything, and so
// is who still takes itself for the owner then.
//
// The atlas of faults (world.fault) spares one good copy of everything, so that what is promised can be kept: cuts, kills and the network spare what was
// synced and may meet anybody; what takes or damages a copy meets only one machine of a run, while every other copy is in sync.
//
// What is the same each time a seed is run: the shape, the faults and their times as far as those who are hit are up, the load's choices, what a power cut spares.
// What is not: the order of goroutines that could run at the same moment, the library's random timeouts, and so who is elected, and what a network delay falls on.
// A seed that failed may need ten runs to fail again; SIM_LOG=1 prints the trace of the one that did, with what the product says (2: and the library).
// With SIM_SHUFFLE=1 that order is another one each time, on purpose: it has found what the same seeds had not in many thousand runs.
//
// CI runs seeds 1 to 2000 (about 0.1 s of one processor each), and others on demand: make sim SIM_FIRST= SIM_SEEDS=. make simmutants shows, rule by rule, that
// the simulation notices when it is taken away.
//
// It needs a Go runtime in which a goroutine that waits for a mutex counts as waiting (scripts/sim builds it; build tag sim). It is not a model of speed,
// does not pause processes (scripts/prove does), and knows no iSCSI.
package sim
