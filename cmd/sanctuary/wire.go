package main

import (
	"context"
	"log/slog"

	"sanctuary/node/config"
)

// runNode runs a node until ctx ends. It is the one place where this program touches package node's wiring; tests put
// their own here.
var runNode = func(context.Context, config.Config, *slog.Logger) error { return errNoNode }
