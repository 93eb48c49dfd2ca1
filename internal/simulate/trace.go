package simulate

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
)

// A Format is a way in which traces are written.
type Format string

// The formats. Auto looks at the path and at the beginning of the file.
const (
	FormatAuto   Format = "auto"
	FormatOpenb  Format = "openb"  // Alibaba's openb CSV
	FormatPhilly Format = "philly" // CSV with timestamp,duration,num_gpus
	FormatSWF    Format = "swf"    // Standard Workload Format of the Parallel Workloads Archive
	FormatRegion Format = "region" // the data directory of a stopped server
	FormatExport Format = "export" // what gpuai operator export wrote
)

// Formats lists the formats by name.
var Formats = []Format{FormatAuto, FormatOpenb, FormatPhilly, FormatSWF, FormatRegion, FormatExport}

// Limits of a trace. Beyond them it is refused, with the line.
const (
	maxTraceJobs  = 2_000_000
	maxTraceBytes = 4 << 30 // unpacked
	maxLine       = 1 << 20 // bytes of a line that is no CSV
	maxSeconds    = 100_000_000_000
)

// A Trace is a recorded workload, and the nodes that it ran on where the trace
// tells them.
type Trace struct {
	Path   string
	Format Format
	Nodes  []TraceNode // of a region's own log only
	Jobs   []TraceJob
	// Notes say what was left out, and why, in whole sentences.
	Notes []string
}

// LoadConfig says how a trace is read.
type LoadConfig struct {
	Format Format
	// GPUsPerNode is what the largest node of the cluster has: formats that
	// know only a number of devices split it into tasks of at most so many.
	GPUsPerNode int
	// Skip leaves out lines that make no sense, instead of ending with the
	// first, and notes how many they were.
	Skip bool
	// Progress is called now and then while a region's log is replayed; nil is
	// none.
	Progress func(done, of int)
}

// LoadTrace reads a trace in any format. Its errors name the file, and the line
// where there is one.
func LoadTrace(ctx context.Context, path string, c LoadConfig) (Trace, error) {
	t := Trace{Path: path, Format: c.Format}
	info, err := os.Stat(path)
	if err != nil {
		return t, fmt.Errorf("opening a trace: %w", err)
	}
	if t.Format == "" || t.Format == FormatAuto {
		if t.Format, err = formatOf(path, info.IsDir()); err != nil {
			return t, err
		}
	}
	if info.IsDir() != (t.Format == FormatRegion) {
		return t, fmt.Errorf("%s: format %s is read from a %s", path, t.Format, map[bool]string{true: "directory", false: "file"}[t.Format == FormatRegion])
	}
	if t.Format == FormatRegion {
		return t, t.loadRegion(ctx, c.Progress)
	}
	in, err := openTrace(path)
	if err != nil {
		return t, err
	}
	defer in.Close()
	if err := t.read(in, &c); err != nil {
		return t, err
	}
	if len(t.Jobs) == 0 {
		return t, fmt.Errorf("%s has no jobs%s", path, notesText(t.Notes))
	}
	return t, nil
}

func notesText(notes []string) string {
	if len(notes) == 0 {
		return ""
	}
	return ": " + strings.Join(notes, "; ")
}

// read reads a file's jobs.
func (t *Trace) read(in io.Reader, c *LoadConfig) error {
	k := &skipper{on: c.Skip, t: t}
	var err error
	switch t.Format {
	case FormatOpenb:
		err = readRows(in, t.Path, jobColumns, k, func(r *row) { t.add(r, openbJob(r)) })
	case FormatPhilly:
		err = readRows(in, t.Path, phillyColumns, k, func(r *row) { t.add(r, phillyJob(r, c.GPUsPerNode)) })
	case FormatSWF:
		err = t.readSWF(in, c, k)
	case FormatExport:
		err = t.readExport(in)
	default:
		err = fmt.Errorf("format %q is none of %v", t.Format, Formats)
	}
	k.note()
	return err
}

// add adds the job of a row that is right.
func (t *Trace) add(r *row, j TraceJob) {
	if r.err != nil {
		return
	}
	if len(t.Jobs) >= maxTraceJobs {
		r.fail("", fmt.Sprintf("a trace may have %d jobs", maxTraceJobs))
		r.fatal = true
		return
	}
	j.Line = r.line
	t.Jobs = append(t.Jobs, j)
}

// A skipper counts the lines that are left out.
type skipper struct {
	on    bool
	t     *Trace
	lines int
	first error
}

// skips reports whether an error is passed over.
func (k *skipper) skips(err error) bool {
	if k == nil || !k.on {
		return false
	}
	if k.lines++; k.first == nil {
		k.first = err
	}
	return true
}

func (k *skipper) note() {
	if k.lines > 0 {
		k.t.Notes = append(k.t.Notes, fmt.Sprintf("%d lines were left out, the first: %v", k.lines, k.first))
	}
}

// formatOf finds out the format of a trace.
func formatOf(path string, dir bool) (Format, error) {
	if dir {
		return FormatRegion, nil
	}
	in, err := openTrace(path)
	if err != nil {
		return "", err
	}
	defer in.Close()
	line, err := bufio.NewReaderSize(io.LimitReader(in, maxLine), maxLine).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff"))
	columns := strings.Split(line, ",")
	has := func(need []string) bool {
		return !slices.ContainsFunc(need, func(c string) bool { return !slices.Contains(columns, c) })
	}
	name := strings.TrimSuffix(path, ".gz")
	switch {
	case strings.HasSuffix(name, ".swf") || strings.HasPrefix(line, ";") || isSWF(line):
		return FormatSWF, nil
	case strings.HasPrefix(line, "{"):
		return FormatExport, nil
	case has(jobColumns):
		return FormatOpenb, nil
	case has(phillyColumns):
		return FormatPhilly, nil
	}
	return "", fmt.Errorf("%s:1: this is no trace: it begins with neither a header that names %s, nor one that names %s, nor a line of the Standard Workload Format, nor one of gpuai operator export",
		path, strings.Join(jobColumns, ","), strings.Join(phillyColumns, ","))
}

// openTrace opens a file, unpacks it if it is a gzip, and drops a byte-order
// mark.
func openTrace(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening a trace: %w", err)
	}
	b := bufio.NewReaderSize(f, 1<<16)
	head, _ := b.Peek(2)
	var in io.Reader = b
	if bytes.Equal(head, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(b)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		in = z
	}
	u := bufio.NewReaderSize(&bounded{in: in, left: maxTraceBytes}, 1<<16)
	if mark, _ := u.Peek(3); string(mark) == "\ufeff" {
		_, _ = u.Discard(3) // they were there
	}
	return &tracefile{u, f}, nil
}

// A tracefile reads from what unpacks a file, and closes the file.
type tracefile struct {
	io.Reader
	io.Closer
}

var errTraceSize = errors.New("the trace is larger than 4 GiB unpacked")

// A bounded reader ends with an error, and not as if the file had ended.
type bounded struct {
	in   io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTraceSize
	}
	n, err := b.in.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// split makes n devices tasks of equal size, of at most so many each, as few
// as can be: 12 on nodes of 8 are 2 tasks of 6, and 13 are 13 of 1.
func split(n, perNode int) (tasks, gpus int) {
	perNode = min(max(perNode, 1), gpuai.MaxGPUs)
	for size := min(n, perNode); size > 1; size-- {
		if n%size == 0 {
			return n / size, size
		}
	}
	return max(n, 1), min(n, 1)
}
