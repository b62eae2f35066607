// Package blockstore answers: where is block N of this LUN, and is it intact?
//
// A Pool is one medium: a file, a block device, or an arena of memory. A Volume is one LUN's storage on it, with its snapshots.
// Volumes share the pool's slots of 256 KiB, which they take when a block is first written (thin) and give back when nothing
// needs them any more. Per chunk of 256 KiB the map says which slots hold its blocks, and which log entry changed it last; per
// stored block there is a CRC32C, which comes with the write from where the initiator's data was accepted, and is verified on
// every read.
//
// Invariant: after any crash, the state equals the log applied up to some index at or after the last checkpoint once the
// log has been replayed from there, and every block read either matches its checksum or is reported corrupt.
//
// It is not the job of this package to make a write durable (the journal has), to decide when to checkpoint or to reclaim, to
// refuse writes before the pool is full, to fetch a good block from a peer, or to know what a peer is.
//
// # What is in memory
//
// The map: 24 bytes per allocated chunk, 105 MB per TiB, and 24 bytes for each further layer that snapshots have made. The
// checksums (256 bytes per slot) and the pages of metadata are on the medium; of the checksums 64 MiB are cached, which covers
// 64 GiB of data in use. A medium of memory has all its checksums in memory.
//
// # Layers
//
// An epoch is the time between two snapshots. Each chunk has a list of layers, newest first: (epoch, slot, bitmap of blocks). A reader
// sees the layers of the epochs on its path, and of those, for each block, the newest that has it. So:
//
//   - A snapshot is an entry in a table and a new epoch: it touches no chunk, and the 200th costs what the first did.
//   - Reading a snapshot is reading with another path: one lookup in memory and one read of the medium, however many snapshots
//     lie between it and the live state.
//   - The first write to a block after a snapshot goes to another place and copies nothing. Blocks of many epochs share slots
//     (write.go), so a chunk takes as many slots as the block with the most versions has.
//   - A rollback makes the live path that of the snapshot, and a new epoch.
//   - A clone is a volume whose readers go on, where it has no layer, to the map of its origin with the snapshot's path.
//   - Deleting a snapshot takes it out of the table; Reclaim finds, chunk by chunk, what no path sees any more.
//
// # Why a crash at any moment is harmless
//
// Apply writes data in place, or to a free place, with no sync, and keeps the map in memory. A checkpoint writes what has changed of the map into free
// pages, syncs, and then writes the superblock that leads there, and syncs again. Whoever keeps the log keeps everything after the
// checkpoint. docs/FORMATS.md has the argument, beside the bytes it is about.
//
// A bit that flips in a page of the map is noticed by the page's checksum; what the page spoke of is then lost (Volume.Lost), to be
// repaired from a peer like any other corrupt block (lost.go). A bit that flips in a page of checksums makes its block look corrupt. What
// flips on the medium while memory has it is written anew (mapcheck.go).
//
// How this is tested: on vfs/crashdev, which drops, tears and reorders unsynced writes, with the power cut at every write, sync and
// discard of scripted runs, and in thousands of random ones, several volumes on a pool that is nearly full; and against a plain
// model (storetest) on every medium.
//
// A RAM pool has nothing to come back to after a crash, and by design must not pretend it had (a new incarnation joins its
// group and is rebuilt). Its volumes outlive Volume.Close, not Pool.Close or the process; its checkpoints do nothing, and it has no
// pages.
//
// # Errors
//
// block.ErrNoSpace means that nothing has changed and the pool goes on. An error of reading, writing or syncing the medium
// is final for the pool, and so for all its volumes: everything returns block.ErrFailed from then on, and nothing is retried,
// since after a failed sync the system may count lost data as written.
package blockstore
