package fsm

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// TestServersAreRemembered retires and moves servers, also in a snapshot's copy.
func TestServersAreRemembered(t *testing.T) {
	r := newRegion(t)
	if code := r.apply(&RetireServer{Server: "a"}).Results[0].Code; code != gpuai.Conflict {
		t.Errorf("below its level: %s", code)
	}
	r.apply(&SetFeatureLevel{Level: LevelServers})
	for _, step := range []struct {
		c    Command
		want gpuai.Code
	}{
		{&RetireServer{Server: "a"}, gpuai.OK},
		{&MoveServer{Server: "b-2", Address: "h:1"}, gpuai.OK},
		{&MoveServer{Server: "b-2", Address: "h:2"}, gpuai.OK},
		{&RetireServer{Server: "a"}, gpuai.OK},
		{&RetireServer{}, gpuai.InvalidSpec},
		{&RetireServer{Server: "A b"}, gpuai.InvalidSpec},
		{&MoveServer{Server: "c"}, gpuai.InvalidSpec},
		{&MoveServer{Server: "c", Address: strings.Repeat("x", MaxAddress+1)}, gpuai.InvalidSpec},
	} {
		out := r.apply(step.c)
		if got := out.Results[0].Code; got != step.want || out.Servers != (got == gpuai.OK) {
			t.Errorf("%+v: %s, want %s; servers changed: %v", step.c, got, step.want, out.Servers)
		}
	}
	restored, err := Restore(bytes.NewReader(snapshotOf(t, r.m)), Options{Region: "test"})
	if err != nil {
		t.Fatal(err)
	}
	want := []ServerRecord{{ID: "a", Retired: true}, {ID: "b-2", Address: "h:2"}}
	for _, m := range []*Machine{r.m, r.m.Fork(), restored} {
		if got := m.Servers(); !slices.Equal(got, want) || m.Digest() != r.m.Digest() {
			t.Errorf("remembered are %+v, digest %s, want %+v, %s", got, m.Digest(), want, r.m.Digest())
		}
	}
}

// A restored region is another cluster: its servers may have any ID.
func TestARestoreForgetsServers(t *testing.T) {
	r := newRegion(t)
	r.apply(&SetFeatureLevel{Level: LevelServers})
	r.apply(&RetireServer{Server: "a"})
	r.restore(testEpoch)
	restored, err := Restore(bytes.NewReader(snapshotOf(t, r.m)), Options{Region: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Machine{r.m, restored} {
		if got := m.Servers(); len(got) != 0 {
			t.Errorf("after the restore %v are remembered", got)
		}
	}
	r.apply(&RetireServer{Server: "a"})
	if got := r.m.Servers(); !slices.Equal(got, []ServerRecord{{ID: "a", Retired: true}}) {
		t.Errorf("remembered are %v", got)
	}
}

func TestServersAreBounded(t *testing.T) {
	t.Parallel()
	r := newRegion(t)
	r.check = false
	r.apply(&SetFeatureLevel{Level: LevelServers})
	for i := range MaxServers {
		id := gpuai.ServerID("s-" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676)))
		if code := r.apply(&RetireServer{Server: id}).Results[0].Code; code != gpuai.OK {
			t.Fatalf("server %d: %s", i, code)
		}
	}
	if code := r.apply(&RetireServer{Server: "one-more"}).Results[0].Code; code != gpuai.TooLarge {
		t.Errorf("one too many: %s", code)
	}
	if err := r.m.Check(); err != nil {
		t.Error(err)
	}
}

func snapshotOf(t *testing.T, m *Machine) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.Fork().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
