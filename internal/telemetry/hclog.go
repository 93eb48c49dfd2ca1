package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// HCLog returns a logger with hclog's interface that writes through l, for
// hashicorp/raft and go-plugin. Levels map one to one (trace is LevelTrace);
// a name becomes the attribute "logger". SetLevel only narrows what l lets
// through, for the returned logger and all made from it. Safe for concurrent
// use.
func HCLog(l *slog.Logger) hclog.Logger {
	return &shim{log: l, base: l, level: new(atomic.Int32)}
}

// LineWriter returns a writer for libraries that only write lines: each write
// is one record, at the level that the line itself names, as in "[WARN]".
func LineWriter(l *slog.Logger) io.Writer {
	return HCLog(l).StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true})
}

var _ hclog.Logger = (*shim)(nil)

// shim is an hclog.Logger over a slog.Logger.
type shim struct {
	base *slog.Logger // without name and arguments
	log  *slog.Logger // with both
	name string
	args []any // hclog's pairs, as given
	// level is shared by all that were made from one HCLog; NoLevel: l decides.
	level *atomic.Int32
}

// slogLevel returns l's counterpart; NoLevel is logged like Info.
func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Trace:
		return LevelTrace
	case hclog.Debug:
		return slog.LevelDebug
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}

func (s *shim) enabled(l hclog.Level) bool {
	if l == hclog.Off || hclog.Level(s.level.Load()) > l {
		return false
	}
	return s.log.Enabled(context.Background(), slogLevel(l))
}

// Log writes msg at l with alternating keys and values.
func (s *shim) Log(l hclog.Level, msg string, args ...any) {
	if s.enabled(l) {
		s.log.LogAttrs(context.Background(), slogLevel(l), msg, attrs(args)...)
	}
}

func (s *shim) Trace(msg string, args ...any) { s.Log(hclog.Trace, msg, args...) }
func (s *shim) Debug(msg string, args ...any) { s.Log(hclog.Debug, msg, args...) }
func (s *shim) Info(msg string, args ...any)  { s.Log(hclog.Info, msg, args...) }
func (s *shim) Warn(msg string, args ...any)  { s.Log(hclog.Warn, msg, args...) }
func (s *shim) Error(msg string, args ...any) { s.Log(hclog.Error, msg, args...) }

func (s *shim) IsTrace() bool { return s.enabled(hclog.Trace) }
func (s *shim) IsDebug() bool { return s.enabled(hclog.Debug) }
func (s *shim) IsInfo() bool  { return s.enabled(hclog.Info) }
func (s *shim) IsWarn() bool  { return s.enabled(hclog.Warn) }
func (s *shim) IsError() bool { return s.enabled(hclog.Error) }

func (s *shim) ImpliedArgs() []any { return s.args }
func (s *shim) Name() string       { return s.name }

func (s *shim) With(args ...any) hclog.Logger {
	all := append(append([]any(nil), s.args...), args...)
	return s.derive(s.name, all)
}

func (s *shim) Named(name string) hclog.Logger {
	if s.name != "" {
		name = s.name + "." + name
	}
	return s.derive(name, s.args)
}

func (s *shim) ResetNamed(name string) hclog.Logger { return s.derive(name, s.args) }

func (s *shim) derive(name string, args []any) *shim {
	l := s.base
	if name != "" {
		l = l.With(slog.String("logger", name))
	}
	for _, a := range attrs(args) {
		l = l.With(a)
	}
	return &shim{base: s.base, log: l, name: name, args: args, level: s.level}
}

func (s *shim) SetLevel(l hclog.Level) { s.level.Store(int32(l)) }

// GetLevel returns the lowest level that is written.
func (s *shim) GetLevel() hclog.Level {
	for l := hclog.Trace; l < hclog.Off; l++ {
		if s.enabled(l) {
			return l
		}
	}
	return hclog.Off
}

// attrs turns hclog's pairs into attributes. A value without a key, which
// hclog allows by mistake only, is kept under "extra".
func attrs(args []any) []slog.Attr {
	out := make([]slog.Attr, 0, (len(args)+1)/2)
	for ; len(args) >= 2; args = args[2:] {
		key, ok := args[0].(string)
		if !ok {
			key = fmt.Sprint(args[0])
		}
		out = append(out, slog.Attr{Key: key, Value: value(args[1])})
	}
	if len(args) == 1 {
		out = append(out, slog.Attr{Key: "extra", Value: value(args[0])})
	}
	return out
}

// value gives hclog's own value types their text, and structs, slices and
// maps the %+v form that libraries expect of an hclog line.
func value(v any) slog.Value {
	switch t := v.(type) {
	case hclog.Format:
		return slog.StringValue(format(t))
	case hclog.Hex:
		return slog.StringValue("0x" + strconv.FormatUint(uint64(t), 16))
	case hclog.Octal:
		return slog.StringValue("0" + strconv.FormatUint(uint64(t), 8))
	case hclog.Binary:
		return slog.StringValue("0b" + strconv.FormatUint(uint64(t), 2))
	case hclog.Quote:
		return slog.StringValue(strconv.Quote(string(t)))
	case error:
		return slog.StringValue(t.Error())
	case fmt.Stringer:
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			return slog.StringValue("<nil>")
		}
		return slog.StringValue(t.String())
	}
	switch reflect.ValueOf(v).Kind() {
	case reflect.Struct, reflect.Slice, reflect.Array, reflect.Map, reflect.Pointer:
		return slog.StringValue(fmt.Sprintf("%+v", v))
	case reflect.String: // a named string type such as raft's ServerID
		return slog.StringValue(reflect.ValueOf(v).String())
	default:
		return slog.AnyValue(v)
	}
}

// format expands hclog.Fmt's verb and operands.
func format(f hclog.Format) string {
	if len(f) == 0 {
		return ""
	}
	verb, ok := f[0].(string)
	if !ok {
		return fmt.Sprint(f...)
	}
	return fmt.Sprintf(verb, f[1:]...)
}

// StandardLogger returns a log.Logger whose lines go through s.
func (s *shim) StandardLogger(opts *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(s.StandardWriter(opts), "", 0)
}

// StandardWriter returns a writer each of whose writes is one record.
func (s *shim) StandardWriter(opts *hclog.StandardLoggerOptions) io.Writer {
	w := lineWriter{to: s, level: hclog.Info}
	if opts != nil {
		w.infer = opts.InferLevels || opts.InferLevelsWithTimestamp
		if w.forced = opts.ForceLevel; w.forced != hclog.NoLevel {
			w.level, w.infer = w.forced, true
		}
	}
	return w
}

// lineWriter logs what is written to it.
type lineWriter struct {
	to     *shim
	level  hclog.Level // of lines that name none
	infer  bool        // strip a leading [LEVEL] …
	forced hclog.Level // … and use this instead, unless NoLevel
}

func (w lineWriter) Write(p []byte) (int, error) {
	text, level := string(bytes.TrimRight(p, " \t\r\n")), w.level
	if w.infer {
		level, text = splitLevel(text, level)
	}
	if w.forced != hclog.NoLevel {
		level = w.forced
	}
	w.to.Log(level, text)
	return len(p), nil
}

// splitLevel takes "[WARN] text" apart, also behind a timestamp; text without
// a known level keeps def.
func splitLevel(text string, def hclog.Level) (hclog.Level, string) {
	open := strings.IndexByte(text, '[')
	if open < 0 || strings.ContainsAny(text[:open], "abcdefghijklmnopqrstuvwxyz") {
		return def, text
	}
	name, rest, ok := strings.Cut(text[open+1:], "]")
	if name == "ERR" {
		name = "ERROR"
	}
	level := hclog.LevelFromString(name)
	if !ok || level == hclog.NoLevel {
		return def, text
	}
	return level, strings.TrimLeft(rest, " ")
}
