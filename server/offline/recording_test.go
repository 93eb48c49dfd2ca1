package offline

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

const canary = "hunter2-canary"

// recorded is a recording made here: a machine that was driven, and its log.
func recorded(t *testing.T, drive func(apply func(at gpuai.Instant, c fsm.Command) fsm.Output)) *Recording {
	t.Helper()
	var log []store.Entry
	m := fsm.New(fsm.Options{Region: "local"})
	drive(func(at gpuai.Instant, c fsm.Command) fsm.Output {
		data := fsm.AppendEntry(nil, fsm.Header{Time: at, Term: 1}, c.Append(nil, fsm.Envelope{Tenant: "default", Actor: canary}))
		log = append(log, store.Entry{Index: m.Index() + 1, Term: 1, Command: true, Data: data})
		var out fsm.Output
		if err := m.Apply(m.Index()+1, 1, data, &out); err != nil {
			t.Fatal(err)
		}
		return out
	})
	return &Recording{
		Source: "test", Region: "local", Last: m.Index(), close: func() error { return nil },
		base: func(context.Context, uint64) (*fsm.Machine, uint64, error) {
			return fsm.New(fsm.Options{Region: "local"}), 0, nil
		},
		read: func(i uint64) (store.Entry, error) { return log[i-1], nil },
	}
}

func work(n byte, gpus uint32, priority gpuai.Priority) *fsm.SubmitJob {
	s := &gpuai.JobSpec{Name: canary, Priority: priority, Groups: []gpuai.Group{{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: gpus}, CPU: 1000, Memory: 1 << 30},
		Task:      gpuai.TaskSpec{Command: []string{canary}, Env: map[string]string{"TOKEN": canary}},
	}}}
	s.Defaults()
	return &fsm.SubmitJob{ID: gpuai.JobID{0: 1, 15: n}, Spec: s}
}

// busy drives a region with one node: jobs of a class each, one after the other.
func busy(t *testing.T) *Recording {
	return recorded(t, func(apply func(gpuai.Instant, fsm.Command) fsm.Output) {
		spec := gpuai.NodeSpec{ID: "n1", Address: canary, CPU: 64_000, Memory: 1 << 40}
		for _, d := range []gpuai.DeviceID{"a", "b"} {
			spec.Devices = append(spec.Devices, gpuai.Device{ID: d, Vendor: "sim", Model: "X", Memory: 1 << 36})
		}
		apply(0, &fsm.RegisterNode{Spec: spec, BootID: "b", Nonce: "n"})
		now := gpuai.Instant(0)
		var live []gpuai.Event
		follow := func(out fsm.Output) {
			for _, e := range out.Events {
				if e.Kind == gpuai.LeaseGrantedEvent {
					live = append(live, e)
				}
			}
		}
		for i := range byte(30) {
			c := work(i+1, 1+uint32(i%2), 0)
			if i%3 == 0 {
				c.Spec.Class = gpuai.ClassInference
			}
			follow(apply(now, c))
			if now += 10_000; len(live) > 0 && i%2 == 1 {
				e := live[0]
				live = live[1:]
				follow(apply(now, &fsm.ReportLease{Node: e.Node, Report: gpuai.Report{Lease: e.Lease, Seq: 1, Incarnation: e.Incarnation, State: gpuai.ReportDone, Reason: canary}}))
			}
		}
		for len(live) > 0 {
			e := live[0]
			live = live[1:]
			now += 5_000
			follow(apply(now, &fsm.ReportLease{Node: e.Node, Report: gpuai.Report{Lease: e.Lease, Seq: 1, Incarnation: e.Incarnation, State: gpuai.ReportDone}}))
		}
	})
}

func report(t *testing.T, r *Recording, span gpuai.IndexRange) (path string, info ReportInfo) {
	t.Helper()
	var b bytes.Buffer
	info, err := r.WriteReport(t.Context(), &b, span, nil)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(z); err != nil || bytes.Contains(plain, []byte("hunter2")) {
		t.Fatalf("the report holds a secret, or is none: %v", err)
	}
	path = filepath.Join(t.TempDir(), "r.report")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, info
}

func TestReportReplaysToItsDigest(t *testing.T) {
	r := busy(t)
	path, info := report(t, r, gpuai.IndexRange{From: 20, To: r.Last})
	if info.Entries != r.Last-20 {
		t.Errorf("%+v", info)
	}
	again, err := OpenRecording(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := again.MachineAt(t.Context(), again.Last, nil)
	if err != nil || m.Digest().String() != info.Digest {
		t.Fatalf("digest %v, recorded %s: %v", m.Digest(), info.Digest, err)
	}
	was, err := r.MachineAt(t.Context(), r.Last, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := m.Counts(), was.Counts(); a != b {
		t.Errorf("redacted %+v, as it was %+v", a, b)
	}
	if _, err := again.MachineAt(t.Context(), 19, nil); !errors.Is(err, gpuai.NewError(gpuai.NotFound, "")) {
		t.Errorf("a state before the report: %v", err)
	}
	again.Report.digests[30] = strings.Repeat("0", 32)
	if _, err := again.MachineAt(t.Context(), again.Last, nil); !errors.Is(err, ErrDiverged) || !strings.Contains(err.Error(), "index 30:") {
		t.Errorf("a build that differs from index 30 on: %v", err)
	}
	if second, _ := OpenRecording(path); second != nil {
		x, err := second.WriteReport(t.Context(), io.Discard, gpuai.IndexRange{From: 25, To: 30}, nil)
		if err != nil || x.Entries != 5 {
			t.Errorf("a report of a report: %+v, %v", x, err)
		}
	}
}

func TestDamagedReportsAreRefused(t *testing.T) {
	path, _ := report(t, busy(t), gpuai.IndexRange{From: 10, To: 40})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"empty", nil},
		{"cut off", whole[:len(whole)/2]},
		{"its end is missing", whole[:len(whole)-4]},
		{"a bit is another", flipAt(whole, len(whole)/2)},
		{"the checksum is another", flipAt(whole, len(whole)-6)},
		{"no report", []byte("hello")},
	} {
		bad := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(bad, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenRecording(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func flipAt(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 0x10
	return b
}

func TestDiffWithTheSamePolicyIsTheSame(t *testing.T) {
	r := busy(t)
	span := gpuai.IndexRange{To: r.Last}
	d, err := r.Diff(t.Context(), span, map[string]any{"flap_limit": 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.Shadow.Digest, d.Control.Digest = "", ""
	if d.Control != d.Shadow || len(d.Jobs) != 0 || d.Recorded.Jobs != 30 || d.Recorded.Utilisation == 0 {
		t.Errorf("%+v", d)
	}
	d.Recorded.Digest = ""
	if d.Recorded != d.Control {
		t.Errorf("the simulation of the recorded policy differs:\n%+v\n%+v", d.Recorded, d.Control)
	}
}

func TestDiffShowsWhatAPolicyChanges(t *testing.T) {
	r := busy(t)
	d, err := r.Diff(t.Context(), gpuai.IndexRange{To: r.Last}, map[string]any{"priority_inference": 1}, nil)
	if err != nil || len(d.Jobs) == 0 || d.Shadow == d.Control {
		t.Errorf("%+v, %v", d, err)
	}
	again, err := r.Diff(t.Context(), gpuai.IndexRange{To: r.Last}, map[string]any{"priority_inference": 1}, nil)
	if err != nil || again.Shadow != d.Shadow || again.Control != d.Control {
		t.Errorf("another answer the second time: %+v, %v", again, err)
	}
	for _, bad := range []map[string]any{{"no_such_setting": 1}, {"flap_limit": 0}} {
		if _, err := r.Diff(t.Context(), gpuai.IndexRange{To: r.Last}, bad, nil); !errors.Is(err, gpuai.NewError(gpuai.InvalidSpec, "")) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	half := gpuai.IndexRange{From: 25, To: r.Last}
	if d, err := r.Diff(t.Context(), half, map[string]any{"flap_limit": 3}, nil); err != nil || d.Recorded.Ended != d.Control.Ended {
		t.Errorf("from the middle: %+v, %v", d, err)
	}
}

func TestRecordingOfADataDirectory(t *testing.T) {
	dir, _ := history(t)
	v, err := Verify(t.Context(), dir, nil)
	if err != nil || v.State == nil {
		t.Fatalf("%+v, %v", v, err)
	}
	r, err := OpenRecording(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m, err := r.MachineAt(t.Context(), r.Last, nil)
	if err != nil || StateOf(m, v.State.From) != *v.State {
		t.Errorf("%+v, verify says %+v: %v", StateOf(m, v.State.From), *v.State, err)
	}
	if _, err := r.MachineAt(t.Context(), r.Last+1, nil); !errors.Is(err, gpuai.NewError(gpuai.NotFound, "")) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.MachineAt(ctx, r.Last, nil); r.First < r.Last && err == nil {
		t.Error("a cancelled replay went on")
	}
}
