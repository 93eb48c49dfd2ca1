package blobs

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// The output of an attempt is kept below one prefix, in pieces that gzip packs:
//
//	stdout/OFFSET, stderr/OFFSET   a piece, from that byte of the stream on
//	index                          which pieces there are; small ones are in it
//
// The index is stored last: where it is, all is. A reader trusts none of it: what
// was written there may be anything, and is bounded before it is unpacked.

// Limits of kept output.
const (
	// MaxLogPiece bounds the bytes of output in a piece, MaxPieceTimes its times.
	MaxLogPiece   = 1 << 20
	MaxPieceTimes = 1 << 14
	// inlineLog bounds what an index has of its pieces itself.
	inlineLog   = 64 << 10
	maxLogIndex = 16 << 20
	logFormat   = 1
	indexKey    = "index"
	pieceTime   = 16 // bytes
)

// A logIndex lists the pieces of each stream in the order of their offsets.
type logIndex struct {
	Format  int                   `json:"format"`
	Streams map[string][]logPiece `json:"streams"`
}

type logPiece struct {
	Offset int64 `json:"offset"` // of its first byte in the stream
	Bytes  int64 `json:"bytes"`
	Lines  int64 `json:"lines,omitzero"` // that end in it
	// Latest is the latest of its times; 0 when it has none.
	Latest gpuai.WallTime `json:"latest_ms,omitzero"`
	// Data is the piece itself, where it is small.
	Data []byte `json:"data,omitempty"`
}

func (p *logPiece) end() int64 { return p.Offset + p.Bytes }

// A LogWriter stores an attempt's output. One that failed goes on where it was. It
// is for one goroutine.
type LogWriter struct {
	store  *Trees
	prefix string // ends in "/"
	index  logIndex
	inline int
}

// NewLog returns a writer of the output below a prefix. What is there is replaced.
func (s *Trees) NewLog(prefix string) *LogWriter {
	return &LogWriter{store: s, prefix: prefix, index: logIndex{Format: logFormat, Streams: map[string][]logPiece{}}}
}

// Next is the offset behind what was added of a stream.
func (w *LogWriter) Next(stream string) int64 {
	if p := w.index.Streams[stream]; len(p) > 0 {
		return p[len(p)-1].end()
	}
	return 0
}

// Add stores a piece of a stream, of one byte to MaxLogPiece, at Next or behind it,
// with its times, of which there are at most MaxPieceTimes.
func (w *LogWriter) Add(ctx context.Context, stream string, c *gpuai.LogChunk) error {
	p := logPiece{Offset: c.Offset, Bytes: int64(len(c.Data)), Lines: int64(bytes.Count(c.Data, newline))}
	if p.Bytes == 0 || p.Bytes > MaxLogPiece || len(c.Times) > MaxPieceTimes || p.Offset < w.Next(stream) {
		return fmt.Errorf("%d bytes and %d times at %d are no piece of output", p.Bytes, len(c.Times), p.Offset)
	}
	raw := make([]byte, 0, 4+len(c.Times)*pieceTime+len(c.Data))
	raw = binary.BigEndian.AppendUint32(raw, uint32(len(c.Times)))
	for _, t := range c.Times {
		raw = binary.BigEndian.AppendUint64(raw, uint64(t.Offset))
		raw = binary.BigEndian.AppendUint64(raw, uint64(t.At))
		p.Latest = max(p.Latest, t.At)
	}
	raw = append(raw, c.Data...)
	if w.inline+len(raw) <= inlineLog {
		w.inline += len(raw)
		p.Data = raw
	} else if err := w.store.putPacked(ctx, pieceKey(w.prefix, stream, p.Offset), raw); err != nil {
		return err
	}
	w.index.Streams[stream] = append(w.index.Streams[stream], p)
	return nil
}

var newline = []byte{'\n'}

// Close stores the index: from then on the output can be read.
func (w *LogWriter) Close(ctx context.Context) error {
	raw, err := json.Marshal(&w.index, json.Deterministic(true))
	if err != nil {
		return err
	}
	return w.store.putPacked(ctx, w.prefix+indexKey, raw)
}

func pieceKey(prefix, stream string, offset int64) string {
	return prefix + stream + "/" + strconv.FormatInt(offset, 10)
}

func (s *Trees) putPacked(ctx context.Context, key string, raw []byte) error {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return s.objects.Put(ctx, key, b.Bytes())
}

// getPacked reads a blob that unpacks to at most limit bytes.
func (s *Trees) getPacked(ctx context.Context, key string, limit int64) ([]byte, error) {
	packed, err := s.objects.Get(ctx, key, packedMost(limit)) // gzip adds less
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, key, err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, key, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%w: %s unpacks to more than %d bytes", ErrCorrupt, key, limit)
	}
	return raw, nil
}

// A Log is the output of an attempt as it is kept. It is for one goroutine.
type Log struct {
	store  *Trees
	prefix string
	index  logIndex
}

// OpenLog opens the output below a prefix. ErrNotFound: none is kept whole there.
func (s *Trees) OpenLog(ctx context.Context, prefix string) (*Log, error) {
	raw, err := s.getPacked(ctx, prefix+indexKey, maxLogIndex)
	if err != nil {
		return nil, err
	}
	l := &Log{store: s, prefix: prefix}
	if err := json.Unmarshal(raw, &l.index); err != nil || l.index.Format != logFormat {
		return nil, fmt.Errorf("%w: %s is no index of output", ErrCorrupt, prefix+indexKey)
	}
	for stream, pieces := range l.index.Streams {
		at := int64(0)
		for i := range pieces {
			p := &pieces[i]
			if p.Offset < at || p.Bytes <= 0 || p.Bytes > MaxLogPiece || p.Lines < 0 || p.Lines > p.Bytes || p.end() < p.Offset {
				return nil, fmt.Errorf("%w: %s lists a piece of %s that cannot be", ErrCorrupt, prefix+indexKey, strconv.Quote(stream))
			}
			at = p.end()
		}
	}
	return l, nil
}

// errStream is returned for what is no stream that is kept.
var errStream = errors.New("a task has the streams stdout and stderr")

// Read answers a request as the agent that ran the attempt would: from an offset,
// from a time, or from so many lines before the end, whichever is latest. It
// never waits: all there will be is there.
func (l *Log) Read(ctx context.Context, q *gpuai.LogRequest) (c gpuai.LogChunk, err error) {
	if q.Stream != "stdout" && q.Stream != "stderr" {
		return c, errStream
	}
	r := logReader{l, q.Stream, l.index.Streams[q.Stream]}
	if len(r.pieces) == 0 {
		c.EOF = true
		return c, nil
	}
	first, end := r.pieces[0].Offset, r.pieces[len(r.pieces)-1].end()
	at := q.Offset
	if at < 0 {
		at += end
	}
	if q.Since > 0 || q.Tail > 0 {
		from, err := r.seek(ctx, q)
		if err != nil {
			return c, err
		}
		at = max(at, from)
	}
	c.Offset = min(max(at, first), end)
	i := r.pieceAt(c.Offset)
	if i == len(r.pieces) {
		c.EOF = true
		return c, nil
	}
	data, times, err := r.load(ctx, i)
	if err != nil {
		return c, err
	}
	p := &r.pieces[i]
	c.Offset = max(c.Offset, p.Offset) // what lay between was dropped
	c.Data = data[c.Offset-p.Offset:]
	if q.Limit > 0 && int64(len(c.Data)) > q.Limit {
		c.Data = c.Data[:q.Limit]
	}
	next := c.Offset + int64(len(c.Data))
	if c.EOF = next == end; q.Times {
		c.Times = timesWithin(times, c.Offset, next)
	}
	return c, nil
}

// timesWithin returns the times that hold from an offset to before another.
func timesWithin(times []gpuai.LogTime, from, to int64) []gpuai.LogTime {
	first := max(0, sort.Search(len(times), func(i int) bool { return times[i].Offset > from })-1)
	behind := sort.Search(len(times), func(i int) bool { return times[i].Offset >= to })
	return times[min(first, behind):behind]
}

// A logReader reads one stream.
type logReader struct {
	*Log
	stream string
	pieces []logPiece
}

// pieceAt returns the piece that has the byte at an offset, or is the next.
func (r *logReader) pieceAt(at int64) int {
	return sort.Search(len(r.pieces), func(i int) bool { return r.pieces[i].end() > at })
}

// load gets a piece.
func (r *logReader) load(ctx context.Context, i int) (data []byte, times []gpuai.LogTime, err error) {
	p := &r.pieces[i]
	key, raw := pieceKey(r.prefix, r.stream, p.Offset), p.Data
	if raw == nil {
		if raw, err = r.store.getPacked(ctx, key, maxRawPiece); err != nil {
			return nil, nil, err
		}
	}
	if len(raw) < 4 {
		return nil, nil, fmt.Errorf("%w: %s is no piece of output", ErrCorrupt, key)
	}
	n := int64(binary.BigEndian.Uint32(raw))
	if raw = raw[4:]; n > MaxPieceTimes || int64(len(raw)) != n*pieceTime+p.Bytes {
		return nil, nil, fmt.Errorf("%w: %s is not the piece of output that its index lists", ErrCorrupt, key)
	}
	for range n {
		times = append(times, gpuai.LogTime{Offset: int64(binary.BigEndian.Uint64(raw)), At: gpuai.WallTime(binary.BigEndian.Uint64(raw[8:]))})
		raw = raw[pieceTime:]
	}
	return raw, times, nil
}

// seek returns where Since and Tail have a reader begin.
func (r *logReader) seek(ctx context.Context, q *gpuai.LogRequest) (at int64, err error) {
	if q.Since > 0 {
		if at, err = r.seekTime(ctx, q.Since); err != nil {
			return 0, err
		}
	}
	if q.Tail == 0 {
		return at, nil
	}
	last, err := r.seekLines(ctx, q.Tail)
	return max(at, last), err
}

// seekTime returns the offset of what was written at a time or after it; the end,
// if nothing was. Without times all output counts.
func (r *logReader) seekTime(ctx context.Context, since gpuai.WallTime) (int64, error) {
	timed := false
	for i := range r.pieces {
		if timed = timed || r.pieces[i].Latest > 0; r.pieces[i].Latest < since {
			continue
		}
		_, times, err := r.load(ctx, i)
		if err != nil {
			return 0, err
		}
		for _, t := range times {
			if t.At >= since {
				return t.Offset, nil
			}
		}
	}
	if !timed {
		return 0, nil
	}
	return r.pieces[len(r.pieces)-1].end(), nil
}

// seekLines returns where the last so many lines begin.
func (r *logReader) seekLines(ctx context.Context, lines int64) (int64, error) {
	last := len(r.pieces) - 1
	for i := last; i >= 0; i-- {
		p := &r.pieces[i]
		if i < last && p.Lines < lines { // none of its line ends is the one
			lines -= p.Lines
			continue
		}
		data, _, err := r.load(ctx, i)
		if err != nil {
			return 0, err
		}
		if i == last && data[len(data)-1] == '\n' {
			data = data[:len(data)-1] // it ends the last line, and begins none
		}
		for at := bytes.LastIndexByte(data, '\n'); at >= 0; at = bytes.LastIndexByte(data[:at], '\n') {
			if lines--; lines == 0 {
				return p.Offset + int64(at) + 1, nil
			}
		}
	}
	return r.pieces[0].Offset, nil
}
