package watchdog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A stream's output is kept in segments named after the offset of their first
// byte, such as stdout.0.log. Of the segments the newest two are kept, each
// half of the bound; what comes before them is gone, and the segment after a
// gap starts with a line that says so. Beside a segment is the index of its
// times, see logtimes.go, whose bytes count as the segment's.

// dropped starts a segment before which output was dropped.
const dropped = "gpuai: output before this line was dropped, only the end is kept\n"

type logWriter struct {
	dir, stream string
	half        int64
	at          int64 // offset of the next byte
	start       int64 // of the current segment
	file        *os.File
	times       timesWriter // of the current segment
	lost        error       // set once: output is discarded from then on
}

func newLogWriter(dir, stream string, limit int64) (*logWriter, error) {
	w := &logWriter{dir: dir, stream: stream, half: max(limit/2, 4096)}
	return w, w.open()
}

func segment(stream string, start int64) string {
	return stream + "." + strconv.FormatInt(start, 10) + ".log"
}

func (w *logWriter) open() (err error) {
	w.start = w.at
	w.file, err = os.OpenFile(filepath.Join(w.dir, segment(w.stream, w.at)), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open a task's log: %w", err)
	}
	return w.times.open(filepath.Join(w.dir, timesOf(w.stream, w.at)))
}

// Write keeps b. It never fails: a task must not block or die because its
// output cannot be kept.
func (w *logWriter) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 && w.lost == nil {
		w.times.note(w.at)
		left := w.half - (w.at - w.start) - w.times.size
		if left <= 0 {
			w.rotate()
			continue
		}
		n, err := w.file.Write(b[:min(int64(len(b)), left)])
		w.at += int64(n)
		b = b[n:]
		w.lost = err
	}
	return total, nil
}

func (w *logWriter) rotate() {
	w.close()
	segs, err := segments(w.dir, w.stream)
	for len(segs) >= 2 && err == nil {
		err = os.Remove(filepath.Join(w.dir, segment(w.stream, segs[0])))
		_ = os.Remove(filepath.Join(w.dir, timesOf(w.stream, segs[0]))) // of an older version: there is none
		segs = segs[1:]
	}
	if w.lost = errors.Join(err, w.open()); w.lost == nil && segs[0] > 0 {
		w.times.note(w.at)
		n, err := io.WriteString(w.file, dropped)
		w.at, w.lost = w.at+int64(n), err
	}
}

func (w *logWriter) close() {
	if w.file != nil {
		w.file.Close()
	}
	w.times.close()
}

// segments returns the starts of a stream's segments, oldest first.
func segments(dir, stream string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var starts []int64
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), stream+".")
		rest, isLog := strings.CutSuffix(rest, ".log")
		if n, err := strconv.ParseInt(rest, 10, 64); ok && isLog && err == nil {
			starts = append(starts, n)
		}
	}
	slices.Sort(starts)
	return starts, nil
}

// ReadLog reads up to limit bytes of a stream ("stdout", "stderr") kept in dir,
// from offset, or from the end for a negative one. It returns where the data
// starts, which is later than asked for when the output there was dropped, and
// the offset behind the last byte kept. A stream without output is empty.
func ReadLog(dir, stream string, offset, limit int64) (data []byte, at, end int64, err error) {
	segs, err := segments(dir, stream)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(segs) == 0 {
		return nil, 0, 0, nil
	}
	if err != nil {
		return nil, 0, 0, fmt.Errorf("read a task's log: %w", err)
	}
	last := segs[len(segs)-1]
	fi, err := os.Stat(filepath.Join(dir, segment(stream, last)))
	if err != nil {
		return nil, 0, 0, fmt.Errorf("read a task's log: %w", err)
	}
	end = last + fi.Size()
	if offset < 0 {
		offset += end
	}
	at = min(max(offset, segs[0]), end)
	for i, start := range segs {
		if i+1 < len(segs) && segs[i+1] <= at {
			continue
		}
		part, err := readAt(filepath.Join(dir, segment(stream, start)), at+int64(len(data))-start, limit-int64(len(data)))
		if data = append(data, part...); err != nil || int64(len(data)) >= limit {
			return data, at, end, err
		}
	}
	return data, at, end, nil
}

// AppendLog adds a line to what a task wrote to stderr, beyond its bound, once
// nobody else writes there.
func AppendLog(dir, line string) error {
	segs, err := segments(dir, "stderr")
	if err != nil {
		return fmt.Errorf("append to a task's log: %w", err)
	}
	last := int64(0)
	if len(segs) > 0 {
		last = segs[len(segs)-1]
	}
	f, err := os.OpenFile(filepath.Join(dir, segment("stderr", last)), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("append to a task's log: %w", err)
	}
	_, err = io.WriteString(f, line+"\n")
	return errors.Join(err, f.Close())
}

func readAt(path string, offset, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a task's log: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, offset, limit))
	if err != nil {
		return nil, fmt.Errorf("read a task's log: %w", err)
	}
	return b, nil
}

// LogSize is how many bytes the output kept in dir has, with its times.
func LogSize(dir string) (n int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		stream, _, _ := strings.Cut(e.Name(), ".")
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && (stream == "stdout" || stream == "stderr") {
			n += fi.Size()
		}
	}
	return n
}
