package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// quarantined returns a region whose node "a" is quarantined, at a level.
func quarantined(t *testing.T, level uint32) (*region, gpuai.Incarnation) {
	r := newRegion(t)
	if level > MinLevel {
		r.do(&SetFeatureLevel{Level: level})
	}
	inc := r.node("a", 1)
	for range 4 {
		id := r.submit(jobSpec("j", 1, 1))
		r.expire("a", inc)
		r.do(&ConfirmBeats{Term: 1, Ready: []NodeRef{{"a", inc}}})
		r.do(&StopJob{Job: id})
	}
	if n, _ := r.m.Node("a"); n.State != gpuai.NodeQuarantined {
		t.Fatalf("%+v", n)
	}
	return r, inc
}

// A node that dies in its quarantine gets no lease when that ends, from
// LevelRestore on; below it does, as the regions of level 1 do.
func TestEndOfQuarantineByLevel(t *testing.T) {
	for level, want := range map[uint32]gpuai.NodeState{1: gpuai.NodeReady, LevelRestore: gpuai.NodeSuspect} {
		r, inc := quarantined(t, level)
		id := r.submit(jobSpec("waits", 1, 1))
		r.wait(2 * gpuai.Minute)
		if n, _ := r.m.Node("a"); n.State != want {
			t.Fatalf("level %d: the node is %s", level, n.State)
		}
		if leased := r.job(id).Counts.Leased == 1; leased != (want == gpuai.NodeReady) {
			t.Errorf("level %d: a lease on a node that nobody has heard: %v", level, leased)
		}
		r.do(&ConfirmBeats{Term: 1, Ready: []NodeRef{{"a", inc}}})
		r.status(id, gpuai.JobRunning)
	}
}

// Case 17: a machine stops before it applies an entry that raises the region
// beyond the level that it takes part in, and refuses such a snapshot.
func TestCase17NewerLevelStopsBeforeApplying(t *testing.T) {
	raise := func(level uint32) []byte {
		return AppendEntry(nil, Header{Term: 1}, (&Tick{}).Append(nil, Envelope{}), (&SetFeatureLevel{Level: level}).Append(nil, Envelope{}))
	}
	for _, o := range []Options{{Region: "test"}, {Region: "test", MaxLevel: 1}, {Region: "test", MaxLevel: MaxLevel + 7}} {
		m := New(o)
		before := m.Digest()
		err := m.Apply(1, 1, raise(o.maxLevel()+1), &Output{})
		if !errors.Is(err, ErrLevel) || m.Digest() != before || m.Index() != 0 {
			t.Errorf("%+v: %v, index %d", o, err, m.Index())
		}
		if o.maxLevel() > 1 {
			if err := m.Apply(1, 1, raise(o.maxLevel()), &Output{}); err != nil || m.Level() != o.maxLevel() {
				t.Errorf("%+v: %v, level %d", o, err, m.Level())
			}
		}
	}
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	var b bytes.Buffer
	if err := r.m.Fork().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(bytes.NewReader(b.Bytes()), Options{Region: "test", MaxLevel: 1}); !errors.Is(err, ErrLevel) || !errors.Is(err, ErrSnapshot) {
		t.Errorf("a snapshot of a newer level: %v", err)
	}
	r.refuse(&SetFeatureLevel{Level: 1}, gpuai.Conflict)
	r.refuse(&SetFeatureLevel{Level: MaxLevel}, gpuai.Conflict)
}

// The next version's snapshot is refused in a sentence that says what to do.
func TestNextVersionsSnapshotIsRefused(t *testing.T) {
	var b bytes.Buffer
	if err := newRegion(t).m.Fork().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	for want, at := range map[string]int{"has format 2, this version of gpuai reads 1": 8, fmt.Sprintf("has feature level %d, this server goes to %d", MaxLevel+1, MaxLevel): 12} {
		next := bytes.Clone(b.Bytes())
		next[at] = 2
		if at == 12 {
			next[at] = byte(MaxLevel + 1)
		}
		_, err := Restore(bytes.NewReader(next), Options{})
		_, inspectErr := InspectSnapshot(bytes.NewReader(next))
		for _, err := range []error{err, inspectErr} {
			if !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
	}
}
