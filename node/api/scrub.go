package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// ReplicaScrub is how the scrub of one copy is getting on, and what it has found. Counts are since its process started.
type ReplicaScrub struct {
	Replica    string       `json:"replica" doc:"ID of the replica"`
	Enabled    bool         `json:"enabled" doc:"It is scrubbed: copies in RAM are not"`
	Paused     bool         `json:"paused"`
	Running    bool         `json:"running" doc:"A pass is under way"`
	Percent    float64      `json:"percent" doc:"Of the pass under way, or of the last one"`
	Bytes      int64        `json:"bytes" doc:"Read in it"`
	Started    *time.Time   `json:"started,omitempty" doc:"When it began"`
	Completed  *time.Time   `json:"completed,omitempty" doc:"When the last complete pass ended"`
	Bad        uint64       `json:"bad" doc:"Blocks of 4 KiB that did not match their checksum, found by the scrub or by a command"`
	Repaired   uint64       `json:"repaired" doc:"Of those, written again from another copy"`
	Unrepaired uint64       `json:"unrepaired" doc:"Bad now: no other copy of them could be read yet"`
	Pages      uint64       `json:"pages" doc:"Pages of metadata and checksums that were damaged on the disk and written again from memory"`
	LastBad    *time.Time   `json:"last_bad,omitempty" doc:"When the last bad block or page was found"`
	Compared   uint64       `json:"compared" doc:"Owner: chunks of 256 KiB it has had all copies compared of"`
	Diverged   uint64       `json:"diverged" doc:"Owner: blocks that differed between copies although each matched its checksum"`
	Mended     uint64       `json:"mended" doc:"Owner: of those, the ones that are the same again"`
	Waits      string       `json:"waits,omitempty" doc:"Owner: why copies are not compared"`
	Findings   []Divergence `json:"findings,omitempty" doc:"Owner: the newest differences, oldest first"`
}

// Divergence is a difference between copies that have applied the same log.
type Divergence struct {
	At       time.Time `json:"at"`
	Snapshot string    `json:"snapshot,omitempty" doc:"ID of the snapshot that the copies differed in; absent: the live contents"`
	Chunk    uint32    `json:"chunk" doc:"Position, in units of 256 KiB"`
	Blocks   []uint32  `json:"blocks" nullable:"false" doc:"Blocks of 4 KiB within the chunk"`
	Replicas []string  `json:"replicas" nullable:"false" doc:"Copies that were taken for wrong"`
	Kept     []string  `json:"kept,omitempty" doc:"Copies that were taken for right"`
	Repaired bool      `json:"repaired" doc:"They are the same again"`
	Error    string    `json:"error,omitempty" doc:"Why not"`
}

// ScrubPause says whether a LUN is to be scrubbed.
type ScrubPause struct {
	Paused bool `json:"paused" doc:"No copy is scrubbed until it is resumed; what is found bad by a command is repaired all the same"`
}

type scrubPauseRequest struct {
	LUNRequest
	Body ScrubPause
}

func (s *Server) registerScrub() {
	start := changes("start-scrub", http.MethodPost, "/v1/luns/{lun}/scrub", "Begin a pass of the scrub on every copy", "luns", http.StatusOK, s.toOwner)
	start.Description = "A pass that is under way begins again."
	huma.Register(s.api, start, s.startScrub)
	huma.Register(s.api, changes("pause-scrub", http.MethodPut, "/v1/luns/{lun}/scrub", "Pause or resume the scrub of a LUN", "luns",
		http.StatusOK, s.toLeader), s.pauseScrub)
}

func (s *Server) startScrub(ctx context.Context, in *LUNRequest) (*reply[LUN], error) {
	l, err := s.svc.LUN(ctx, in.LUN)
	if err != nil {
		return nil, asProblem(err)
	}
	if err := s.svc.StartScrub(ctx, l.ID); err != nil {
		return nil, asProblem(err)
	}
	if l, err = s.lookup(ctx, l.ID, false); err != nil {
		return nil, asProblem(err)
	}
	return &reply[LUN]{l}, nil
}

func (s *Server) pauseScrub(ctx context.Context, in *scrubPauseRequest) (*reply[LUN], error) {
	l, err := s.svc.LUN(ctx, in.LUN)
	if err != nil {
		return nil, asProblem(err)
	}
	if err := s.svc.PauseScrub(ctx, l.ID, in.Body.Paused); err != nil {
		return nil, asProblem(err)
	}
	s.settle(ctx)
	if l, err = s.lookup(ctx, l.ID, false); err != nil {
		return nil, asProblem(err)
	}
	return &reply[LUN]{l}, nil
}

func within(snapshot string) string {
	if snapshot == "" {
		return ""
	}
	return " of snapshot " + snapshot
}

// recentDivergence is how long copies that differed and were made the same again are still worth an alert.
const recentDivergence = 7 * 24 * time.Hour

// scrubAlerts says what was found bad in a LUN's copies.
func scrubAlerts(l LUN, now time.Time) (out []Alert) {
	for _, c := range l.Scrub {
		if c.Unrepaired > 0 {
			out = append(out, Alert{
				Severity: SeverityCritical, Subject: "lun/" + l.Name,
				What: fmt.Sprintf("%d blocks of replica %s of LUN %s do not match their checksums and could not be repaired from another copy", c.Unrepaired, c.Replica, l.Name),
				Data: "Reads of these blocks on that copy end with a medium error; nothing wrong is returned. They are tried again every minute.",
				Next: "Bring the other copies back. If they are there, those blocks are bad on all of them: restore what lies there, or overwrite it. Check the disk.",
			})
		} else if c.LastBad != nil && now.Sub(*c.LastBad) < 24*time.Hour {
			out = append(out, Alert{
				Severity: SeverityWarning, Subject: "lun/" + l.Name,
				What: fmt.Sprintf("%d blocks of replica %s of LUN %s did not match their checksums and were repaired, and %d damaged pages of its metadata were written again",
					c.Repaired, c.Replica, l.Name, c.Pages),
				Data: "Nothing is lost, and nothing wrong was returned.", Next: "Check the disk of that node: one that returns something else than was written will do it again.",
			})
		}
		for _, d := range c.Findings {
			if d.Repaired && now.Sub(d.At) > recentDivergence {
				continue
			}
			a := Alert{
				Severity: SeverityWarning, Subject: "lun/" + l.Name,
				What: fmt.Sprintf("Copies of LUN %s differed in chunk %d%s, blocks %v, under checksums that matched: on %s",
					l.Name, d.Chunk, within(d.Snapshot), d.Blocks, strings.Join(d.Replicas, ", ")),
				Data: fmt.Sprintf("The contents on %s were kept, the others overwritten. What initiators read before may have been either.", strings.Join(d.Kept, ", ")),
				Next: "Check the memory of the nodes named, and report it: the program or a machine is at fault. Verify what lies there.",
			}
			if !d.Repaired {
				a.Severity, a.Data = SeverityCritical, "They still differ: "+d.Error+". Which contents initiators read depends on who owns the LUN."
			}
			out = append(out, a)
		}
	}
	return out
}
