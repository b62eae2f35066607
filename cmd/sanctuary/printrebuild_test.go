package main

import (
	"time"

	"sanctuary/node/api"
)

// rebuilding is a LUN with a copy that is brought up to date.
func rebuilding() api.LUN {
	l := sampleLUN()
	l.Health = api.HealthCatchingUp
	asOf := time.Date(2026, 11, 2, 8, 0, 0, 0, time.UTC)
	l.Replicas[1].InSync, l.Replicas[1].Error = false, "being rebuilt"
	l.Replicas[1].Rebuild = &api.ReplicaRebuild{
		Copied: 1 << 30, Total: 8 << 30, ToGo: 6 << 30, PerSecond: 100 << 20, SecondsLeft: 62,
		Before: &api.RebuildBefore{Index: 4711, AsOf: &asOf, Began: asOf.Add(time.Hour)},
	}
	return l
}
