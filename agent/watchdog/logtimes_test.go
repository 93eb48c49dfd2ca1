package watchdog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// later waits until a new entry of the times is due, and returns the time.
func later() gpuai.WallTime {
	t := time.Now().UnixMilli() + timesApart
	for time.Now().UnixMilli() < t {
	}
	return gpuai.WallTime(t)
}

func TestLogTimes(t *testing.T) {
	dir := t.TempDir()
	w, err := newLogWriter(dir, "stdout", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	began := later()
	fmt.Fprint(w, "one\n")
	second := later()
	fmt.Fprint(w, "two\nthr")
	fmt.Fprint(w, "ee\n") // at once: of the same entry
	third := later()
	fmt.Fprint(w, "four\n")
	times, err := ReadTimes(dir, "stdout", 0, 100, 100)
	if err != nil || len(times) < 3 || times[0].Offset != 0 || times[0].At < began || times[1].Offset != 4 || times[1].At < second {
		t.Fatalf("%+v, %v", times, err)
	}
	if got, err := ReadTimes(dir, "stdout", 6, 7, 100); err != nil || len(got) != 1 || got[0] != times[1] {
		t.Errorf("of a byte in the middle: %+v, %v", got, err)
	}
	for _, c := range []struct {
		since gpuai.WallTime
		lines int64
		want  string
	}{
		{0, -1, "one\ntwo\nthree\nfour\n"}, {second, -1, "two\nthree\nfour\n"}, {third, -1, "four\n"}, {third + 1e6, -1, ""},
		{0, 2, "three\nfour\n"}, {0, 0, ""}, {0, 99, "one\ntwo\nthree\nfour\n"}, {second, 1, "four\n"}, {third, 3, "four\n"},
	} {
		at, err := SeekLog(dir, "stdout", c.since, c.lines)
		data, _, _, err2 := ReadLog(dir, "stdout", at, 1000)
		if err != nil || err2 != nil || string(data) != c.want {
			t.Errorf("since %d, %d lines: %q, %v, %v", c.since, c.lines, data, err, err2)
		}
	}
	// What an older version wrote has no times: all of it counts.
	if err := os.Remove(filepath.Join(dir, timesOf("stdout", 0))); err != nil {
		t.Fatal(err)
	}
	if at, err := SeekLog(dir, "stdout", third, -1); at != 0 || err != nil {
		t.Errorf("without times: %d, %v", at, err)
	}
	if got, err := ReadTimes(dir, "stdout", 0, 100, 100); len(got) > 0 || err != nil {
		t.Errorf("without times: %+v, %v", got, err)
	}
}

// A stream's bound holds with its times, and the last lines are found over the
// border of segments and blocks.
func TestLogTimesAreBounded(t *testing.T) {
	dir := t.TempDir()
	const limit = 400 << 10
	w, err := newLogWriter(dir, "stderr", limit)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	line := strings.Repeat("x", 100) + "\n"
	for range 10_000 {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if n := LogSize(dir); n > limit || n < limit/2 {
		t.Errorf("%d bytes are kept of %d", n, limit)
	}
	at, err := SeekLog(dir, "stderr", 0, 1500)
	_, _, end, _ := ReadLog(dir, "stderr", 0, 0)
	if err != nil || end-at != 1500*int64(len(line)) {
		t.Errorf("the last lines begin %d before the end: %v", end-at, err)
	}
	if times, err := ReadTimes(dir, "stderr", at, end, 1000); err != nil || len(times) == 0 || times[0].Offset > at {
		t.Errorf("from %d: %+v, %v", at, times, err)
	}
}
