package blockstore

import (
	"context"

	"sanctuary/blockstore/block"
)

// Reader is a state of a volume that can be read: the live one (Volume) or a snapshot (View).
type Reader interface {
	Geometry() block.Geometry
	ReadAt(r block.Range, dst []byte) error
	Allocated(r block.Range) (allocated bool, n block.Count, err error)
	ChunkInfo(chunk uint32, info *ChunkInfo) error
	CheckChunk(chunk uint32, info *ChunkInfo) (bad uint64, err error)
}

// Snapshots returns the volume's snapshots after the newest applied entry, oldest first, without those that were deleted and
// are kept because clones need them.
func (v *Volume) Snapshots() []block.Snapshot { return nil }

// View returns a snapshot to read from. It goes on working until the snapshot is deleted, and returns block.ErrNoSnapshot
// from then on.
func (v *Volume) View(id block.SnapshotID) (*View, error) { return nil, block.ErrNoSnapshot }

// View is a snapshot of a volume. Its methods are those of Volume, with the same errors and block.ErrNoSnapshot.
type View struct{}

var _, _ Reader = (*Volume)(nil), (*View)(nil)

func (w *View) Snapshot() block.Snapshot               { return block.Snapshot{} }
func (w *View) Geometry() block.Geometry               { return block.Geometry{} }
func (w *View) ReadAt(r block.Range, dst []byte) error { return block.ErrNoSnapshot }
func (w *View) Allocated(r block.Range) (allocated bool, n block.Count, err error) {
	return false, 0, block.ErrNoSnapshot
}
func (w *View) ChunkInfo(chunk uint32, info *ChunkInfo) error { return block.ErrNoSnapshot }
func (w *View) CheckChunk(chunk uint32, info *ChunkInfo) (bad uint64, err error) {
	return 0, block.ErrNoSnapshot
}

// Diff calls fn, in ascending order, for the ranges of whole blocks in which two states of the volume may differ. The zero
// ID as from means an empty volume, as to the live one. Blocks that were written with the same contents count as different.
func (v *Volume) Diff(from, to block.SnapshotID, fn func(r block.Range) error) error {
	return block.ErrNoSnapshot
}

// Space says what the live volume and each of its snapshots take.
type Space struct {
	Live      StateSpace
	Snapshots []StateSpace // in the order of Snapshots
	// KeptBytes is what deleted snapshots still take, until Reclaim has got to it or because clones need them.
	KeptBytes int64
}

// StateSpace is what one state of a volume refers to, in bytes of whole blocks.
type StateSpace struct {
	Snapshot       block.Snapshot // zero for the live volume
	LogicalBytes   int64          // its size as an initiator sees it
	StoredBytes    int64          // blocks that hold data
	ExclusiveBytes int64          // of those, what nothing else refers to: what deleting it would free
}

// Space walks the map: about a second for a TiB. It can be cancelled.
func (v *Volume) Space(ctx context.Context) (Space, error) { return Space{}, nil }

// Reclaim frees what deleted snapshots have left behind: it looks at up to limit chunks, beginning where it stopped, and
// returns whether there is more to do. Whoever owns the volume calls it in the background until it returns false, and again
// after each OpDeleteSnapshot. It runs beside Apply and everything else.
func (v *Volume) Reclaim(limit int) (more bool, err error) { return false, nil }

// Clone makes a volume whose contents are those of a snapshot of another one of this pool, without copying anything: durable
// before it returns, and opened, with Applied 0 and an empty state. It may be written, grow, have snapshots and be cloned like any
// other. The snapshot's data stays for as long as the clone needs it, even if the snapshot or its volume is deleted.
//
// Errors: ErrNotFound (the volume), block.ErrNoSnapshot, ErrExists, block.ErrFailed. The origin must be open.
func (p *Pool) Clone(id, origin string, snapshot block.SnapshotID) (*Volume, error) {
	return nil, block.ErrNoSnapshot
}

// Repair overwrites blocks of one chunk that do not match their checksums with what a peer has, and their checksums. blocks has
// a bit per block of the chunk, data those blocks in order. snapshot is the state the blocks are of; zero for the live one.
// asOf is the index at which the peer's contents of the chunk are known to be those of the log: nothing is done, and ErrChanged
// returned, if the live chunk has changed after it.
func (v *Volume) Repair(snapshot block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) error {
	return nil
}
