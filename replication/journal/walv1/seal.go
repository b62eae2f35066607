package walv1

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore/block"
)

// raft-wal verifies its checksums only when it recovers the tail, and v0.4.2 accepts no codec but its own. So every entry
// goes to disk with a seal in front of its extensions, verified on every read:
//
//	offset size  (little endian)
//	     0    4  CRC32C of the entry's type, index, term, data and extensions
//	     4    1  version = 1
//	     5    3  reserved, 0
//	     8       the entry's own extensions
const (
	sealVersion = 1
	sealBytes   = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sealSum(l *raft.Log, extensions []byte) uint32 {
	var head [17]byte
	head[0] = byte(l.Type)
	binary.LittleEndian.PutUint64(head[1:], l.Index)
	binary.LittleEndian.PutUint64(head[9:], l.Term)
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, l.Data)
	return crc32.Update(sum, castagnoli, extensions)
}

// unseal verifies an entry read back and takes its seal off.
func unseal(l *raft.Log) error {
	if len(l.Extensions) < sealBytes {
		return &block.CorruptError{Where: "journal entry"}
	}
	head, ext := l.Extensions[:sealBytes], l.Extensions[sealBytes:]
	if binary.LittleEndian.Uint32(head) != sealSum(l, ext) {
		return &block.CorruptError{Where: "journal entry"}
	}
	if head[4] != sealVersion {
		return fmt.Errorf("entry sealed by version %d, this program reads version %d", head[4], sealVersion)
	}
	l.Extensions = nil
	if len(ext) > 0 {
		l.Extensions = ext
	}
	return nil
}
