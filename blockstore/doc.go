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
// Apply writes data in place, or to a free place, with no sync, and keeps the map in memory. A checkpoint at index A captures the
// leaves of the map, the lineage, state and index that changed since the previous one, in memory and between two entries
// (so it never contains half an entry). It writes the leaves, and the directories and root that lead to them, into free pages;
// writes the checksums that have changed over the old ones; syncs; then writes a superblock that leads to the new root, in
// the place of the last but one; syncs; and only then says that A is durable, and frees the pages it has replaced. Whoever keeps
// the log keeps everything after A.
//
//  1. Everything the map of A points at was written before the first sync, so it is on the medium in the version of A or a
//     later one. (Were the superblock written before that sync, the map could promise what the medium never got.)
//  2. Pages that the last durable superblock leads to are never overwritten; so whichever of the two superblocks a crash leaves,
//     all it leads to is there. One that is torn does not match its checksum, and the other one is taken.
//  3. After the capture, data goes on being overwritten in place, and so do checksums. After a crash the medium may therefore hold, for a
//     block the map of A knows, the content and the checksum of A, newer ones, or torn mixtures of both. Every such block was written by
//     an entry after A. Entries carry whole blocks and do not depend on what was there, so replaying them in order rewrites each
//     such block and its checksum entirely; the blocks beside it in the same page of checksums have the same value in the old and
//     the new version of a torn page. Until the replay has reached its end those blocks may be reported corrupt; they are never
//     returned wrong, since a mixture matches no checksum. Hence: replay to the end of the log before serving.
//  4. A block whose place was first taken after A is not in the map of A, and its slot, if that is new, counts as free again.
//  5. A place that was made free after A, by an entry that zeroed the block, may be used again at once for the same block: the
//     replay repeats that entry before anything can depend on the place. One that only a deleted snapshot saw, or the live state
//     before a rollback, may not: Reclaim frees it, after a checkpoint that knows of the deletion.
//  6. A slot freed after A stays taken until a checkpoint that records the freeing is durable. Were it given away before, a
//     second volume could take it and checkpoint; then a crash would leave two maps pointing at one slot, and the first
//     volume's replay (of a write that came before the freeing) would overwrite what the second one has made durable. No log
//     would heal that. For the same reason holes are punched only after that checkpoint, and before the slot can be taken again.
//  7. Reclaim moves blocks between slots without a log entry. It writes only to places that are free, points the map there, and
//     gives up the slot it has emptied as a whole: by 6 that one is untouched until the map that knows of the move is durable.
//  8. A clone is made after a checkpoint of its origin that has the snapshot, and its root says which snapshot it needs; so
//     whatever a crash leaves, a clone finds its ground. That the snapshot is still needed follows from the clone's being
//     there. A volume that is deleted while clones need it loses its name, and stays.
//  9. Entries at or before the applied index change nothing, so it does not matter how far back a replay begins.
//  10. A pool is synced when it is opened: what a killed process has left in the system's cache must be durable before
//     anything that only it has freed is overwritten.
//  11. The slots of a page of the map that cannot be read are unknown, and so free. None is given away before it is durable that the
//     page is lost: it may be readable after a crash, and must not be believed then (unread.go).
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
