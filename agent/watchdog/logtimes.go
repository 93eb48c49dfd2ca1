package watchdog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
)

// When output was written is kept in an index beside each segment: entries of
// an offset and the wall time, one for each write that comes timesApart or more
// after the entry before. What a task writes is never touched, and one that
// writes much costs few entries.

const (
	timesEntry = 16 // bytes: offset and milliseconds, big-endian
	timesApart = 10 // ms
)

func timesOf(stream string, start int64) string {
	return stream + "." + strconv.FormatInt(start, 10) + ".times"
}

// A timesWriter writes the index of one segment. Output is kept also where its
// times cannot be.
type timesWriter struct {
	file *os.File
	size int64 // bytes written
	last int64 // time of the last entry
}

func (w *timesWriter) open(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open the times of a task's log: %w", err)
	}
	*w = timesWriter{file: f}
	return nil
}

// note notes that what is written now begins at an offset.
func (w *timesWriter) note(at int64) {
	now := time.Now().UnixMilli()
	if w.file == nil || w.size > 0 && now >= w.last && now-w.last < timesApart {
		return // a clock that was set back is told of at once
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(at))
	n, err := w.file.Write(binary.BigEndian.AppendUint64(b, uint64(now)))
	w.size, w.last = w.size+int64(n), now
	if err != nil {
		w.close()
	}
}

func (w *timesWriter) close() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
}

// timesFile is an index that is read.
type timesFile struct {
	f *os.File
	n int // entries
}

func openTimes(dir, stream string, start int64) (t timesFile, err error) {
	if t.f, err = os.Open(filepath.Join(dir, timesOf(stream, start))); err != nil {
		return t, err
	}
	fi, err := t.f.Stat()
	if err != nil {
		return t, errors.Join(err, t.f.Close())
	}
	t.n = int(fi.Size() / timesEntry)
	return t, nil
}

// entry returns the i-th entry; zero where it cannot be read.
func (t *timesFile) entry(i int) (e gpuai.LogTime) {
	var b [timesEntry]byte
	if _, err := t.f.ReadAt(b[:], int64(i)*timesEntry); err == nil {
		e.Offset, e.At = int64(binary.BigEndian.Uint64(b[:])), gpuai.WallTime(binary.BigEndian.Uint64(b[8:]))
	}
	return e
}

// ReadTimes returns when the bytes from an offset to before another were
// written: each entry holds from its offset to the next one's. There are at
// most so many, the first ones. Output of which no time is kept has none.
func ReadTimes(dir, stream string, from, to int64, most int) (out []gpuai.LogTime, err error) {
	segs, err := segments(dir, stream)
	if err != nil {
		return nil, fmt.Errorf("read the times of a task's log: %w", err)
	}
	for i, start := range segs {
		if start >= to || i+1 < len(segs) && segs[i+1] <= from {
			continue
		}
		t, err := openTimes(dir, stream, start)
		if errors.Is(err, fs.ErrNotExist) {
			continue // of an older version, or rotated meanwhile
		}
		if err != nil {
			return out, fmt.Errorf("read the times of a task's log: %w", err)
		}
		// The entry before the first that is behind from is from's.
		first := max(0, sort.Search(t.n, func(i int) bool { return t.entry(i).Offset > from })-1)
		for i := first; i < t.n && len(out) < most; i++ {
			e := t.entry(i)
			if e.Offset >= to {
				break
			}
			out = append(out, e)
		}
		t.f.Close()
	}
	return out, nil
}

// SeekLog returns where to read from in a stream: the offset of what was
// written at a time or after it (0: any time), and of the last so many lines
// (negative: all), whichever is later.
func SeekLog(dir, stream string, since gpuai.WallTime, lines int64) (int64, error) {
	segs, err := segments(dir, stream)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(segs) == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("search a task's log: %w", err)
	}
	at := int64(0)
	if since > 0 {
		if at, err = seekTime(dir, stream, segs, since); err != nil {
			return 0, err
		}
	}
	if lines < 0 {
		return at, nil
	}
	last, err := seekLines(dir, stream, lines)
	return max(at, last), err
}

// seekTime returns the offset of the first entry at a time or after it; the
// end, if there is none. Without times all output counts.
func seekTime(dir, stream string, segs []int64, since gpuai.WallTime) (int64, error) {
	timed := false
	for _, start := range segs {
		t, err := openTimes(dir, stream, start)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("search the times of a task's log: %w", err)
		}
		b := make([]byte, t.n*timesEntry) // at most half of what a stream keeps
		n, err := t.f.ReadAt(b, 0)
		t.f.Close()
		if n < len(b) {
			return 0, fmt.Errorf("search the times of a task's log: %w", err)
		}
		for ; len(b) > 0; b = b[timesEntry:] {
			if timed = true; binary.BigEndian.Uint64(b[8:]) >= uint64(since) {
				return int64(binary.BigEndian.Uint64(b)), nil
			}
		}
	}
	if !timed {
		return 0, nil
	}
	_, _, end, err := ReadLog(dir, stream, 0, 0)
	return end, err
}

// seekBlock is what is read at once, from the end.
const seekBlock = 64 << 10

// seekLines returns where the last so many lines begin.
func seekLines(dir, stream string, lines int64) (int64, error) {
	_, first, end, err := ReadLog(dir, stream, 0, 0)
	if err != nil || lines == 0 {
		return end, err
	}
	for to := end; to > first; {
		from := max(first, to-seekBlock)
		data, at, _, err := ReadLog(dir, stream, from, to-from)
		if err != nil {
			return 0, err
		}
		if at != from { // rotated meanwhile
			return at, nil
		}
		if to == end && len(data) > 0 && data[len(data)-1] == '\n' {
			data = data[:len(data)-1] // it ends the last line, and begins none
		}
		for i := bytes.LastIndexByte(data, '\n'); i >= 0; i = bytes.LastIndexByte(data[:i], '\n') {
			if lines--; lines == 0 {
				return from + int64(i) + 1, nil
			}
		}
		to = from
	}
	return first, nil
}
