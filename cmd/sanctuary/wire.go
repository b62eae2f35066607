package main

import (
	"context"
	"log/slog"

	"sanctuary/node"
	"sanctuary/node/config"
)

// runNode runs a node until ctx ends. It is the one place where this program touches package node's wiring; tests put
// their own here.
var runNode = func(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	return node.Run(ctx, cfg, version, log)
}
