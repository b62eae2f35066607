package replication

import (
	"context"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes what the Raft library has to say on to slog. It calls routine an error (a peer that is down is
// reported with every heartbeat), so all of it is kept at debug level; what an operator must know, this package says.
func raftLogger(to *slog.Logger) hclog.Logger {
	if !to.Enabled(context.Background(), slog.LevelDebug) {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: slogWriter{to}, DisableTime: true})
}

type slogWriter struct{ to *slog.Logger }

func (w slogWriter) Write(p []byte) (int, error) {
	w.to.Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}
