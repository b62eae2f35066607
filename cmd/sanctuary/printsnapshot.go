package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"sanctuary/node/api"
)

// roughSize is a size to be read, not to be typed: three digits or so.
func roughSize(n int64) string {
	for _, u := range units {
		if n >= u.bytes {
			if x := float64(n) / float64(u.bytes); x < 100 && n%u.bytes != 0 {
				return fmt.Sprintf("%.1f%s", x, u.suffix)
			}
			return fmt.Sprintf("%d%s", (n+u.bytes/2)/u.bytes, u.suffix)
		}
	}
	return fmt.Sprint(n)
}

func printSnapshots(w io.Writer, l api.SnapshotList) {
	if len(l.Snapshots) == 0 {
		line(w, "LUN %s has no snapshots. Take one: sanctuary lun snapshot create %s", l.LUN, l.LUN)
	} else {
		rows := [][]string{{"NAME", "ID", "CREATED", "SIZE", "STORED", "EXCLUSIVE", "SHARED", "SCHEDULE", "CLONES"}}
		for _, x := range l.Snapshots {
			stored, exclusive, shared := spaceColumns(x.Space)
			rows = append(rows, []string{
				x.Name, x.ID[:8], x.Created.Format(time.RFC3339), formatSize(x.SizeBytes), stored, exclusive, shared, dash(x.Schedule), dash(strings.Join(x.Clones, ",")),
			})
		}
		table(w, rows...)
	}
	if s := l.Space; s != nil {
		line(w, "\nLUN %s itself: %s stored, %s exclusive, %s shared. Deleted snapshots still take %s.",
			l.LUN, roughSize(s.StoredBytes), roughSize(s.ExclusiveBytes), roughSize(s.SharedBytes), roughSize(s.KeptBytes))
	}
	if len(l.Schedules) > 0 {
		line(w, "")
		printSchedules(w, l.LUN, l.Schedules)
	}
}

func spaceColumns(s *api.Space) (stored, exclusive, shared string) {
	if s == nil {
		return "-", "-", "-"
	}
	return roughSize(s.StoredBytes), roughSize(s.ExclusiveBytes), roughSize(s.SharedBytes)
}

func printSchedules(w io.Writer, lun string, schedules []api.ScheduleView) {
	if len(schedules) == 0 {
		line(w, "LUN %s has no schedule. Create one: sanctuary lun snapshot schedule %s --every 1h --keep 24", lun, lun)
		return
	}
	rows := [][]string{{"SCHEDULE", "EVERY", "KEEP", "LAST", "NEXT"}}
	for _, s := range schedules {
		last := "-"
		if s.Last != nil {
			last = s.Last.Format(time.RFC3339)
		}
		rows = append(rows, []string{s.Prefix, formatInterval(s.EverySeconds), fmt.Sprint(s.Keep), last, s.Next.Format(time.RFC3339)})
	}
	table(w, rows...)
	for _, s := range schedules {
		if s.Error != "" {
			line(w, "%s: the last attempt failed: %s", s.Prefix, s.Error)
		}
	}
}

func formatInterval(seconds int64) string {
	for _, u := range []struct {
		seconds int64
		letter  string
	}{{7 * 86400, "w"}, {86400, "d"}, {3600, "h"}, {60, "m"}} {
		if seconds%u.seconds == 0 {
			return fmt.Sprintf("%d%s", seconds/u.seconds, u.letter)
		}
	}
	return fmt.Sprintf("%ds", seconds)
}

func printDiff(w io.Writer, d api.Diff, changed int64) {
	if len(d.Ranges) == 0 {
		line(w, "No differences.")
		return
	}
	rows := [][]string{{"OFFSET", "LENGTH"}}
	for _, r := range d.Ranges {
		rows = append(rows, []string{fmt.Sprint(r.Offset), fmt.Sprint(r.Length)})
	}
	table(w, rows...)
	line(w, "\n%d ranges, %s of %s.", len(d.Ranges), roughSize(changed), formatSize(d.SizeBytes))
}

// originText says what a clone began as.
func originText(o *api.LUNOrigin) string {
	if o == nil {
		return "-"
	}
	text := fmt.Sprintf("snapshot %s (%.8s) of LUN %s", o.Snapshot, o.SnapshotID, o.LUN)
	if !o.Exists {
		text += ", which has been deleted"
	}
	if o.Waiting > 0 {
		text += fmt.Sprintf("; %d copies have yet to be made from it", o.Waiting)
	}
	return text
}

// lunSpaceText says what a LUN and its snapshots hold.
func lunSpaceText(s *api.LUNSpace) string {
	if s == nil {
		return "-"
	}
	text := fmt.Sprintf("%s stored in one copy, %s exclusive, %s shared", roughSize(s.StoredBytes), roughSize(s.ExclusiveBytes), roughSize(s.SharedBytes))
	if s.Snapshots > 0 {
		text += fmt.Sprintf("; %d snapshots hold %s alone", s.Snapshots, roughSize(s.SnapshotsBytes))
	}
	if s.KeptBytes > 0 {
		text += fmt.Sprintf("; deleted ones still take %s", roughSize(s.KeptBytes))
	}
	return text
}

// printWideLUNs is lun list -o wide.
func printWideLUNs(w io.Writer, luns []api.LUN) {
	rows := [][]string{{"NAME", "SIZE", "ALLOCATED", "STORED", "EXCLUSIVE", "SHARED", "SNAPSHOTS", "THEIR OWN", "MODE", "ORIGIN", "HEALTH", "OWNER"}}
	for _, l := range luns {
		stored, exclusive, shared, count, own := "-", "-", "-", "-", "-"
		if s := l.Space; s != nil {
			stored, exclusive, shared = spaceColumns(&s.Space)
			count, own = fmt.Sprint(s.Snapshots), roughSize(s.SnapshotsBytes)
		}
		mode, origin := "rw", "-"
		if l.ReadOnly {
			mode = "ro"
		}
		if l.Origin != nil {
			origin = l.Origin.LUN + "@" + l.Origin.Snapshot
		}
		rows = append(rows, []string{
			l.Name, formatSize(l.SizeBytes), roughSize(l.Allocated), stored, exclusive, shared, count, own, mode, origin, string(l.Health), dash(l.Owner),
		})
	}
	table(w, rows...)
}

func modeText(l api.LUN) string {
	if l.ReadOnly {
		return "read-only"
	}
	return "read and write"
}
