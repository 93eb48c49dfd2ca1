package fsm

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// A snapshot whose checksums and digest are right is refused all the same when
// two of its records claim to be the same thing, or a node claims a pool that
// the scheduler's part does not have.
func TestRestoreRefusesTwins(t *testing.T) {
	for _, c := range []struct {
		what  string
		wreck func(m *Machine)
	}{
		{"two leases have token", func(m *Machine) { m.leases.Mut(1).token = m.leases.Get(0).token }},
		{"section 5 is malformed", func(m *Machine) { m.jobs.Mut(1).id = m.jobs.Get(0).id }},
		{"section 4 is malformed", func(m *Machine) { m.nodes.Mut(0).name = m.strs.Len() }},
		{"not its task's latest", func(m *Machine) { m.tasks.Mut(0).lease = m.tasks.Get(1).lease }},
	} {
		r := newRegion(t)
		r.apply(&RegisterNode{Spec: nodeSpec("n", 8, "H100"), BootID: "b", Nonce: "n"})
		for range 2 {
			if res := r.do(&SubmitJob{ID: r.newID(), Spec: jobSpec("j", 1, 1)}); res.Leased != 1 {
				t.Fatalf("nothing was placed: %+v", res)
			}
		}
		m := r.m.Fork()
		c.wreck(m)
		m.sp.Commit()
		var snap bytes.Buffer
		if err := m.WriteSnapshot(&snap); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(&snap, Options{}); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%v, want %q", err, c.what)
		}
		if err := r.m.Check(); err != nil {
			t.Error(err)
		}
	}
}

// A region with thousands of shapes has a scheduler's part longer than a frame
// usually is. Builds that ended that frame and began another one, which was
// empty, wrote snapshots that nobody could restore: both forms are read.
func TestRestoreManyShapes(t *testing.T) {
	t.Parallel()
	r := newRegion(t)
	r.check = false
	r.apply(&RegisterNode{Spec: nodeSpec("n", 8, "H100"), BootID: "b", Nonce: "n"})
	for i := range 6_000 {
		s := jobSpec("j", 1, 8)
		s.Groups[0].Resources.CPU = gpuai.MilliCPU(1_000 + i)
		r.apply(&SubmitJob{ID: r.newID(), Spec: s})
	}
	var snap bytes.Buffer
	if err := r.m.WriteSnapshot(&snap); err != nil {
		t.Fatal(err)
	}
	long := snap.Bytes()
	at := 16
	for long[at] != secScheduler {
		at += frameHeader + int(le.Uint32(long[at+5:]))
	}
	size := int(le.Uint32(long[at+5:]))
	if size <= frameBytes {
		t.Fatalf("the scheduler's part has only %d bytes", size)
	}
	end := at + frameHeader + size
	empty := &bytes.Buffer{}
	f := &frameWriter{w: empty}
	f.begin(secScheduler)
	f.end()
	old := slices.Concat(long[:end], empty.Bytes(), long[end:])
	for i, raw := range [][]byte{long, old} {
		m, err := Restore(bytes.NewReader(raw), Options{})
		if err != nil || m.Digest() != r.m.Digest() {
			t.Errorf("form %d: %v", i, err)
		}
	}
}
