package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"sanctuary/scripts/rig"
	"sanctuary/target/initiator"
)

// fio's libiscsi speaks no data digests (libiscsi 1.19 offers DataDigest=None), and its fio engine overrides the header digest
// of the URL. So the jobs with digests are made by this project's own initiator, the same for every target. It costs more than
// libiscsi does, on the cores it shares with the target: their figures are no measure for those of fio's jobs.

// load runs a job with header and data digests for some time. What it returns is as fio reports it.
func load(ctx context.Context, o options, target *rig.Target, j job, d time.Duration) (output, error) {
	url, err := target.Serving(ctx)
	if err != nil {
		return output{}, err
	}
	address, iqn, lun, err := rig.SplitURL(url)
	if err != nil {
		return output{}, err
	}
	number, err := strconv.ParseUint(lun, 10, 16)
	if err != nil {
		return output{}, fmt.Errorf("LUN of %s: %w", url, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d+time.Minute)
	defer cancel()
	s, err := initiator.Dial(ctx, initiator.Config{
		Address: address, Target: iqn, LUN: uint16(number), HeaderDigest: true, DataDigest: true,
	})
	if err != nil {
		return output{}, err
	}
	defer s.Close()
	_ = s.TestUnitReady(ctx) // takes the unit attention of a new session
	if err := s.TestUnitReady(ctx); err != nil {
		return output{}, err
	}
	size, ok := map[string]int64{"4k": 4 << 10, "1M": 1 << 20}[j.blockSize]
	if !ok {
		return output{}, fmt.Errorf("block size %s: use 4k or 1M", j.blockSize)
	}
	capacity, err := s.ReadCapacity16(ctx)
	if err != nil {
		return output{}, err
	}
	blocks := uint64(size) / uint64(capacity.BlockBytes)
	g := &generator{job: j, size: size, places: o.bytes / size, do: func(ctx context.Context, place int64, buffer []byte) error {
		if j.reads() {
			return s.Read(ctx, uint64(place)*blocks, uint32(blocks), buffer)
		}
		return s.Write(ctx, uint64(place)*blocks, uint32(blocks), buffer)
	}}
	return g.run(ctx, d)
}

func (j job) reads() bool { return strings.HasSuffix(j.pattern, "read") }

// generator keeps depth commands outstanding.
type generator struct {
	job    job
	size   int64 // of a command in bytes
	places int64 // for commands; they are numbered from 0
	do     func(ctx context.Context, place int64, buffer []byte) error
	next   atomic.Int64
}

func (g *generator) run(ctx context.Context, d time.Duration) (output, error) {
	type result struct {
		took []time.Duration
		err  error
	}
	results := make(chan result)
	start := time.Now()
	for range g.job.depth {
		go func() {
			took, err := g.one(ctx, start.Add(d))
			results <- result{took, err}
		}()
	}
	var all []time.Duration
	var failed error
	for range g.job.depth {
		r := <-results
		all, failed = append(all, r.took...), errors.Join(failed, r.err)
	}
	if failed != nil {
		return output{}, failed
	}
	return g.report(all, time.Since(start)), nil
}

// one does a command after the other until the time is over, and returns how long each took.
func (g *generator) one(ctx context.Context, until time.Time) (took []time.Duration, err error) {
	buffer := make([]byte, g.size)
	for i := range buffer {
		buffer[i] = byte(rand.Uint32())
	}
	for {
		start := time.Now()
		if start.After(until) {
			return took, nil
		}
		place := g.next.Add(1) % g.places
		if strings.HasPrefix(g.job.pattern, "rand") {
			place = rand.Int64N(g.places)
		}
		if err := g.do(ctx, place, buffer); err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
	}
}

// report says it in fio's words.
func (g *generator) report(took []time.Duration, elapsed time.Duration) output {
	slices.Sort(took)
	side := rw{TotalIOs: int64(len(took)), IOPS: float64(len(took)) / elapsed.Seconds()}
	side.BytesSec = int64(side.IOPS * float64(g.size))
	side.Latency.Percentile = map[string]float64{}
	for name, part := range map[string]int{"50.000000": 50, "99.000000": 99} {
		if len(took) > 0 {
			side.Latency.Percentile[name] = float64(took[(len(took)-1)*part/100])
		}
	}
	j := outputJob{Read: side}
	if !g.job.reads() {
		j = outputJob{Write: side}
	}
	return output{Jobs: []outputJob{j}}
}
