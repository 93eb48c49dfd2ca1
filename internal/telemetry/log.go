package telemetry

import (
	"fmt"
	"io"
	"log/slog"
)

// LevelTrace is below slog.LevelDebug: what libraries call trace.
const LevelTrace = slog.LevelDebug - 4

// Formats of a log line.
const (
	FormatText = "text" // key=value, for people
	FormatJSON = "json" // one object a line, for machines
)

// NewLogger returns a logger that writes one line per record to w, of level
// and above. Any format but FormatJSON gives FormatText; CheckFormat tells
// them apart for a command line.
func NewLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: nameTrace}
	if format == FormatJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// CheckFormat returns an error, made for the operator, unless NewLogger knows
// format.
func CheckFormat(format string) error {
	if format == FormatText || format == FormatJSON {
		return nil
	}
	return fmt.Errorf("log format %q is not known: use %q or %q", format, FormatText, FormatJSON)
}

// nameTrace writes LevelTrace as TRACE, which slog would call DEBUG-4.
func nameTrace(groups []string, a slog.Attr) slog.Attr {
	if len(groups) != 0 || a.Key != slog.LevelKey {
		return a
	}
	if l, ok := a.Value.Any().(slog.Level); ok && l == LevelTrace {
		a.Value = slog.StringValue("TRACE")
	}
	return a
}
