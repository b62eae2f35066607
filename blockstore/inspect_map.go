package blockstore

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"slices"

	"sanctuary/blockstore/block"
)

// walkMap reads a volume's directories and leaves, and takes stock of its slots.
func (w *walk) walkMap(ctx context.Context, v *Volume, name string) error {
	leaves := leavesFor(v.m.chunks.Load())
	directories := (leaves + directoryLeaves - 1) / directoryLeaves
	if len(v.onMedium.directories) > directories {
		w.senseless(name, fmt.Sprintf("%d directories, its size wants %d at most", len(v.onMedium.directories), directories))
	}
	v.onMedium.directories = grown(v.onMedium.directories[:min(len(v.onMedium.directories), directories)], directories)
	v.onMedium.leaves = make([]pagePtr, leaves)
	place := *v.m.leaves.Load()
	for n, ptr := range v.onMedium.directories {
		if ptr.page == 0 {
			continue
		}
		first, end := n*directoryLeaves, min(leaves, (n+1)*directoryLeaves)
		payload, _, ok := w.chain(ptr, object{kindDirectory, v.number, uint64(n)}, block.Finding{
			Kind: "directory", Volume: name, Data: lostChunks(v, uint32(first)*leafChunks, uint32(end)*leafChunks), Next: nextRepair,
		})
		if !ok {
			for i := first; i < end; i++ {
				v.lose(&place[i], uint32(i))
			}
			continue
		}
		if len(payload)%ptrBytes != 0 || len(payload) > (end-first)*ptrBytes {
			w.senseless(name, fmt.Sprintf("directory %d has %d bytes", n, len(payload)))
		}
		d := decoder{b: payload}
		for i := first; i < end && len(d.b) >= ptrBytes; i++ {
			v.onMedium.leaves[i] = d.ptr()
		}
	}
	if err := w.walkLeaves(ctx, v, name); err != nil {
		return err
	}
	w.takeStock(v, name)
	return nil
}

// lostChunks says what it means that a piece of the map cannot be read.
func lostChunks(v *Volume, from, to uint32) string {
	start, end := int64(from)*block.ChunkSize, min(int64(to)*block.ChunkSize, v.capacityNow().Bytes())
	return fmt.Sprintf("What bytes %d to %d of the volume hold is not known on this node, in its snapshots and clones neither. Reading them is an error until they are repaired from another copy.", start, end-1)
}

// walkLeaves reads the leaves in the order in which they lie on the medium.
func (w *walk) walkLeaves(ctx context.Context, v *Volume, name string) error {
	var items []leafAt
	place := *v.m.leaves.Load()
	lost := func(it leafAt, err error) {
		from := it.number * leafChunks
		w.badPage(err, block.Finding{Kind: "leaf", Volume: name, Data: lostChunks(v, from, from+leafChunks), Next: nextRepair})
		v.onMedium.leaves[it.number] = pagePtr{}
		v.lose(&place[it.number], it.number)
	}
	take := func(it leafAt, l *leaf, pages []uint32) {
		w.mark(pages, object{kindLeaf, v.number, uint64(it.number)})
		if len(pages) > 1 {
			if v.onMedium.leafPages == nil {
				v.onMedium.leafPages = map[uint32][]uint32{}
			}
			v.onMedium.leafPages[it.number] = pages
		}
		place[it.number].Store(l)
	}
	for n, ptr := range v.onMedium.leaves {
		it := leafAt{uint32(n), ptr}
		if l, pages := w.known(v.number, it); l != nil {
			take(it, l, pages)
		} else if ptr.page > w.p.layout.pages {
			lost(it, &pageError{err: damaged(fmt.Sprintf("pointer to page %d", ptr.page))})
		} else if ptr.page != 0 {
			items = append(items, it)
		}
	}
	slices.SortFunc(items, func(a, b leafAt) int { return cmp.Compare(a.ptr.page, b.ptr.page) })
	var buf []byte
	for len(items) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		run := items[:w.p.layout.leafRun(items)]
		items = items[len(run):]
		first := run[0].ptr.page
		n := int(run[len(run)-1].ptr.page-first+1) * pageBytes
		buf = slices.Grow(buf[:0], n)
		b := buf[:n]
		together := w.in.dev.ReadAt(b, w.p.layout.pageOffset(first))
		for _, it := range run {
			image := b[int(it.ptr.page-first)*pageBytes:][:pageBytes]
			if together != nil { // which of them it is that cannot be read
				if err := w.in.dev.ReadAt(image, w.p.layout.pageOffset(it.ptr.page)); err != nil {
					lost(it, &pageError{it.ptr.page, fmt.Errorf("read page %d: %w", it.ptr.page, err)})
					continue
				}
			}
			l, pages, err := w.p.pages.readLeaf(object{kindLeaf, v.number, uint64(it.number)}, it.ptr, image)
			if err != nil {
				lost(it, err)
				continue
			}
			take(it, l, pages)
		}
	}
	return nil
}

// known returns a leaf of the walk before this one, if the pointer to it is the same, and its pages.
func (w *walk) known(volume uint32, it leafAt) (*leaf, []uint32) {
	if w.was == nil || it.ptr.page == 0 {
		return nil, nil
	}
	v := w.was.volumes[volume]
	if v == nil || int(it.number) >= len(v.onMedium.leaves) || v.onMedium.leaves[it.number] != it.ptr {
		return nil, nil
	}
	l, _ := v.m.find(it.number * leafChunks)
	return l, v.pagesOfLeaf(it.number)
}

// takeStock checks the layers of every chunk, and marks their slots.
func (w *walk) takeStock(v *Volume, name string) {
	var list []layer
	var own []uint32
	allocated := int64(0)
	chunks, l := v.m.chunks.Load(), v.lineage.Load()
	for n := range *v.m.leaves.Load() {
		lf, _ := v.m.find(uint32(n) * leafChunks)
		if lf == nil || v.onMedium.leaves[n].page == 0 { // lost, and reported as such
			continue
		}
		flawed := func(at uint32, format string, args ...any) {
			w.find(block.Finding{
				Kind: "leaf", Offset: w.p.layout.pageOffset(v.onMedium.leaves[n].page), Volume: name,
				What: fmt.Sprintf("chunk %d: ", uint32(n)*leafChunks+at) + fmt.Sprintf(format, args...),
				Data: "These 256 KiB of the volume, or of a snapshot, may read as something they never were.", Next: nextReport,
			})
		}
		for at := range uint32(leafChunks) {
			chunk := uint32(n)*leafChunks + at
			list = lf.layers(at, list[:0])
			if chunk >= chunks && (lf.present(at) || len(list) > 0) {
				flawed(at, "it is beyond the end of the volume")
			}
			if lf.index[at] > v.applied.Load() && !v.inconsistent.Load() {
				flawed(at, "entry %d changed it, the volume has applied %d", lf.index[at], v.applied.Load())
			}
			for i, y := range list {
				if y.epoch > l.epoch {
					flawed(at, "a layer of epoch %d, the newest is %d", y.epoch, l.epoch)
				}
				for _, other := range list[:i] {
					if y.slot != noSlot && y.slot != lostSlot && y.slot == other.slot && y.bits&other.bits != 0 {
						flawed(at, "epochs %d and %d have blocks in the same place of slot %d", other.epoch, y.epoch, y.slot)
					}
				}
			}
			own = slotsOf(list, own[:0])
			for _, slot := range own {
				allocated++
				switch {
				case slot > w.p.slots.count:
					flawed(at, "slot %d of %d", slot, w.p.slots.count)
				case !w.p.slots.mark(slot):
					w.twice(slot, chunk, name)
				default:
					w.owner.set(slot, slotOwner{v.number, chunk})
				}
			}
		}
	}
	v.allocatedChunks.Store(allocated)
	if lostBefore := v.lostBefore(); lostBefore > 0 {
		w.find(block.Finding{
			Kind: "lost", Offset: -1, Volume: name, What: fmt.Sprintf("%d blocks are marked as lost: pages of the map that spoke of them were found damaged at an earlier start", lostBefore),
			Data: "Reading them is an error until they are written, or repaired from another copy. " + whereLost(v), Next: nextRepair,
		})
	}
}

// lostBefore counts the blocks that some state has lost by a mark in the volume's own map: not by a page that is found damaged now, nor by
// what a clone's origin has lost.
func (v *Volume) lostBefore() (n int) {
	lost := v.LostChunks(1 << 20)
	for i := 0; i < len(lost); {
		chunk, blocks := lost[i].Chunk, uint64(0)
		for ; i < len(lost) && lost[i].Chunk == chunk; i++ {
			blocks |= lost[i].Blocks
		}
		l, at := v.m.find(chunk)
		marked := l != nil && slices.ContainsFunc(l.extras(at), func(y layer) bool { return y.slot == lostSlot })
		if v.onMedium.leaves[chunk/leafChunks].page != 0 && marked {
			n += bits.OnesCount64(blocks)
		}
	}
	return n
}

// whereLost lists what of the live volume is lost, up to a length that can be read.
func whereLost(v *Volume) string {
	const most = 8
	lost := v.Lost()
	if len(lost) == 0 {
		return "None of them is in the live volume: snapshots have them."
	}
	s := "In the live volume: bytes"
	for i, r := range lost {
		if i == most {
			return s + fmt.Sprintf(" and %d ranges more.", len(lost)-most)
		}
		s += fmt.Sprintf(" %d to %d,", r.Offset(), r.Offset()+r.Bytes()-1)
	}
	return s[:len(s)-1] + "."
}

// twice reports a slot with two owners.
func (w *walk) twice(slot, chunk uint32, name string) {
	first := w.owner.get(slot)
	other := name
	if v := w.volumes[first.volume]; v != nil {
		other = volumeName(v.id, v.number)
	}
	w.find(block.Finding{
		Kind: "slot", Offset: w.p.layout.slotOffset(slot), Volume: name,
		What: fmt.Sprintf("slot %d is used twice: by chunk %d of volume %s and by chunk %d of volume %s", slot, first.chunk, other, chunk, name),
		Data: "One of the two has overwritten the other's data. The pool cannot be opened as it is.", Next: nextReport,
	})
}

// flaws returns what is wrong with what a volume knows of its own past.
func (l *lineage) flaws(deleted bool, applied uint64, importing bool) (flaws []string) {
	add := func(format string, args ...any) { flaws = append(flaws, fmt.Sprintf(format, args...)) }
	if deleted != (l.live == nil) {
		add("the path of the live state is %v, and deleted is %t", l.live, deleted)
	}
	if !l.live.ascends() || l.live != nil && l.live[len(l.live)-1].last != l.epoch {
		add("the path of the live state is %v, its epoch %d", l.live, l.epoch)
	}
	for i := range l.snapshots {
		s := &l.snapshots[i]
		switch {
		case !s.path.ascends() || len(s.path) == 0 || s.path[len(s.path)-1].last != s.epoch:
			add("snapshot %q of epoch %d has the path %v", s.Name, s.epoch, s.path)
		case s.epoch >= l.epoch || i > 0 && s.epoch <= l.snapshots[i-1].epoch:
			add("snapshot %q of epoch %d does not follow the one before it, or is not before the live state, which is of epoch %d", s.Name, s.epoch, l.epoch)
		case s.Index > applied && !importing:
			add("entry %d made snapshot %q, the volume has applied %d", s.Index, s.Name, applied)
		case !s.hidden && l.find(s.ID) != i:
			add("two snapshots have the ID %s", s.ID)
		}
	}
	if n := l.visible(); n > block.MaxSnapshots {
		add("%d snapshots, at most %d", n, block.MaxSnapshots)
	}
	return flaws
}

// ascends says whether the ranges of a path are in order and do not overlap.
func (p path) ascends() bool {
	for i, e := range p {
		if e.first > e.last || i > 0 && e.first <= p[i-1].last {
			return false
		}
	}
	return true
}

// list tells cfg.Chunk of every chunk.
func (w *walk) list(cfg InspectConfig) {
	var list []layer
	for _, r := range w.report.Volumes {
		v := w.volumes[r.Number]
		if v == nil || cfg.Volume != "" && cfg.Volume != r.Name {
			continue
		}
		for n := range *v.m.leaves.Load() {
			lf, _ := v.m.find(uint32(n) * leafChunks)
			if lf == nil {
				continue
			}
			page := int64(-1)
			if ptr := v.onMedium.leaves[n]; ptr.page != 0 {
				page = w.p.layout.pageOffset(ptr.page)
			}
			for at := range uint32(leafChunks) {
				if list = lf.layers(at, list[:0]); !lf.present(at) && len(list) == 0 {
					continue
				}
				c := InspectedChunk{Volume: r.Name, Chunk: uint32(n)*leafChunks + at, Index: lf.index[at], PageOffset: page}
				for _, y := range list {
					layer := InspectedLayer{Epoch: y.epoch, Blocks: y.bits, Slot: y.slot, Offset: -1, Lost: y.slot == lostSlot}
					switch {
					case y.slot == lostSlot:
						layer.Slot = 0
					case y.slot != noSlot && y.slot <= w.p.layout.slots:
						layer.Offset = w.p.layout.slotOffset(y.slot)
					}
					c.Layers = append(c.Layers, layer)
				}
				cfg.Chunk(c)
			}
		}
	}
}
