package node

import (
	"context"
	"errors"
	"fmt"

	"sanctuary/blockstore/block"
	"sanctuary/node/api"
)

// maxDiffRanges bounds an answer: 3 MiB of JSON.
const maxDiffRanges = 1 << 16

var errDiffFull = errors.New("the answer is full")

// Diff implements api.SnapshotService.
func (s service) Diff(ctx context.Context, ref string, q api.DiffQuery) (api.Diff, error) {
	run, err := s.owned(ref)
	if err != nil {
		return api.Diff{}, err
	}
	d := api.Diff{LUN: run.lun.Name, SizeBytes: run.volume.Geometry().Capacity.Bytes()}
	have := run.group.Snapshots()
	var from, to block.SnapshotID
	if q.From != "" {
		x, err := pick(run, have, q.From)
		if err != nil {
			return d, err
		}
		from, d.From = x.ID, x.ID.String()
	}
	if q.To != "" {
		x, err := pick(run, have, q.To)
		if err != nil {
			return d, err
		}
		to, d.To, d.SizeBytes = x.ID, x.ID.String(), x.Capacity.Bytes()
	}
	limit := q.Limit
	if limit == 0 {
		limit = maxDiffRanges
	}
	err = run.group.Diff(from, to, func(r block.Range) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return addRange(&d, r.Offset(), r.Bytes(), q.Start, limit)
	})
	switch {
	case errors.Is(err, errDiffFull):
	case errors.Is(err, block.ErrNoSnapshot):
		return d, noSnapshot(run.lun.Name, fmt.Sprintf("%s or %s", q.From, q.To))
	case err != nil:
		return d, fmt.Errorf("compare states of LUN %q: %w", run.lun.Name, err)
	}
	return d, nil
}

// addRange adds what of a range lies at start or behind, joined with the one before it if they touch. A full answer says where
// the next one begins.
func addRange(d *api.Diff, offset, length, start int64, limit int) error {
	end := min(offset+length, d.SizeBytes)
	offset = max(offset, start)
	switch last := len(d.Ranges) - 1; {
	case offset >= end:
		return nil
	case last >= 0 && d.Ranges[last].Offset+d.Ranges[last].Length == offset:
		d.Ranges[last].Length += end - offset
		return nil
	case len(d.Ranges) == limit:
		d.Next = offset
		return errDiffFull
	}
	d.Ranges = append(d.Ranges, api.DiffRange{Offset: offset, Length: end - offset})
	return nil
}
