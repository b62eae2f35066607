package catalog

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger returns a logger for Raft that writes to l. Raft's own levels are kept, one step lower where it is chatty:
// an election is its business, and worth an operator's attention only as what it does to the cluster.
func raftLogger(l *slog.Logger) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Off})
	h.RegisterSink(sink{l})
	return h
}

type sink struct{ log *slog.Logger }

func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Error:
		to = slog.LevelError
	case hclog.Warn:
		to = slog.LevelWarn
	}
	if !s.log.Enabled(context.Background(), to) {
		return
	}
	// hclog's own types format themselves with String or as a format with arguments; slog would print their fields.
	out := make([]any, 0, len(args)+2)
	for _, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			a = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		out = append(out, a)
	}
	s.log.Log(context.Background(), to, msg, append(out, "part", "catalog raft")...)
}
