package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

const canary = "hunter2-canary"

func secretSpec(i int) *gpuai.JobSpec {
	s := jobSpec(fmt.Sprintf("%s-%d", canary, i%4), 1+uint32(i%3), 1+uint32(i%2))
	s.Groups[0].Name = canary
	s.Groups[0].Task = gpuai.TaskSpec{Command: []string{"run", "--token=" + canary}, Env: map[string]string{"K" + canary: canary, "B": canary}, Cwd: "/" + canary}
	if i%2 == 0 {
		s.Groups[0].Task.Command, s.Groups[0].Task.Script = nil, "echo "+canary
	}
	s.Defaults()
	return s
}

// TestRedactedRegionDecidesAlike redacts a state and the log behind it, looks for
// secrets in both, and compares every decision.
func TestRedactedRegionDecidesAlike(t *testing.T) {
	r := newRegion(t)
	spec := nodeSpec("a", 4, "H100")
	spec.Address = canary + ".example"
	spec.Devices[0].HealthCode = canary
	inc := r.register(spec)
	env := Envelope{Tenant: "default", Actor: canary, Key: "key-" + canary}
	step := func(i int) {
		env.Key = fmt.Sprintf("key-%s-%d", canary, i)
		id := r.newID()
		r.applyAs(env, &SubmitJob{ID: id, Spec: secretSpec(i)})
		if ls := r.leases(id); len(ls) > 0 && i%3 == 0 {
			r.do(&ReportLease{Node: "a", Report: gpuai.Report{Lease: ls[0].ID, Seq: 1, Incarnation: inc, State: gpuai.ReportFailed, Reason: canary}})
		}
		r.apply(&UpdateDevices{Node: "a", Incarnation: inc, Devices: spec.Devices}, &Checkpoint{Index: r.index, Digest: r.m.Digest()})
		r.wait(gpuai.Second)
	}
	for i := range 10 {
		step(i)
	}
	x := Redaction{Salt: 42}
	m := restored(t, r.m)
	x.RedactState(m)
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	var snap bytes.Buffer
	if err := m.Fork().WriteSnapshot(&snap); err != nil {
		t.Fatal(err)
	}
	clean(t, "the snapshot", snap.Bytes())
	m = restored(t, m)
	from := len(r.log)
	for i := range 20 {
		step(10 + i)
	}
	again := restored(t, m)
	for i, entry := range r.log[from:] {
		red, err := x.RedactEntry(entry, m)
		if err != nil {
			t.Fatal(err)
		}
		clean(t, "an entry", red)
		var out, second Output
		index := uint64(from + i + 1)
		if err := m.Apply(index, r.term, red, &out); err != nil || out.Diverged || out.Panics > 0 {
			t.Fatalf("entry %d: %v %+v", index, err, out)
		}
		if err := again.Apply(index, r.term, red, &second); err != nil || again.Digest() != m.Digest() {
			t.Fatalf("entry %d: another digest the second time: %v", index, err)
		}
	}
	if a, b := m.Counts(), r.m.Counts(); a != b {
		t.Errorf("redacted %+v, as it was %+v", a, b)
	}
	for _, l := range r.m.LeasesOfNode("a", 100) {
		if k, ok := m.Lease(l.ID); !ok || k.TaskRef != l.TaskRef || fmt.Sprint(k.Devices) != fmt.Sprint(l.Devices) {
			t.Errorf("lease %v is %+v in the redacted state", l.ID, k)
		}
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestRedactsWhatCannotBeRead(t *testing.T) {
	r := newRegion(t)
	for typ := uint8(1); typ < numTypes; typ++ {
		cmd := appendCommand(nil, typ, Envelope{Key: canary}, func(b []byte) []byte { return append(b, canary...) })
		x := Redaction{}
		red, err := x.RedactEntry(AppendEntry(nil, Header{}, cmd), r.m)
		if err != nil {
			t.Fatal(err)
		}
		switch typ {
		case typeSubmitJob, typeRegisterNode, typeUpdateDevices, typeReportLease, typeCheckpoint:
			clean(t, "a malformed command", red)
		}
	}
}

func clean(t *testing.T, what string, b []byte) {
	t.Helper()
	if bytes.Contains(b, []byte(canary)) || bytes.Contains(b, []byte("hunter2")) {
		t.Fatalf("%s holds a secret", what)
	}
}
