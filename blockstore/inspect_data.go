package blockstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"sanctuary/blockstore/block"
)

// Blocks and checksums are written in place, between checkpoints, and the checksums of a running pool reach the medium with the next checkpoint at
// the latest. So a block that does not match its checksum is not damage if
//
//   - it was written since, or is being written: then one of the two changes soon, or has changed already. In a pool that is running it is called damage
//     if both have stayed the same while a volume made two checkpoints, the second of which began after we had looked, or for a long time without any;
//   - the pool was not closed, because the node was killed or lost power, and the log has an entry after the last checkpoint that writes the
//     block again. Only blocks of the live epoch are ever written in place.

// suspect is a block that does not match its checksum.
type suspect struct {
	slot     uint32
	n        int // block in the chunk
	owner    slotOwner
	data     uint32 // checksum of what lies there
	sum      uint32 // what it should be
	writable bool   // a block of the live epoch, which may be written in place
}

// maxSuspects are remembered; further ones are counted.
const maxSuspects = 1 << 16

// checkData compares every stored block with its checksum, in the order of the medium. It returns the walk that the report belongs to.
func (in *inspection) checkData(ctx context.Context, w *walk) (*walk, error) {
	c := &dataCheck{in: in, total: w.dataBytes(), pace: pace{perSecond: in.cfg.BytesPerSecond, start: time.Now()}, buf: make([]byte, block.ChunkSize)}
	err := w.owner.each(func(slot uint32, o slotOwner) error { return c.slot(ctx, w, slot, o) })
	if err != nil {
		return nil, err
	}
	if in.cfg.Progress != nil {
		in.cfg.Progress(c.done, c.total)
	}
	if len(c.suspects) > 0 && (in.cfg.Running || !in.readSuperblocks().same(w.images)) {
		if w, err = in.settle(ctx, w, c); err != nil {
			return nil, err
		}
	} else {
		c.judge(w)
	}
	w.report.Findings = append(w.report.Findings, c.unreadable...)
	w.report.CheckedBytes, w.report.MoreFindings = c.done, w.report.MoreFindings+c.more
	return w, nil
}

// dataCheck is what checkData has found.
type dataCheck struct {
	in          *inspection
	done, total int64
	pace        pace
	buf         []byte
	suspects    []suspect
	unreadable  []block.Finding
	more        int64
}

// blocksOf returns which blocks of a chunk a slot holds, and which of them are of the live epoch.
func (w *walk) blocksOf(slot uint32, o slotOwner) (all, writable uint64) {
	v := w.volumes[o.volume]
	if v == nil {
		return 0, 0
	}
	l, at := v.m.find(o.chunk)
	if l == nil {
		return 0, 0
	}
	for _, y := range l.layers(at, nil) {
		if y.slot == slot {
			all |= y.bits
			if y.epoch == v.lineage.Load().epoch && !v.deleted {
				writable |= y.bits
			}
		}
	}
	return all, writable
}

func (w *walk) dataBytes() (n int64) {
	_ = w.owner.each(func(slot uint32, o slotOwner) error {
		all, _ := w.blocksOf(slot, o)
		n += int64(bits.OnesCount64(all)) * block.Size
		return nil
	})
	return n
}

func (c *dataCheck) slot(ctx context.Context, w *walk, slot uint32, o slotOwner) error {
	all, writable := w.blocksOf(slot, o)
	sums := make([]byte, sumsPerSlotBytes)
	sumsErr := w.in.dev.ReadAt(sums, w.p.layout.sumsOffset(slot))
	for rest := all; rest != 0; {
		first, n := runOf(rest)
		rest &^= blockMask(first, n)
		if err := c.pace.wait(ctx, int64(n)*block.Size); err != nil {
			return err
		}
		b, off := c.buf[:n*block.Size], w.p.layout.slotOffset(slot)+int64(first)*block.Size
		err := w.in.dev.ReadAt(b, off)
		for i := range n {
			one := b[i*block.Size:][:block.Size]
			if err != nil { // which of them it is that cannot be read
				if err := w.in.dev.ReadAt(one, off+int64(i)*block.Size); err != nil {
					c.cannotRead(w, o, first+i, off+int64(i)*block.Size, err)
					continue
				}
			}
			if sumsErr != nil {
				c.cannotRead(w, o, first+i, w.p.layout.sumsOffset(slot), sumsErr)
				continue
			}
			s := suspect{slot: slot, n: first + i, owner: o, data: block.Sum(one), sum: binary.LittleEndian.Uint32(sums[4*(first+i):]), writable: writable>>(first+i)&1 == 1}
			switch {
			case s.data == s.sum:
			case len(c.suspects) < maxSuspects:
				c.suspects = append(c.suspects, s)
			default:
				c.more++
			}
		}
		c.done += int64(n) * block.Size
		if c.in.cfg.Progress != nil && c.pace.due(c.done) {
			c.in.cfg.Progress(c.done, c.total)
		}
	}
	return nil
}

func (c *dataCheck) cannotRead(w *walk, o slotOwner, n int, off int64, err error) {
	if len(c.unreadable) >= maxFindings {
		c.more++
		return
	}
	v := w.volumes[o.volume]
	r := blockRange(o.chunk, n, 1)
	c.unreadable = append(c.unreadable, block.Finding{
		Kind: "unreadable", Path: w.in.cfg.Path, Offset: off, Volume: volumeName(v.id, v.number), What: fmt.Sprintf("the disk cannot read it: %v", err),
		Data: fmt.Sprintf("Bytes %d to %d of the volume, or of a snapshot, cannot be read on this node.", r.Offset(), r.Offset()+r.Bytes()-1), Next: nextRepair,
	})
}

// judge decides about the suspects of a pool that is not running.
func (c *dataCheck) judge(w *walk) {
	waits, rebuilt := 0, 0
	for _, s := range c.suspects {
		v := w.volumes[s.owner.volume]
		known := c.in.cfg.Rewritten
		switch {
		case s.writable && v.inconsistent.Load():
			rebuilt++
		case s.writable && known != nil && known(v.id, v.applied.Load(), blockRange(s.owner.chunk, s.n, 1)):
			waits++
		case s.writable && known == nil:
			w.badBlock(s, fmt.Sprintf(" (Or it was written after log entry %d, and the node was killed before the next checkpoint: then the log writes it again when the node starts. "+
				"Inspect the data directory with the journals to know.)", v.applied.Load()))
		default:
			w.badBlock(s, "")
		}
	}
	if waits > 0 {
		w.note("%d blocks do not match their checksums because the pool was not closed; the log writes them again when the node starts", waits)
	}
	if rebuilt > 0 {
		w.note("%d blocks of volumes in the middle of a rebuild do not match their checksums; the rebuild begins again when the node starts", rebuilt)
	}
}

func (w *walk) badBlock(s suspect, but string) {
	v := w.volumes[s.owner.volume]
	r := blockRange(s.owner.chunk, s.n, 1)
	where := "of the volume"
	if !s.writable {
		where = "of the volume or of its snapshots"
	}
	w.find(block.Finding{
		Kind: "block", Offset: w.p.layout.slotOffset(s.slot) + int64(s.n)*block.Size, Volume: volumeName(v.id, v.number),
		What: fmt.Sprintf("a block has the checksum %08x, at byte %d there is %08x", s.data, w.p.layout.sumsOffset(s.slot)+4*int64(s.n), s.sum),
		Data: fmt.Sprintf("Bytes %d to %d %s are damaged on this node, or their checksum is; reading them is an error, never wrong data.%s", r.Offset(), r.Offset()+r.Bytes()-1, where, but),
		Next: nextRepair,
	})
}

// settle decides about the suspects of a pool that is running.
func (in *inspection) settle(ctx context.Context, w *walk, c *dataCheck) (*walk, error) {
	if err := in.outlast(ctx); err != nil {
		return nil, err
	}
	before := w
	w, err := in.steadyWalk(ctx)
	if err != nil {
		return nil, err
	}
	// Findings of the first walk that have gone were not there: it had been steady when they were made, so they can only have been mended.
	if n := len(before.report.Findings) - len(w.report.Findings); n > 0 {
		w.note("%d findings were mended meanwhile by the node", n)
	}
	changed := 0
	block4k, sum := make([]byte, block.Size), make([]byte, 4)
	for _, s := range c.suspects {
		if w.owner.get(s.slot) != s.owner {
			continue // it is not used any more, or for something else
		}
		if all, _ := w.blocksOf(s.slot, s.owner); all>>s.n&1 == 0 {
			continue
		}
		if in.dev.ReadAt(block4k, w.p.layout.slotOffset(s.slot)+int64(s.n)*block.Size) != nil || in.dev.ReadAt(sum, w.p.layout.sumsOffset(s.slot)+4*int64(s.n)) != nil {
			continue // it could be read before: whoever has it reports that
		}
		switch data, want := block.Sum(block4k), binary.LittleEndian.Uint32(sum); {
		case data == want:
		case data != s.data || want != s.sum:
			changed++
		default:
			w.badBlock(s, "")
		}
	}
	if changed > 0 {
		w.note("%d blocks were being written all the time and could not be compared", changed)
	}
	return w, nil
}

// outlast returns when what had been written before it was called has reached the medium with its checksums: when one volume has made two more
// checkpoints, the second of which began after the first had ended; or when no superblock was written for cfg.Settle.
func (in *inspection) outlast(ctx context.Context) error {
	const look = 100 * time.Millisecond
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	images, quiet, seen := in.readSuperblocks(), time.Now(), map[uint32]int{}
	roots, _ := in.rootsOf(images) // none, if it was overtaken: then one checkpoint more is waited for
	for time.Since(quiet) < in.cfg.Settle {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		now := in.readSuperblocks()
		if now.same(images) {
			continue
		}
		images, quiet = now, time.Now()
		next, ok := in.rootsOf(now)
		if !ok {
			continue // overtaken: the next look sees the newer one
		}
		for number, root := range next {
			if was, there := roots[number]; there && was != root {
				if seen[number]++; seen[number] == 2 {
					return nil
				}
			}
		}
		roots = next
	}
	return nil
}

// rootsOf reads the catalogue of the newest superblock.
func (in *inspection) rootsOf(images *superblockImages) (map[uint32]twins, bool) {
	s, found, _ := images.newest()
	if !found {
		return nil, false
	}
	l := newLayout(s.regions)
	payload, _, _, err := newPageStore(in.dev, &l).getTwins(s.catalogue, object{kind: kindCatalogue})
	if err != nil {
		return nil, false
	}
	entries, err := decodeCatalogue(payload)
	if err != nil {
		return nil, false
	}
	roots := map[uint32]twins{}
	for number, e := range entries {
		roots[number] = e.root
	}
	return roots, true
}

// pace spreads reading over time.
type pace struct {
	perSecond int64 // 0: no bound
	start     time.Time
	read      int64
	told      int64
}

// wait waits until n more bytes may be read.
func (p *pace) wait(ctx context.Context, n int64) error {
	if p.perSecond > 0 {
		due := p.start.Add(time.Duration(float64(p.read) / float64(p.perSecond) * float64(time.Second)))
		if d := time.Until(due); d > 0 {
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
	}
	p.read += n
	return ctx.Err()
}

// due says whether it is time to tell of the progress: every 64 MiB.
func (p *pace) due(done int64) bool {
	if done-p.told < 64<<20 {
		return false
	}
	p.told = done
	return true
}
