package fsm

import (
	"bytes"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// TestRetiredServersAreRemembered retires servers, also in a snapshot's copy.
func TestRetiredServersAreRemembered(t *testing.T) {
	r := newRegion(t)
	for _, step := range []struct {
		id   gpuai.ServerID
		want gpuai.Code
	}{{"a", gpuai.OK}, {"b-2", gpuai.OK}, {"a", gpuai.OK}, {"", gpuai.InvalidSpec}, {"A b", gpuai.InvalidSpec}} {
		if got := r.apply(&RetireServer{Server: step.id}).Results[0].Code; got != step.want {
			t.Errorf("retiring %q: %s, want %s", step.id, got, step.want)
		}
	}
	restored, err := Restore(bytes.NewReader(snapshotOf(t, r.m)), Options{Region: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Machine{r.m, r.m.Fork(), restored} {
		if got := m.RetiredServers(); !slices.Equal(got, []gpuai.ServerID{"a", "b-2"}) {
			t.Errorf("retired are %v", got)
		}
		if !m.ServerRetired("b-2") || m.ServerRetired("b") || m.Digest() != r.m.Digest() {
			t.Errorf("b-2 retired %v, b %v, digest %s, want %s", m.ServerRetired("b-2"), m.ServerRetired("b"), m.Digest(), r.m.Digest())
		}
	}
}

// A restored region is another cluster: its servers may have any ID.
func TestARestoreForgetsRetiredServers(t *testing.T) {
	r := newRegion(t)
	r.apply(&RetireServer{Server: "a"})
	r.restore(testEpoch)
	restored, err := Restore(bytes.NewReader(snapshotOf(t, r.m)), Options{Region: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Machine{r.m, restored} {
		if got := m.RetiredServers(); len(got) != 0 || m.ServerRetired("a") || m.ServerRetired("") {
			t.Errorf("after the restore %v are retired", got)
		}
	}
	r.apply(&RetireServer{Server: "a"})
	if got := r.m.RetiredServers(); !slices.Equal(got, []gpuai.ServerID{"a"}) {
		t.Errorf("retired are %v", got)
	}
}

func TestRetiredServersAreBounded(t *testing.T) {
	r := newRegion(t)
	r.check = false
	for i := range MaxRetiredServers {
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
