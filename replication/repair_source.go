package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
	"sanctuary/replication/transport"
)

// What a replica asks another for, and how that one answers. The bytes are in docs/FORMATS.md.

const (
	repairVersion       = 1
	repairRequestBytes  = 48
	repairAnswerBytes   = 40
	maxRepairAnswer     = repairAnswerBytes + block.BlocksPerChunk*(4+block.Size)
	repairReadTries     = 64
	repairCodeNotNow    = 1 // of a transport.HandlerError: ask again
	repairCodeNoSuch    = 2 // there is no such snapshot here
	maxRepairLUNBytes   = 256
	repairAnswerTimeout = repairLag + time.Second
)

type repairRequest struct {
	key     chunkKey
	blocks  uint64
	atLeast uint64 // the index the answering replica must have applied; of a snapshot it is not looked at
}

func (q repairRequest) encode(lun string, epoch uint64) []byte {
	b := make([]byte, 0, repairRequestBytes+len(lun))
	b = append(b, repairVersion, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, q.key.chunk)
	b = append(b, q.key.snapshot[:]...)
	b = binary.LittleEndian.AppendUint64(b, q.blocks)
	b = binary.LittleEndian.AppendUint64(b, q.atLeast)
	b = binary.LittleEndian.AppendUint64(b, epoch)
	return append(b, lun...)
}

func decodeRepairRequest(b []byte) (q repairRequest, lun string, epoch uint64, err error) {
	if len(b) < repairRequestBytes || len(b) > repairRequestBytes+maxRepairLUNBytes {
		return q, "", 0, fmt.Errorf("malformed request of %d bytes", len(b))
	}
	if b[0] != repairVersion {
		return q, "", 0, fmt.Errorf("request of version %d, this program knows version %d", b[0], repairVersion)
	}
	q.key = chunkKey{chunk: binary.LittleEndian.Uint32(b[4:]), snapshot: block.SnapshotID(b[8:24])}
	q.blocks, q.atLeast = binary.LittleEndian.Uint64(b[24:]), binary.LittleEndian.Uint64(b[32:])
	return q, string(b[repairRequestBytes:]), binary.LittleEndian.Uint64(b[40:]), nil
}

// repairAnswer is what the peer has: of blocks that are zeros, and not stored, no data travels.
type repairAnswer struct {
	node    string // who it is from
	index   uint64 // the newest change of the chunk
	applied uint64 // by the peer, before it looked
	given   uint64 // the blocks that are good there
	stored  uint64 // of those, the ones with data
	sums    [block.BlocksPerChunk]uint32
	blocks  [block.BlocksPerChunk][]byte // nil: zeros
}

var zeroBlock [block.Size]byte

// zeroSum is the checksum of a block that reads as zeros.
var zeroSum = block.Sum(zeroBlock[:])

// data returns blocks one after another, as Repair wants them.
func (a *repairAnswer) data(blocks uint64) []byte {
	out := make([]byte, 0, bits.OnesCount64(blocks)*block.Size)
	for rest := blocks; rest != 0; rest &= rest - 1 {
		if b := a.blocks[bits.TrailingZeros64(rest)]; b != nil {
			out = append(out, b...)
		} else {
			out = append(out, zeroBlock[:]...)
		}
	}
	return out
}

func (a *repairAnswer) encode() []byte {
	n := bits.OnesCount64(a.stored)
	b := make([]byte, 8, repairAnswerBytes+n*(4+block.Size))
	b[0] = repairVersion
	for _, v := range []uint64{a.index, a.applied, a.given, a.stored} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for rest := a.stored; rest != 0; rest &= rest - 1 {
		b = binary.LittleEndian.AppendUint32(b, a.sums[bits.TrailingZeros64(rest)])
	}
	for rest := a.stored; rest != 0; rest &= rest - 1 {
		b = append(b, a.blocks[bits.TrailingZeros64(rest)]...)
	}
	return b
}

// decodeRepairAnswer verifies every block against the checksum that came with it.
func decodeRepairAnswer(b []byte) (*repairAnswer, error) {
	if len(b) < repairAnswerBytes || len(b) > maxRepairAnswer || b[0] != repairVersion {
		return nil, fmt.Errorf("malformed answer of %d bytes", len(b))
	}
	a := &repairAnswer{
		index: binary.LittleEndian.Uint64(b[8:]), applied: binary.LittleEndian.Uint64(b[16:]),
		given: binary.LittleEndian.Uint64(b[24:]), stored: binary.LittleEndian.Uint64(b[32:]),
	}
	n := bits.OnesCount64(a.stored)
	if a.stored&^a.given != 0 || len(b) != repairAnswerBytes+n*(4+block.Size) {
		return nil, fmt.Errorf("answer of %d bytes for %d blocks", len(b), n)
	}
	sums, data := b[repairAnswerBytes:repairAnswerBytes+4*n], b[repairAnswerBytes+4*n:]
	for at := range block.BlocksPerChunk {
		a.sums[at] = zeroSum
		if a.stored>>at&1 == 0 {
			continue
		}
		a.sums[at], a.blocks[at] = binary.LittleEndian.Uint32(sums), data[:block.Size:block.Size]
		if block.Sum(a.blocks[at]) != a.sums[at] {
			return nil, fmt.Errorf("block %d of the answer does not match its checksum", at)
		}
		sums, data = sums[4:], data[block.Size:]
	}
	return a, nil
}

// askBlocks asks a peer. errMoved: it may be asked again.
func (g *Group) askBlocks(ctx context.Context, m Member, q repairRequest) (*repairAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, repairAnswerTimeout)
	defer cancel()
	raw, err := g.host.mux.CallBulk(ctx, m.Node, methodRepairRead, q.encode(g.cfg.LUN, g.cfg.Epoch))
	var remote *transport.RemoteError
	if errors.As(err, &remote) && remote.Detail == repairCodeNotNow {
		return nil, fmt.Errorf("%w: %s", errMoved, remote.Text)
	}
	if err != nil {
		return nil, err
	}
	a, err := decodeRepairAnswer(raw)
	if err != nil {
		return nil, err
	}
	a.node = m.Node
	if q.key.live() && (a.applied < q.atLeast || a.index > a.applied) {
		return nil, fmt.Errorf("%w: answer as of %d to %d, %d was asked for", errMoved, a.index, a.applied, q.atLeast)
	}
	return a, nil
}

// serveRepairRead answers with what this replica has, once it has applied what was asked for. It never repairs its own
// blocks for it: two replicas that ask each other would wait for each other.
func (h *Host) serveRepairRead(ctx context.Context, _ string, req []byte) ([]byte, error) {
	q, lun, epoch, err := decodeRepairRequest(req)
	if err != nil {
		return nil, err
	}
	g, err := h.group(lun)
	if err != nil {
		return nil, err
	}
	if g.cfg.Store == nil || g.cfg.Epoch != epoch || g.Err() != nil {
		return nil, errNoReplica
	}
	if !g.exact(ctx) {
		return nil, &transport.HandlerError{Code: repairCodeNotNow, Text: errNotExact.Error()}
	}
	if q.key.live() {
		if err := g.awaitApplied(ctx, q.atLeast); err != nil {
			return nil, &transport.HandlerError{Code: repairCodeNotNow, Text: err.Error()}
		}
	}
	a, err := g.blocksFor(ctx, q)
	switch {
	case errors.Is(err, errMoved):
		return nil, &transport.HandlerError{Code: repairCodeNotNow, Text: err.Error()}
	case errors.Is(err, block.ErrNoSnapshot):
		return nil, &transport.HandlerError{Code: repairCodeNoSuch, Text: err.Error()}
	case err != nil:
		return nil, err
	}
	return a.encode(), nil
}

// blocksFor reads blocks while their chunk does not change. The applied index is taken before: of an entry that is being
// applied a part may be there already, and its index is above it then.
func (g *Group) blocksFor(ctx context.Context, q repairRequest) (*repairAnswer, error) {
	r, err := g.stateOf(q.key.snapshot)
	if err != nil {
		return nil, err
	}
	var before, after blockstore.ChunkInfo
	for range repairReadTries {
		a := &repairAnswer{applied: g.cfg.Store.Applied()}
		if err := r.ChunkInfo(q.key.chunk, &before); err != nil {
			return nil, err
		}
		if !q.key.live() || before.Index <= a.applied {
			if err := a.read(r, q, &before); err != nil {
				return nil, err
			}
			if err := r.ChunkInfo(q.key.chunk, &after); err != nil {
				return nil, err
			}
			if !q.key.live() || before.Index == after.Index {
				a.index = before.Index
				return a, nil
			}
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, errMoved
}

func (a *repairAnswer) read(r blockstore.Reader, q repairRequest, info *blockstore.ChunkInfo) error {
	for rest := q.blocks; rest != 0; rest &= rest - 1 {
		n := bits.TrailingZeros64(rest)
		if q.key.block(n).Check(r.Geometry().Capacity) != nil {
			continue
		}
		buf := make([]byte, block.Size)
		err := r.ReadAt(q.key.block(n), buf)
		if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
			continue
		}
		if err != nil {
			return err
		}
		a.given |= 1 << n
		if info.Valid>>n&1 == 1 {
			a.stored |= 1 << n
			a.sums[n], a.blocks[n] = block.Sum(buf), buf
		}
	}
	return nil
}
