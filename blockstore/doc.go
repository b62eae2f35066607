// Package blockstore answers: where is block N of this LUN, and is it intact?
//
// A Pool is one medium: a file, or an arena of memory. A Volume is one LUN's storage on it. Volumes share the pool's
// chunk slots of 256 KiB, which they take when a block is first written (thin) and give back when the last block of a
// chunk is zeroed. Per chunk the map says which slot holds it, which of its 64 blocks are valid (the others read as zeros,
// whatever lies in the slot) and which log entry changed it last; per valid block there is a CRC32C, which comes with the
// write from where the initiator's data was accepted, and is verified on every read.
//
// Invariant: after any crash, the state equals the log applied up to some index at or after the last checkpoint once the
// log has been replayed from there, and every block read either matches its checksum or is reported corrupt.
//
// It is not the job of this package to make a write durable (the journal has), to decide when to checkpoint, to refuse
// writes before the pool is full, to repair a corrupt block, or to know what a peer is. In this version the map and the
// checksums of an open volume are resident: 24 bytes and 256 bytes per allocated chunk, 101 MB and 1.1 GB per TiB.
//
// # Why a crash at any moment is harmless
//
// Apply writes data in place with no sync, and keeps the map in memory. A checkpoint at index A captures the map entries,
// checksums, state and index that changed since the previous one, in memory and between two entries (so it never contains
// half an entry); then it syncs the data; then it commits what it captured in one transaction of the metadata store; only
// then does it say that A is durable. Whoever keeps the log keeps everything after A.
//
//  1. Everything the map of A points at was written before the sync, so it is on the medium in the version of A or a later
//     one. (Sync before commit: the other way round, the map could promise blocks that the medium never got.)
//  2. After the capture, data goes on being overwritten in place. After a crash the medium may therefore hold, for a block
//     the map of A knows, the content of A, a newer one, or a torn mixture of both, while the checksum is that of A.
//     Every such block was written by an entry after A. Entries carry whole blocks and do not depend on what was there, so
//     replaying them in order rewrites each such block and its checksum entirely. Until the replay has reached its end
//     those blocks may be reported corrupt; they are never returned wrong, since a mixture matches no checksum. Hence: replay
//     to the end of the log before serving.
//  3. A block whose valid bit was first set after A reads as zeros after a crash, until replay writes it: its slot, if it
//     is new, is not in the map of A and counts as free again.
//  4. A slot freed after A still belongs to its chunk in the map of A, and stays taken until a checkpoint that records the
//     freeing is durable. Were it given away before, a second volume could take it and checkpoint; then a crash would leave
//     two maps pointing at one slot, and the first volume's replay (of a write that came before the freeing) would
//     overwrite what the second one has made durable. No log would heal that. For the same reason holes are punched only
//     after that checkpoint, and before the slot can be taken again.
//  5. Entries at or before the applied index change nothing, so it does not matter how far back a replay begins.
//
// The metadata store is bbolt: copy-on-write pages, two meta pages with checksums, written in turn after the other pages
// are synced, so a commit has happened entirely or not at all. It alone carries atomicity. Our records carry their own
// CRC32C, bound to their key, because bbolt does not notice a flipped bit. A checkpoint writes only what has changed; the
// price of bbolt is that it rewrites the 4 KiB pages those records lie in.
//
// How this is tested: bbolt cannot run on a simulated disk (it maps its file), so the crash tests run the data on
// vfs/crashdev and the records in a MemoryMetadata whose commits are atomic, and cut the power at every write, sync,
// discard and commit, the last either just before or just after it takes effect. Both stores pass one test of their own.
//
// A RAM pool has nothing to come back to after a crash, and by design must not pretend it had (a new incarnation joins its
// group and is rebuilt). Its volumes outlive Volume.Close, not Pool.Close or the process; its checkpoints do nothing.
//
// # Errors
//
// block.ErrNoSpace means that nothing has changed and the pool goes on. An error of reading, writing or syncing the medium
// or of the metadata store is final for the pool, and so for all its volumes: everything returns block.ErrFailed from then
// on, and nothing is retried, since after a failed sync the system may count lost data as written.
package blockstore
