package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
)

// uploaded waits for the output of an attempt in the store, and returns a stream.
func (f *fixture) uploaded(lease gpuai.Token, stream string) (c gpuai.LogChunk) {
	f.t.Helper()
	s := f.stored()
	eventually(f.t, "the output of lease "+lease.String()+" in the store", func() bool {
		l, err := s.OpenLog(f.t.Context(), gpuai.LogPrefix(aTask, lease))
		if errors.Is(err, blobs.ErrNotFound) {
			return false
		}
		if err == nil {
			c, err = l.Read(f.t.Context(), &gpuai.LogRequest{Stream: stream, Times: true})
		}
		if err != nil {
			f.t.Fatal(err)
		}
		return true
	})
	return c
}

// marks are the attempts whose output is not in the store.
func (f *fixture) marks() int {
	entries, err := os.ReadDir(filepath.Join(f.dir, uploadsDir))
	if err != nil {
		f.t.Fatal(err)
	}
	return len(entries)
}

// breakStore puts a file where the store's directory would be, and returns what
// takes it away.
func (f *fixture) breakStore() (mend func()) {
	f.t.Helper()
	at := strings.TrimPrefix(f.store, "file://")
	if err := os.WriteFile(at, []byte("in the way"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(at); err != nil {
			f.t.Error(err)
		}
	}
}

// logged collects what an agent logs.
type logged struct {
	mu sync.Mutex // guards below
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		n := 0
		for _, p := range parts {
			if strings.Contains(line, p) {
				n++
			}
		}
		if n == len(parts) {
			return true
		}
	}
	return false
}

func (l *logged) of(c *Config) { c.Logger = slog.New(slog.NewTextHandler(l, nil)) }

func TestOutputIsUploadedWhenAnAttemptEnds(t *testing.T) {
	f := storing(t)
	f.run(nil)
	lease := f.grant(testNode, saving(`echo out; echo err >&2; exit 3`))
	f.last(lease)
	if c := f.uploaded(lease, "stdout"); string(c.Data) != "out\n" || !c.EOF || len(c.Times) != 1 || c.Times[0].At == 0 {
		t.Errorf("%+v", c)
	}
	if c := f.uploaded(lease, "stderr"); string(c.Data) != "err\n" {
		t.Errorf("%+v", c)
	}
	eventually(t, "the mark to go", func() bool { return f.marks() == 0 })
	// What was said once the task was gone is there too.
	refused := f.grant(testNode, saving(`d=$GPUAI_CHECKPOINT_DIR/step-1; mkdir $d.tmp; ln -s /etc/shadow $d.tmp/x; mv $d.tmp $d; told 1`))
	f.last(refused)
	if c := f.uploaded(refused, "stderr"); !strings.Contains(string(c.Data), "gpuai: the checkpoint step-1 was not published") {
		t.Errorf("%q", c.Data)
	}
}

// A store that is down delays no report, and what it does not have is found again
// by the agent's next life.
func TestUploadOutlastsAStoreThatIsDown(t *testing.T) {
	f := storing(t)
	mend := f.breakStore()
	var log logged
	first := f.run(log.of)
	lease := f.grant(testNode, saving(`head -c 3000000 /dev/zero; echo; echo end`))
	if r := f.last(lease); r.State != gpuai.ReportDone {
		t.Fatalf("%+v", r)
	}
	eventually(t, "a try", func() bool {
		return log.has("output of an attempt is not uploaded yet", lease.String(), "open the store "+f.store)
	})
	first.stop(t)
	if f.marks() != 1 {
		t.Fatalf("%d attempts are marked", f.marks())
	}
	mend()
	f.run(nil)
	c := f.uploaded(lease, "stdout")
	if len(c.Data) != blobs.MaxLogPiece || c.EOF {
		t.Errorf("%d bytes, EOF %t", len(c.Data), c.EOF)
	}
	l, err := f.stored().OpenLog(t.Context(), gpuai.LogPrefix(aTask, lease))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := l.Read(t.Context(), &gpuai.LogRequest{Stream: "stdout", Tail: 1}); err != nil || string(c.Data) != "end\n" || c.Offset != 3_000_001 || !c.EOF {
		t.Errorf("%d bytes at %d, %v", len(c.Data), c.Offset, err)
	}
}

// Output that the store does not take is given up, with a line that says so: after
// a time, or when the node needs its room.
func TestUploadIsGivenUp(t *testing.T) {
	f := storing(t)
	defer f.breakStore()()
	var log logged
	a := f.run(func(c *Config) {
		c.LogSpace = 100 << 10
		log.of(c)
	})
	large := f.grant(testNode, saving(`head -c 65536 /dev/zero`))
	f.last(large)
	second := f.grant(testNode, saving(`head -c 65536 /dev/zero`))
	f.last(second)
	eventually(t, "the first to make way", func() bool { return log.has("made way on the node", large.String()) })
	if c := f.log(testNode, gpuai.LogRequest{Lease: large, Stream: "stdout"}); !c.Gone || c.Error == "" {
		t.Errorf("%+v", c)
	}
	a.stop(t)
	eventually(t, "a mark", func() bool { return f.marks() == 1 })
	f.run(func(c *Config) {
		c.testGiveUp = 1
		log.of(c)
	})
	eventually(t, "the second to be given up", func() bool {
		return log.has("given up, and stays on its node", second.String(), f.store) && f.marks() == 0
	})
}

// While the store is down tasks go on, and publishing is tried again: nothing is
// lost, and the agent's log says what is wrong, and where.
func TestCheckpointsOutlastAStoreThatIsDown(t *testing.T) {
	f := storing(t)
	mend := f.breakStore()
	var log logged
	f.run(log.of)
	lease := f.grant(testNode, saving(`save 1 one; echo goes on; told 1; save 2 two; told 2`))
	eventually(t, "the task to go on", func() bool { return strings.Contains(f.printed(lease, "stdout"), "goes on") })
	eventually(t, "a try", func() bool { return log.has("a checkpoint is not stored yet", "step-1", "open the store "+f.store) })
	if got := f.kept(1); len(got) > 0 {
		t.Fatalf("%+v is published", got)
	}
	mend()
	if r := f.last(lease); r.State != gpuai.ReportDone {
		t.Errorf("%+v: %s", r, f.printed(lease, "stderr"))
	}
	if got := f.kept(3); len(got) != 2 || got[0].Step != 2 || got[1].Step != 1 {
		t.Errorf("%+v", got)
	}
}
