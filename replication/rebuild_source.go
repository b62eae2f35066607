package replication

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/hashicorp/raft"

	"sanctuary/blockstore"
	"sanctuary/blockstore/block"
)

// The owner's side of a rebuild: it orders one, keeps its log for it, and answers with checksums and blocks.

// orderRebuild tells a replica to rebuild itself, or asks how far it is. It returns an error until that has been done.
func (g *Group) orderRebuild(ctx context.Context, m Member) error {
	g.pin(m.ID)
	g.mu.Lock()
	if g.rebuild.orders == nil {
		g.rebuild.orders = map[raft.ServerID]string{}
	}
	if g.rebuild.orders[m.ID] == "" {
		g.rebuild.orders[m.ID] = strconv.FormatUint(rand.Uint64(), 36)
	}
	order := rebuildOrder{LUN: g.cfg.LUN, ID: m.ID, Owner: g.cfg.Self.Node, Order: g.rebuild.orders[m.ID]}
	g.mu.Unlock()
	req, err := json.Marshal(order)
	if err != nil {
		return err
	}
	raw, err := g.host.mux.Call(ctx, m.Node, methodRebuild, req)
	if err != nil {
		return fmt.Errorf("tell %s to rebuild: %w", m.ID, err)
	}
	var answer rebuildAnswer
	if err := json.Unmarshal(raw, &answer); err != nil {
		return fmt.Errorf("answer of %s: %w", m.ID, err)
	}
	g.mu.Lock()
	if g.rebuild.progress == nil {
		g.rebuild.progress = map[raft.ServerID]RebuildProgress{}
	}
	g.rebuild.progress[m.ID] = answer.RebuildProgress
	g.mu.Unlock()
	if !answer.Done {
		return fmt.Errorf("%s is being rebuilt, %d bytes so far", m.ID, answer.Copied)
	}
	return nil
}

// endRebuild notes that a receiver votes.
func (g *Group) endRebuild(id raft.ServerID) {
	g.mu.Lock()
	g.rebuild.voidOrder(id)
	g.mu.Unlock()
	g.cfg.OnChange()
}

func (g *Group) pin(id raft.ServerID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rebuild.pinUntil == nil {
		g.rebuild.pinUntil = map[raft.ServerID]time.Time{}
	}
	g.rebuild.pinUntil[id] = time.Now().Add(pinTime)
}

func (g *Group) pinned() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, until := range g.rebuild.pinUntil {
		if time.Now().After(until) {
			delete(g.rebuild.pinUntil, id)
		}
	}
	return len(g.rebuild.pinUntil) > 0
}

// serveRebuildPin tells a receiver from where on this owner's log will be kept for it.
func (h *Host) serveRebuildPin(ctx context.Context, _ string, req []byte) ([]byte, error) {
	g, o, err := h.orderedGroup(req, true)
	if err != nil {
		return nil, err
	}
	inst := g.running()
	if inst == nil {
		return nil, block.ErrNotOwner
	}
	g.pin(o.ID)
	if err := g.endAlone(ctx, inst); err != nil {
		return nil, fmt.Errorf("the log is not cut off behind what it does not hold: %w", err)
	}
	f := inst.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, err
	}
	// The library does not tell the configuration's index. Any index at or before the copy's will do: later changes are in
	// the log that follows; 0 would forbid the receiver to stand for election.
	pin := rebuildPin{Configuration: raft.EncodeConfiguration(f.Configuration()), ConfigurationIndex: 1}
	// The index first, the state after it: a newer state is harmless, since replaying the changes that led to it changes
	// nothing; an older one would never be brought up to date.
	pin.Index = g.cfg.Store.Applied()
	if meta, _, ok := g.cfg.Journal.Snapshots().Newest(); ok && meta.Index >= pin.Index {
		// Behind the newest command there are only entries that change no data: the copy is one of the later index as well.
		pin.Index, pin.Term = meta.Index, meta.Term
	} else {
		var l raft.Log
		if err := g.cfg.Journal.Head(pin.Index, &l); err != nil {
			return nil, fmt.Errorf("entry %d: %w", pin.Index, err)
		}
		pin.Term = l.Term
	}
	pin.State = g.cfg.Store.State()
	pin.Snapshots, pin.Reshaped = snapshotsToWire(g.cfg.Store.Snapshots()), g.reshaped.Load()
	pin.Capacity = g.capacity()
	if len(pin.Snapshots) > 0 && !o.Snapshots {
		return nil, fmt.Errorf("the LUN has snapshots and the program of %s knows none: upgrade it", o.ID)
	}
	return json.Marshal(pin)
}

// lastCommand returns the index of the newest command at or before index, 0 if the log holds none.
func (g *Group) lastCommand(index uint64) (uint64, error) {
	first, err := g.cfg.Journal.FirstIndex()
	if err != nil {
		return 0, err
	}
	for i := index; i >= first && i > 0; i-- {
		var l raft.Log
		if err := g.cfg.Journal.Head(i, &l); err != nil {
			return 0, fmt.Errorf("entry %d: %w", i, err)
		}
		if l.Type == raft.LogCommand {
			return i, nil
		}
	}
	return 0, nil
}

var errEnough = errors.New("enough for one answer")

// serveRebuildInfo answers with checksums of the live volume: u32 the chunk to go on from (0: that was all), then per chunk u32
// number, u64 valid blocks, 64 × u32 CRC32C. The request is u64 since, u32 first chunk, LUN.
func (h *Host) serveRebuildInfo(_ context.Context, _ string, req []byte) ([]byte, error) {
	return h.rebuildInfo(rebuildPart{}, req)
}

func (h *Host) rebuildInfo(part rebuildPart, req []byte) ([]byte, error) {
	if len(req) < 12 {
		return nil, errors.New("malformed request")
	}
	var from uint32
	part.since, from = binary.LittleEndian.Uint64(req), binary.LittleEndian.Uint32(req[8:])
	g, err := h.servingGroup(string(req[12:]))
	if err != nil {
		return nil, err
	}
	state, err := g.stateOf(part.state)
	if err != nil {
		return nil, err
	}
	chunks := uint32((state.Geometry().Capacity.Bytes() + block.ChunkSize - 1) / block.ChunkSize)
	out := make([]byte, 4, 4+64*chunkRecordBytes)
	var info blockstore.ChunkInfo
	err = g.differing(part, from, chunks, func(c uint32) error {
		if len(out) >= rebuildChunks*chunkRecordBytes {
			binary.LittleEndian.PutUint32(out, c)
			return errEnough
		}
		if err := state.ChunkInfo(c, &info); err != nil {
			return err
		}
		out = binary.LittleEndian.AppendUint32(out, c)
		out = binary.LittleEndian.AppendUint64(out, info.Valid)
		// Who asks this is of an older program, and would keep a block of which it has the same checksum. That does not make it the same block
		// (rebuild_hash.go): so none is, and all are fetched.
		for _, s := range info.Sums {
			out = binary.LittleEndian.AppendUint32(out, ^s)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return out, nil
}

// serveRebuildRead answers with blocks of the live volume: the checksum of each, then the data of each. The request is u32
// count, count × u64 sector, LUN.
func (h *Host) serveRebuildRead(ctx context.Context, _ string, req []byte) ([]byte, error) {
	return h.rebuildRead(ctx, block.SnapshotID{}, req)
}

func (h *Host) rebuildRead(ctx context.Context, id block.SnapshotID, req []byte) ([]byte, error) {
	if len(req) < 4 {
		return nil, errors.New("malformed request")
	}
	n := int(binary.LittleEndian.Uint32(req))
	if n > rebuildReadBytes/block.Size || len(req) < 4+8*n {
		return nil, fmt.Errorf("malformed request for %d blocks", n)
	}
	g, err := h.servingGroup(string(req[4+8*n:]))
	if err != nil {
		return nil, err
	}
	state, err := g.stateOf(id)
	if err != nil {
		return nil, err
	}
	capacity := state.Geometry().Capacity
	out := make([]byte, n*(4+block.Size))
	sums, data := out[:4*n], out[4*n:]
	for i := range n {
		r := block.Range{Start: block.Sector(binary.LittleEndian.Uint64(req[4+8*i:])), Count: block.SectorsPerBlock}
		if err := r.Check(capacity); err != nil {
			return nil, err
		}
		dst := data[i*block.Size : (i+1)*block.Size]
		if err := g.readState(ctx, id, r, dst); err != nil { // a bad block is repaired from a third copy, if there is one
			return nil, err
		}
		binary.LittleEndian.PutUint32(sums[4*i:], block.Sum(dst))
	}
	return out, nil
}

func (h *Host) servingGroup(lun string) (*Group, error) {
	g, err := h.group(lun)
	if err != nil {
		return nil, err
	}
	if g.tenure.Load() == nil {
		return nil, block.ErrNotOwner
	}
	g.renewPins()
	return g, nil
}

// renewPins keeps the log for every receiver that has not given up: one of them is asking.
func (g *Group) renewPins() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.rebuild.pinUntil {
		g.rebuild.pinUntil[id] = time.Now().Add(pinTime)
	}
}
