package plugins

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/time/rate"
)

// Bounds on what a driver says. Beyond them it is cut or dropped: a driver that
// babbles must fill neither the agent's log nor its memory.
const (
	maxLine        = 8 << 10 // bytes of a line
	maxHandshake   = 16 << 10
	linesPerSecond = 100
	lineBurst      = 400
	lastWords      = 4   // lines kept for the error when the driver dies
	maxWords       = 100 // bytes of them, but for the last
)

// lines logs what a driver writes, line by line, and remembers the last ones.
type lines struct {
	log   *slog.Logger
	limit *rate.Limiter

	mu      sync.Mutex // guards below
	last    []string
	panic   string // the line that began a crash of Go's runtime
	dropped int
}

func newLines(log *slog.Logger) *lines {
	return &lines{log: log, limit: rate.NewLimiter(linesPerSecond, lineBurst)}
}

// copy logs r to its end.
func (l *lines) copy(r io.Reader, stream string) {
	b := bufio.NewReaderSize(r, maxLine)
	for cut := false; ; {
		line, err := b.ReadSlice('\n')
		if len(line) > 0 && !cut {
			l.add(line, stream)
		}
		// The rest of a line that is too long is dropped.
		cut = errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !cut {
			return
		}
	}
}

func (l *lines) add(line []byte, stream string) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return
	}
	text := strings.ToValidUTF8(string(line), "\uFFFD")
	if !l.remember(text) {
		return
	}
	level, msg, attrs := parseLine(text)
	l.log.LogAttrs(context.Background(), level, msg, append(attrs, slog.String("stream", stream))...)
}

// remember keeps text as one of the last words and reports whether the rate
// allows it to be logged.
func (l *lines) remember(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if said := spoken(text); said != "" {
		if l.last = append(l.last, said[:min(len(said), 300)]); len(l.last) > lastWords {
			l.last = l.last[1:]
		}
	}
	if plainLevel(text) == slog.LevelError {
		l.panic = l.last[len(l.last)-1]
	}
	if !l.limit.Allow() {
		l.dropped++
		return false
	}
	if l.dropped > 0 {
		l.log.Warn("driver writes too much: lines were dropped", "dropped", l.dropped)
		l.dropped = 0
	}
	return true
}

// words returns the driver's last lines for an error, or "".
func (l *lines) words() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.panic != "" {
		return "; its last words: " + clip(l.panic)
	}
	if len(l.last) == 0 {
		return ""
	}
	words := l.last[len(l.last)-1]
	for i := len(l.last) - 2; i >= 0 && len(words)+len(l.last[i]) < maxWords; i-- {
		words = l.last[i] + " / " + words
	}
	return "; its last words: " + clip(words)
}

// Write takes what the driver writes to its os.Stdout and os.Stderr after the
// handshake, which go-plugin carries over gRPC in pieces of its own.
func (l *lines) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		l.add(line[:min(len(line), maxLine)], "stdio")
	}
	return len(p), nil
}

// parseLine takes a JSON line of slog's or hclog's apart; any other line is
// logged as it is.
func parseLine(text string) (slog.Level, string, []slog.Attr) {
	var fields map[string]any
	if !strings.HasPrefix(text, "{") || json.Unmarshal([]byte(text), &fields) != nil {
		return plainLevel(text), text, nil
	}
	msg, level := "", slog.LevelInfo
	var attrs []slog.Attr
	for k, v := range fields {
		switch k {
		case "msg", "@message":
			msg, _ = v.(string)
		case "level", "@level":
			level = parseLevel(v)
		case "time", "@timestamp":
			s, _ := v.(string)
			attrs = append(attrs, slog.String("driver_time", s))
		default:
			attrs = append(attrs, slog.Any(k, v))
		}
	}
	if msg == "" {
		return slog.LevelInfo, text, nil
	}
	return level, msg, attrs
}

// spoken is a line as it goes into an error: of a JSON line the message and the
// cause; "" for one that is there for debugging.
func spoken(text string) string {
	level, msg, attrs := parseLine(text)
	if level < slog.LevelInfo {
		return ""
	}
	for _, a := range attrs {
		if a.Key == "err" || a.Key == "error" {
			msg += ": " + a.Value.String()
		}
	}
	return msg
}

func parseLevel(v any) slog.Level {
	s, _ := v.(string)
	var level slog.Level
	if strings.EqualFold(s, "trace") || level.UnmarshalText([]byte(s)) != nil {
		return slog.LevelDebug
	}
	return level
}

func plainLevel(text string) slog.Level {
	for _, crash := range []string{"panic: ", "fatal error: ", "SIGSEGV: ", "SIGBUS: ", "SIGABRT: "} { // of Go, and of C under it
		if strings.HasPrefix(text, crash) {
			return slog.LevelError
		}
	}
	return slog.LevelInfo
}

// drainTime is how long the output of a dead driver is still read: processes it
// left behind may hold the other end open.
const drainTime = 200 * time.Millisecond
