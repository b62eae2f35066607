package api

import "time"

// ReplicaRebuild is how far the rebuild of a copy is that the owner's log does not reach any more.
type ReplicaRebuild struct {
	Copied      int64          `json:"copied_bytes" doc:"Bytes of blocks that were fetched"`
	Total       int64          `json:"total_bytes" doc:"Bytes that may differ and are compared; 0: not known. With snapshots, of the one that is being copied and those before it"`
	ToGo        int64          `json:"to_go_bytes" doc:"Bytes of the total that have yet to be compared"`
	PerSecond   int64          `json:"bytes_per_second" doc:"Bytes compared in a second, of late; 0: not known yet"`
	SecondsLeft int64          `json:"seconds_left" doc:"What is left takes so long at that rate; 0: not known"`
	Before      *RebuildBefore `json:"before,omitempty" doc:"What the copy held before, kept until the rebuild ends; only the node itself knows"`
}

// RebuildBefore is an older, consistent state of a copy.
type RebuildBefore struct {
	Index uint64     `json:"index" doc:"Log entry it is as of"`
	AsOf  *time.Time `json:"as_of,omitempty" doc:"When that entry was written; absent: not known any more"`
	Began time.Time  `json:"began" doc:"When the rebuild began: it is older than that"`
}
