package main

import (
	"context"
	"log/slog"
	"os"
	"runtime"

	"sanctuary/node"
	"sanctuary/node/config"
)

// runNode runs a node until ctx ends. It is the one place where this program touches package node's wiring; tests put
// their own here.
var runNode = func(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	// Half of the processors for Go, unless told otherwise: the kernel's share of this work (network, page cache) is as large,
	// and waking a thread for every step of a short command costs more than running the steps one after another. Measured on
	// two processors: twice the reads at depth 1, half the CPU for a replicated write (docs/BENCHMARKS.md).
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
	return node.Run(ctx, cfg, version, log)
}
