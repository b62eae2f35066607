package main

import (
	"fmt"
	"io"
	"math/bits"
	"strings"

	"sanctuary/blockstore/block"
	"sanctuary/node/inspect"
)

// printInspection prints what was found: what is there, notes, and then each finding, so that what matters stands last.
func printInspection(w io.Writer, r *inspect.Report, f inspectFlags) {
	for _, p := range r.Pools {
		printInspectedPool(w, p, f)
	}
	for _, j := range r.Journals {
		printInspectedJournal(w, j, f)
	}
	for _, c := range r.Catalogs {
		log, snapshot := "the log is empty", "no snapshot"
		if c.Last > 0 {
			log = fmt.Sprintf("entries %d to %d", c.First, c.Last)
		}
		if c.Snapshot > 0 {
			snapshot = fmt.Sprintf("snapshot at entry %d, with %d nodes and %d LUNs", c.Snapshot, c.Nodes, c.LUNs)
		}
		line(w, "Catalog %s of node %s, cluster %s: %s, term %d; %s.", c.Path, c.Node, c.Cluster, log, c.CurrentTerm, snapshot)
	}
	for _, n := range r.Notes {
		line(w, "Note: %s.", n)
	}
	for _, f := range r.Findings {
		where := f.Path
		if f.Offset >= 0 {
			where += fmt.Sprintf(", byte %d", f.Offset)
		}
		if f.Volume != "" {
			where += ", volume " + f.Volume
		}
		line(w, "DAMAGED: %s: %s\n  %s\n  data: %s\n  next: %s", f.Kind, where, f.What, f.Data, f.Next)
	}
	if r.More > 0 {
		line(w, "And %d findings more.", r.More)
	}
	if r.Sound {
		line(w, "Sound.")
	}
}

func printInspectedPool(w io.Writer, p inspect.PoolReport, f inspectFlags) {
	line(w, "Pool %s: format %d, %s, generation %d%s.", p.Path, p.FormatVersion, p.UUID, p.Generation, inUse(p.InUse))
	line(w, "  %s of %s in use (%d of %d slots), %d of %d pages of metadata; the medium has %s.", roughSize(p.UsedSlots*chunkBytes), roughSize(p.CapacityBytes),
		p.UsedSlots, p.Slots, p.UsedPages, p.Pages, roughSize(p.MediumBytes))
	switch {
	case p.CheckedBytes > 0:
		line(w, "  %s of data compared with their checksums.", roughSize(p.CheckedBytes))
	case !f.data:
		line(w, "  The data were not read: see --data.")
	}
	if len(p.Volumes) > 0 {
		rows := [][]string{{"  VOLUME", "SIZE", "APPLIED", "ALLOCATED", "STORED", "SNAPSHOTS", "STATE"}}
		damage := map[string]int{}
		for _, d := range p.Findings {
			damage[d.Volume]++
		}
		for _, v := range p.Volumes {
			rows = append(rows, []string{
				"  " + inspectedName(v.Name, v.Number), formatSize(v.SizeBytes), fmt.Sprint(v.Applied), formatSize(v.AllocatedBytes), formatSize(v.StoredBytes),
				fmt.Sprint(len(v.Snapshots)), volumeState(v.Unreadable, damage[v.Name], v.Rebuilding, v.LostBytes, v.Origin),
			})
		}
		table(w, rows...)
	}
	for _, v := range p.Volumes {
		if !f.verbose || f.volume != "" && f.volume != v.Name {
			continue
		}
		for _, s := range v.Snapshots {
			kept := ""
			if s.KeptForClones {
				kept = ", deleted and kept for clones"
			}
			if s.BeforeRebuild {
				line(w, "  %s: what it held before the rebuild, as of entry %d, %s stored", inspectedName(v.Name, v.Number), s.Index, formatSize(s.StoredBytes))
				continue
			}
			line(w, "  %s: snapshot %s (%s) of entry %d, epoch %d, %s, %s stored%s", inspectedName(v.Name, v.Number), s.Name, s.ID, s.Index, s.Epoch, formatSize(s.SizeBytes), formatSize(s.StoredBytes), kept)
		}
	}
	for _, n := range p.Notes {
		line(w, "  Note: %s.", n)
	}
}

func inUse(pid int) string {
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf(", in use by process %d", pid)
}

func inspectedName(name string, number uint32) string {
	if name == "" {
		return fmt.Sprintf("(deleted, number %d)", number)
	}
	return name
}

func volumeState(unreadable bool, damage int, rebuilding bool, lostBytes int64, origin uint32) string {
	var s []string
	if unreadable {
		s = append(s, "UNREADABLE")
	}
	if damage > 0 {
		s = append(s, fmt.Sprintf("DAMAGED (%d)", damage))
	}
	if lostBytes > 0 {
		s = append(s, formatSize(lostBytes)+" LOST")
	}
	if rebuilding {
		s = append(s, "in a rebuild")
	}
	if origin != 0 {
		s = append(s, fmt.Sprintf("clone of number %d", origin))
	}
	return dash(strings.Join(s, ", "))
}

func printInspectedJournal(w io.Writer, j inspect.JournalReport, f inspectFlags) {
	line(w, "Journal %s: logs: %d, segments: %d.", j.Path, len(j.Groups), len(j.Segments))
	for _, g := range j.Groups {
		printInspectedLog(w, j.Replicas[g.Name], g)
	}
	for _, s := range j.Segments {
		if !f.verbose {
			break
		}
		closed := "open"
		if s.Sealed {
			closed = "closed"
		}
		line(w, "  %s: %d entries that count, %s, %s", s.File, s.Live, roughSize(s.Bytes), closed)
	}
}

func printInspectedLog(w io.Writer, replica string, g inspect.Log) {
	name := g.Name
	if replica != "" {
		name += " (replica " + replica + ")"
	}
	log := "the log is empty"
	if g.Last > 0 {
		log = fmt.Sprintf("entries %d to %d, of terms %d to %d", g.First, g.Last, g.FirstTerm, g.LastTerm)
	}
	vote := "it has never voted"
	if g.VoteTerm > 0 {
		vote = fmt.Sprintf("voted for %s in term %d", g.VotedFor, g.VoteTerm)
	}
	snapshot := "no snapshot"
	if g.Snapshot > 0 {
		snapshot = fmt.Sprintf("snapshot at entry %d", g.Snapshot)
	}
	line(w, "  %s: %s; term %d, %s; %s.", name, log, g.CurrentTerm, vote, snapshot)
}

// printChunk prints one line for each layer of a chunk.
func printChunk(w io.Writer, c inspect.Chunk) {
	head := fmt.Sprintf("%s chunk %d, changed by entry %d, page at byte %d", c.Volume, c.Chunk, c.Index, c.PageOffset)
	if len(c.Layers) == 0 {
		line(w, "%s: empty", head)
	}
	for _, l := range c.Layers {
		what := fmt.Sprintf("%d blocks (%016x) in slot %d at byte %d", bits.OnesCount64(l.Blocks), l.Blocks, l.Slot, l.Offset)
		switch {
		case l.Lost:
			what = fmt.Sprintf("%d blocks (%016x) LOST", bits.OnesCount64(l.Blocks), l.Blocks)
		case l.Slot == 0:
			what = fmt.Sprintf("%d blocks (%016x) are zeros", bits.OnesCount64(l.Blocks), l.Blocks)
		}
		line(w, "%s: epoch %d: %s", head, l.Epoch, what)
	}
}

// printEntry prints a log entry in one line.
func printEntry(w io.Writer, e inspect.Entry) {
	what := ""
	if e.Command != nil {
		var ops []string
		for _, op := range e.Command.Ops {
			ops = append(ops, opText(op))
		}
		what = strings.Join(ops, ", ")
		if e.Command.Fence != e.Term {
			what += fmt.Sprintf(" (accepted in term %d: changes nothing)", e.Command.Fence)
		}
	}
	line(w, "%s: entry %d term %d %s, %d bytes, %s byte %d: %s", e.Group, e.Index, e.Term, e.Type, e.DataBytes, e.File, e.Offset, dash(what))
}

func opText(op block.Op) string {
	names := map[block.OpKind]string{
		block.OpWrite: "write", block.OpZero: "zero", block.OpFill: "fill", block.OpState: "state", block.OpGrow: "grow", block.OpSnapshot: "snapshot",
		block.OpDeleteSnapshot: "delete snapshot", block.OpRollback: "roll back", block.OpCompare: "compare",
	}
	name := names[op.Kind]
	switch {
	case name == "":
		return fmt.Sprintf("operation of kind %d", op.Kind)
	case op.Kind.Blob():
		return name
	case op.Kind == block.OpGrow:
		return fmt.Sprintf("grow to %d sectors", op.Range.Count)
	}
	return fmt.Sprintf("%s of %d sectors at %d", name, op.Range.Count, op.Range.Start)
}
