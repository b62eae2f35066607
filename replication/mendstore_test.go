package replication

import (
	"math/bits"
	"os"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// temporary: until blockstore repairs.
type mendStore struct {
	*blockstore.Volume
	file string
}

func (m *mendStore) Repair(snapshot block.SnapshotID, chunk uint32, blocks uint64, data []byte, asOf uint64) error {
	var info blockstore.ChunkInfo
	if err := m.ChunkInfo(chunk, &info); err != nil {
		return err
	}
	if info.Index > asOf {
		return blockstore.ErrChanged
	}
	f, err := os.OpenFile(m.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for ; blocks != 0; blocks &= blocks - 1 {
		n := bits.TrailingZeros64(blocks)
		if _, err := f.WriteAt(data[:block.Size], int64(info.Slot)*block.ChunkSize+int64(n)*block.Size); err != nil {
			return err
		}
		data = data[block.Size:]
	}
	return nil
}
