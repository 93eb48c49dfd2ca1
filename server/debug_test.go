package server

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/telemetry"
)

func TestDebugTexts(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader().Server
	s.cfg.Recent = telemetry.NewRing()
	s.cfg.Recent.Tee(testLogger(t)).Info("hello")
	for what, want := range map[string]string{
		gpuai.DebugLogs: "msg=hello", gpuai.DebugGoroutines: "goroutine profile: total", gpuai.DebugHeap: "heap profile:",
	} {
		var b bytes.Buffer
		if err := s.Debug(t.Context(), what, 1, &b); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%s: %v, %.100s", what, err, b.String())
		}
	}
	if err := s.Debug(t.Context(), "secrets", 1, &bytes.Buffer{}); !isCode(err, gpuai.NotFound) {
		t.Errorf("an unknown text: %v", err)
	}
}

// A process has one CPU profile at a time: who comes second waits.
func TestProfilesWaitForEachOther(t *testing.T) {
	profiles := make(chan int, 2)
	for range 2 {
		go func() {
			var b bytes.Buffer
			if err := profileCPU(t.Context(), 10*time.Millisecond, &b); err != nil {
				t.Error(err)
			}
			profiles <- b.Len()
		}()
	}
	for range 2 {
		if n := <-profiles; n == 0 {
			t.Error("an empty profile")
		}
	}
}

func TestServerInfoAndRaftStatus(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader().Server
	info := s.Info()
	if info.Server != "s1" || !info.Ready || info.StartedAt == 0 || info.Heap == 0 || len(info.Config) == 0 {
		t.Errorf("%+v", info)
	}
	if st := s.Raft(t.Context()); st.Disk.Free == 0 || st.Disk.Size < st.Disk.Free || st.Disk.LogBytes == 0 || st.Disk.Snapshots != 0 {
		t.Errorf("%+v", st.Disk)
	}
	if err := s.node.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if st := s.Raft(t.Context()); st.Disk.Snapshots != 1 || st.Disk.SnapshotBytes == 0 {
		t.Errorf("with a snapshot: %+v", st.Disk)
	}
	if _, err := s.ForwardTo(t.Context(), "s9"); !isCode(err, gpuai.NotFound) || !strings.Contains(err.Error(), "s1") {
		t.Errorf("a server that is not there: %v", err)
	}
}
