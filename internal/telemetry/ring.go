package telemetry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
)

const (
	// ringLines and ringLine bound what a Ring keeps: 2 MiB and what a line
	// may have.
	ringLines = 2_048
	ringLine  = 1 << 10
)

// A Ring keeps the newest log lines of a process for its operator, at most
// 2,048 of 1 KiB; longer ones are cut. It is safe for concurrent use.
type Ring struct {
	mu    sync.Mutex // guards below
	lines [ringLines][]byte
	next  uint64
}

// NewRing returns an empty ring.
func NewRing() *Ring { return &Ring{} }

// Tee returns a logger that writes what l writes, and keeps it, with all from
// slog.LevelInfo on whether l wants it or not.
func (r *Ring) Tee(l *slog.Logger) *slog.Logger {
	opts := &slog.HandlerOptions{Level: LevelTrace, ReplaceAttr: nameTrace} // l's own level decides
	return slog.New(&tee{l.Handler(), slog.NewTextHandler(r, opts)})
}

// Write takes one line. It implements io.Writer for a handler.
func (r *Ring) Write(line []byte) (int, error) {
	n := len(line)
	r.mu.Lock()
	defer r.mu.Unlock()
	at := &r.lines[r.next%ringLines]
	r.next++
	if n > ringLine {
		*at = append(append((*at)[:0], line[:ringLine-1]...), '\n')
		return n, nil
	}
	*at = append((*at)[:0], line...)
	return n, nil
}

// WriteTo writes the lines to w, the oldest first. It implements io.WriterTo.
func (r *Ring) WriteTo(w io.Writer) (n int64, err error) {
	for _, line := range r.copy() {
		k, err := w.Write(line)
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (r *Ring) copy() (out [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := uint64(0)
	if r.next > ringLines {
		first = r.next - ringLines
	}
	for i := first; i < r.next; i++ {
		out = append(out, append([]byte(nil), r.lines[i%ringLines]...))
	}
	return out
}

// A tee hands records to two handlers: to the first what it wants, to the second
// that and what is for information.
type tee struct{ first, second slog.Handler }

var _ slog.Handler = (*tee)(nil)

// Enabled implements slog.Handler, like the methods below.
func (t *tee) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelInfo || t.first.Enabled(ctx, l)
}

// Handle hands a record to both.
func (t *tee) Handle(ctx context.Context, r slog.Record) error {
	if !t.first.Enabled(ctx, r.Level) {
		return t.second.Handle(ctx, r)
	}
	return errors.Join(t.first.Handle(ctx, r.Clone()), t.second.Handle(ctx, r))
}

// WithAttrs returns a tee whose records have further attributes.
func (t *tee) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &tee{t.first.WithAttrs(attrs), t.second.WithAttrs(attrs)}
}

// WithGroup returns a tee whose attributes are in a group.
func (t *tee) WithGroup(name string) slog.Handler {
	return &tee{t.first.WithGroup(name), t.second.WithGroup(name)}
}
