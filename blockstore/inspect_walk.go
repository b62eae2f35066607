package blockstore

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"sanctuary/blockstore/block"
)

// walk is one way from the superblock down. Its pool was never started, and its medium refuses to be written to.
type walk struct {
	in      *inspection
	images  *superblockImages
	p       *Pool
	report  *Inspected
	volumes map[uint32]*Volume // those whose root is whole
	owner   slotOwners
	was     *walk // the one before, whose leaves are taken over where pointers have not changed
}

// slotOwner says in which chunk a slot is used; volume 0: nowhere.
type slotOwner struct{ volume, chunk uint32 }

// slotOwners are the owners of all slots, in pieces that are there where slots are used: a thin pool may be much larger than what it holds.
type slotOwners []*[ownersPerPiece]slotOwner

const ownersPerPiece = 4096

func newSlotOwners(slots uint32) slotOwners {
	return make(slotOwners, slots/ownersPerPiece+1)
}

func (o slotOwners) get(slot uint32) slotOwner {
	if piece := slot / ownersPerPiece; int(piece) < len(o) && o[piece] != nil {
		return o[piece][slot%ownersPerPiece]
	}
	return slotOwner{}
}

func (o slotOwners) set(slot uint32, owner slotOwner) {
	at := &o[slot/ownersPerPiece]
	if *at == nil {
		*at = new([ownersPerPiece]slotOwner)
	}
	(*at)[slot%ownersPerPiece] = owner
}

// each calls fn for every slot that is used, in ascending order, until it returns an error.
func (o slotOwners) each(fn func(slot uint32, owner slotOwner) error) error {
	for i, piece := range o {
		if piece == nil {
			continue
		}
		for n, owner := range piece {
			if owner.volume == 0 {
				continue
			}
			if err := fn(uint32(i)*ownersPerPiece+uint32(n), owner); err != nil {
				return err
			}
		}
	}
	return nil
}

// What findings say again and again.
const (
	dataNone       = "Nothing is lost: there is a second copy, and it is whole."
	nextReplaceBit = "Bits do not flip for nothing: look at the disk's health (smartctl) and consider replacing it. The next checkpoints write this anew."
	nextRepair     = "Start the node, if it does not run: it fetches what is missing from another copy. sanctuary lun scrub shows how far it is. Look at the disk's health."
	nextRebuild    = "Let the replica be rebuilt from another copy: replace the disk, or remove the pool from the node. As long as no other copy is whole, change nothing and keep an image of this medium."
	nextReport     = "A bit that flips cannot do that: keep an image of the medium, and report it. Let the replicas in this pool be rebuilt on a new one."
)

func (w *walk) find(f block.Finding) {
	if f.Path == "" {
		f.Path = w.in.cfg.Path
	}
	if len(w.report.Findings) >= maxFindings {
		w.report.MoreFindings++
		return
	}
	w.report.Findings = append(w.report.Findings, f)
}

func (w *walk) note(format string, args ...any) {
	w.report.Notes = append(w.report.Notes, fmt.Sprintf(format, args...))
}

// walk reads everything that the newest superblock leads to. was is a walk that was overtaken, or nil.
func (in *inspection) walk(ctx context.Context, was *walk) (*walk, error) {
	w := &walk{in: in, was: was, volumes: map[uint32]*Volume{}, p: newPool(in.dev), report: &Inspected{FormatVersion: FormatVersion, Volumes: []InspectedVolume{}, Findings: []block.Finding{}}}
	if was != nil {
		was.was, was.p.slots, was.owner = nil, nil, nil // only its leaves are needed
	}
	w.report.MediumBytes = in.dev.Size()
	if w.report.MediumBytes < superblockBytes {
		w.images = in.readSuperblocks()
		return w, fmt.Errorf("%w: a medium of %d bytes has no room for one", ErrNoPool, w.report.MediumBytes)
	}
	w.images = in.readSuperblocks()
	header := make([]byte, block.SectorSize)
	headerErr := in.dev.ReadAt(header, 0)
	s, found, newer := w.images.newest()
	if !found && newer == nil && headerErr != nil {
		return w, headerErr
	}
	there, err := judgeMedium(header, s, found, newer)
	corrupt := (*block.CorruptError)(nil)
	switch {
	case errors.As(err, &corrupt):
		w.find(block.Finding{
			Kind: "superblock", Offset: superblockOffsets[0][0], What: "none of the four superblocks matches its checksum",
			Data: "Nothing in this pool can be found: all its volumes are lost on this node. The other copies are not touched by that.", Next: nextRebuild,
		})
		w.report.UUID = hex.EncodeToString(header[16:32])
		return w, nil
	case errors.Is(err, ErrVersion):
		return w, err
	case err != nil:
		return w, fmt.Errorf("%w: %w", ErrNoPool, err)
	case !there:
		return w, fmt.Errorf("%w: the medium is blank, or the pool was cut off before it was complete", ErrNoPool)
	}
	w.report.UUID, w.report.Generation, w.report.CapacityBytes = hex.EncodeToString(s.uuid[:]), s.generation, s.capacityBytes
	w.checkHead(header, headerErr, s)
	w.p.useLayout(s)
	w.checkLayout()
	w.owner = newSlotOwners(w.p.layout.slots)
	if err := w.walkCatalogue(ctx); err != nil {
		return w, err
	}
	w.report.Slots, w.report.UsedSlots = int64(w.p.slots.count), int64(w.p.slots.count-w.p.slots.free)
	w.report.Pages, w.report.UsedPages = int64(w.p.layout.pages), int64(w.p.layout.pages-w.p.pages.free)
	return w, nil
}

// checkHead compares the header and the four superblocks with the newest one.
func (w *walk) checkHead(header []byte, headerErr error, s superblock) {
	if headerErr != nil || !bytes.Equal(header, encodeMediumHeader(s.uuid)) {
		w.find(block.Finding{
			Kind: "header", Offset: 0, What: "the header does not match its checksum, or cannot be read", Data: "Nothing is lost: the superblocks say the same.",
			Next: "Bits do not flip for nothing: look at the disk's health (smartctl) and consider replacing it. The next start or scrub writes it anew.",
		})
	}
	for i := range w.images.b {
		for j, b := range w.images.b[i] {
			f := block.Finding{Kind: "superblock", Offset: superblockOffsets[i][j], Data: dataNone, Next: nextReplaceBit}
			got, err := decodeSuperblock(b)
			switch {
			case w.images.err[i][j] != nil:
				f.What = fmt.Sprintf("copy %d of a superblock cannot be read: %v", j+1, w.images.err[i][j])
			case err == nil && got.uuid == s.uuid && got.generation%2 == uint64(i) && got.generation <= s.generation:
				if got.generation+1 < s.generation {
					w.note("the superblock at byte %d is of generation %d: the writing of a later one was cut off there, which is harmless", f.Offset, got.generation)
				}
				continue
			case i == 0 && bytes.Count(b, []byte{0}) == len(b):
				if s.generation > 2 {
					w.note("the superblock at byte %d was never written: its writing was cut off, which is harmless", f.Offset)
				}
				continue // the pool is new
			case err != nil && torn(b):
				w.note("the superblock at byte %d was cut off while it was written, which is harmless", f.Offset)
				continue
			default:
				f.What = fmt.Sprintf("copy %d of a superblock does not match its checksum", j+1)
			}
			w.find(f)
		}
	}
}

// torn says whether a superblock that matches no checksum may be one whose writing was cut off. What changes in it lies in its first sector, which is written
// entirely or not at all, unless there are more regions than fit there.
func torn(b []byte) bool {
	const inFirst = (block.SectorSize - 72) / regionBytes
	n := le32(b[68:])
	return string(b[:8]) == superblockMagic && n > inFirst && n <= maxRegions
}

// checkLayout compares the regions with the medium and with one another.
func (w *walk) checkLayout() {
	if err := w.p.layout.check(w.report.MediumBytes); err != nil {
		w.find(block.Finding{
			Kind: "medium", Offset: w.report.MediumBytes, What: err.Error() + ": it has been cut off", Data: "What lay behind the end of the medium is lost on this node.", Next: nextRebuild,
		})
	}
	type extent struct{ from, to int64 }
	var all []extent
	for _, r := range w.p.layout.regions {
		all = append(all, extent{r.sums, r.sums + int64(r.slots)*sumsPerSlotBytes}, extent{r.pages, r.pages + int64(r.pageCount)*pageBytes},
			extent{r.data, r.data + int64(r.slots)*block.ChunkSize})
	}
	slices.SortFunc(all, func(a, b extent) int { return int(min(max(a.from-b.from, -1), 1)) })
	for i := 1; i < len(all); i++ {
		if all[i].from < all[i-1].to {
			w.find(block.Finding{
				Kind: "superblock", Offset: all[i].from, What: "two parts of the pool lie in the same place", Data: "One has overwritten the other.", Next: nextReport,
			})
		}
	}
}

// chain reads a chain and marks its pages. Every finding of it is f with the place and what happened.
func (w *walk) chain(ptr pagePtr, o object, f block.Finding) (payload []byte, pages []uint32, ok bool) {
	payload, pages, err := w.p.pages.get(ptr, o)
	if err != nil {
		w.badPage(err, f)
		return nil, nil, false
	}
	w.mark(pages, o)
	return payload, pages, true
}

func (w *walk) badPage(err error, f block.Finding) {
	f.Offset, f.What = -1, err.Error()
	if at := (*pageError)(nil); errors.As(err, &at) && at.page != 0 {
		f.Offset = w.p.layout.pageOffset(at.page)
	}
	if corrupt := (*block.CorruptError)(nil); !errors.As(err, &corrupt) {
		f.Kind = "unreadable"
	} else {
		f.What = fmt.Sprintf("a page of the %s does not match its checksum, or is not the page that was written here", f.Kind)
	}
	w.find(f)
}

func (w *walk) mark(pages []uint32, o object) {
	for _, page := range pages {
		if !w.p.pages.mark(page) {
			w.find(block.Finding{
				Kind: "page", Offset: w.p.layout.pageOffset(page), What: fmt.Sprintf("metadata page %d is used twice, the second time by the %v", page, o),
				Data: "The pool cannot be opened: a change of one would destroy the other.", Next: nextReport,
			})
		}
	}
}

// twins reads both copies of what is there twice.
func (w *walk) twins(t twins, o object, one, both block.Finding) (payload []byte, pages []uint32, ok bool) {
	before := len(w.report.Findings)
	first, pages, whole := w.chain(t[0], o, one)
	second, more, otherWhole := w.chain(t[1], o, one)
	pages = append(pages, more...)
	switch {
	case whole && otherWhole && !bytes.Equal(first, second):
		one.Offset, one.What, one.Next = w.p.layout.pageOffset(max(1, min(t[1].page, w.p.layout.pages))), "the two copies are both whole and differ", nextReport
		w.find(one)
	case !whole && !otherWhole:
		for i := before; i < len(w.report.Findings); i++ {
			w.report.Findings[i].Data, w.report.Findings[i].Next = both.Data, both.Next
		}
		return nil, nil, false
	}
	if !whole {
		return second, pages, true
	}
	return first, pages, true
}

// walkCatalogue looks at all volumes, origins before their clones.
func (w *walk) walkCatalogue(ctx context.Context) error {
	payload, pages, ok := w.twins(w.p.catalogue.super.catalogue, object{kind: kindCatalogue},
		block.Finding{Kind: "catalogue", Data: dataNone, Next: nextReplaceBit},
		block.Finding{Data: "Which volumes there are, and where, is not known: all of them are lost on this node. The other copies are not touched by that.", Next: nextRebuild})
	if !ok {
		return nil
	}
	entries, err := decodeCatalogue(payload)
	state := catalogueState{super: w.p.catalogue.super, entries: entries, pages: pages}
	if err != nil || !bytes.Equal(state.encode(), payload) {
		w.find(block.Finding{Kind: "catalogue", Offset: -1, What: "the catalogue is whole and makes no sense", Data: "Volumes may be missing.", Next: nextReport})
	}
	w.p.catalogue = state
	names := map[string]uint32{}
	for _, number := range slices.Sorted(maps.Keys(entries)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := entries[number]
		switch other, twice := names[e.name]; {
		case number == 0 || number >= state.super.nextVolume:
			w.senseless(e.name, fmt.Sprintf("volume number %d, the next to be given away is %d", number, state.super.nextVolume))
		case twice && e.name != "":
			w.senseless(e.name, fmt.Sprintf("volumes %d and %d have one name", other, number))
		}
		names[e.name] = number
		if err := w.walkVolume(ctx, number, e); err != nil {
			return err
		}
	}
	return nil
}

// senseless is what only a mistake in the software can have written.
func (w *walk) senseless(volume, what string) {
	w.find(block.Finding{Kind: "volume", Offset: -1, Volume: volume, What: what, Data: "The volume may read as something it never was.", Next: nextReport})
}

func (w *walk) walkVolume(ctx context.Context, number uint32, e catalogueEntry) error {
	name := volumeName(e.name, number)
	lost := block.Finding{Data: fmt.Sprintf("Volume %s cannot be opened: all of it is lost on this node, with its snapshots and clones. The other copies are not touched by that.", name), Next: nextRebuild}
	payload, pages, ok := w.twins(e.root, object{kind: kindVolume, volume: number}, block.Finding{Kind: "root", Volume: name, Data: dataNone, Next: nextReplaceBit}, lost)
	report := InspectedVolume{Name: e.name, Number: number, Unreadable: true, Snapshots: []InspectedSnapshot{}}
	defer func() { w.report.Volumes = append(w.report.Volumes, report) }()
	if !ok {
		return nil
	}
	unusable := func(err error) {
		w.find(block.Finding{Kind: "root", Offset: w.p.layout.pageOffset(pages[0]), Volume: name, What: err.Error(), Data: lost.Data, Next: nextReport})
	}
	r, err := decodeVolume(name, payload)
	if errors.Is(err, ErrVersion) {
		return err
	}
	if err != nil {
		unusable(err)
		return nil
	}
	v, err := w.p.volumeOf(number, r, w.volumes)
	if corrupt := (*block.CorruptError)(nil); errors.As(err, &corrupt) {
		w.find(block.Finding{
			Kind: "clone", Offset: w.p.layout.pageOffset(pages[0]), Volume: name, What: fmt.Sprintf("it is a clone of epoch %d of volume %d, which cannot be read or is not there", r.originEpoch, r.originVolume),
			Data: lost.Data, Next: nextRebuild,
		})
		return nil
	} else if err != nil {
		unusable(err)
		return nil
	}
	v.applied.Store(r.applied)
	v.floor.Store(r.floor)
	v.inconsistent.Store(r.inconsistent)
	v.deleted = r.deleted
	v.onMedium = onMedium{root: e.root, rootPages: pages, directories: r.directories}
	if r.id != e.name || r.deleted != (e.name == "") {
		w.senseless(name, fmt.Sprintf("the catalogue calls it %q, its root %q", e.name, r.id))
	}
	for _, what := range r.lineage.flaws(r.deleted, r.applied, r.inconsistent) {
		w.find(block.Finding{Kind: "lineage", Offset: w.p.layout.pageOffset(pages[0]), Volume: name, What: what, Data: "A snapshot or the live volume may read as something it never was.", Next: nextReport})
	}
	w.volumes[number] = v
	if err := w.walkMap(ctx, v, name); err != nil {
		return err
	}
	report = w.reportOf(v, e.name)
	return nil
}

func volumeName(name string, number uint32) string {
	if name == "" {
		return fmt.Sprintf("number %d, deleted", number)
	}
	return name
}

func (w *walk) reportOf(v *Volume, name string) InspectedVolume {
	l := v.lineage.Load()
	r := InspectedVolume{
		Name: name, Number: v.number, SizeBytes: v.capacityNow().Bytes(), LogicalBlockBytes: v.blockBytes, Applied: v.applied.Load(), Epoch: l.epoch,
		AllocatedBytes: v.allocatedChunks.Load() * block.ChunkSize, Origin: v.origin.volume, OriginEpoch: v.origin.epoch, Rebuilding: v.inconsistent.Load(), Snapshots: []InspectedSnapshot{},
	}
	if !v.deleted {
		r.StoredBytes = v.countStored() * block.Size
	}
	for _, lost := range v.Lost() {
		r.LostBytes += lost.Bytes()
	}
	for i := range l.snapshots {
		s := &l.snapshots[i]
		r.Snapshots = append(r.Snapshots, InspectedSnapshot{
			Name: s.Name, ID: s.ID.String(), Epoch: s.epoch, Index: s.Index, SizeBytes: s.Capacity.Bytes(), StoredBytes: s.stored * block.Size, KeptForClones: s.hidden && !s.before, BeforeRebuild: s.before,
		})
	}
	return r
}
