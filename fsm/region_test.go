package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// A region drives a machine in tests: it makes entries, applies them and checks
// the invariants after each.
type region struct {
	t     testing.TB
	m     *Machine
	index uint64
	term  uint64
	time  gpuai.Instant
	jobs  uint64
	check bool
	wall  gpuai.WallTime // that entries carry; 0: 1
	log   [][]byte       // every entry applied
}

func newRegion(t testing.TB) *region {
	return &region{t: t, m: New(Options{Region: "test"}), term: 1, check: true}
}

// apply applies the commands as one entry and returns what it did.
func (r *region) apply(cmds ...Command) *Output {
	return r.applyAs(Envelope{Tenant: "default"}, cmds...)
}

func (r *region) applyAs(env Envelope, cmds ...Command) *Output {
	r.t.Helper()
	var encoded [][]byte
	for _, c := range cmds {
		encoded = append(encoded, c.Append(nil, env))
	}
	return r.applyEntry(AppendEntry(nil, Header{Time: r.time, Wall: max(r.wall, 1), Term: r.term}, encoded...))
}

func (r *region) applyEntry(entry []byte) *Output {
	r.t.Helper()
	r.index++
	r.log = append(r.log, entry)
	out := &Output{}
	if err := r.m.Apply(r.index, r.term, entry, out); err != nil {
		r.t.Fatalf("entry %d: %v", r.index, err)
	}
	if out.Panics > 0 {
		r.t.Fatalf("entry %d: a command panicked: %s", r.index, out.Panic)
	}
	if r.check {
		if err := r.m.Check(); err != nil {
			r.t.Fatalf("entry %d: %v", r.index, err)
		}
	}
	return out
}

// do applies one command that must succeed.
func (r *region) do(c Command) Result {
	r.t.Helper()
	out := r.apply(c)
	if res := out.Results[0]; res.Code != gpuai.OK {
		r.t.Fatalf("%T: %s (%s)", c, res.Code, res.Detail)
	}
	return out.Results[0]
}

// refuse applies one command that must be rejected with a code and change
// nothing but the chain.
func (r *region) refuse(c Command, code gpuai.Code) Result {
	r.t.Helper()
	out := r.apply(c)
	if res := out.Results[0]; res.Code != code {
		r.t.Fatalf("%T: %s (%s), want %s", c, res.Code, res.Detail, code)
	}
	return out.Results[0]
}

// wait lets region time pass, and ticks while the machine wants it.
func (r *region) wait(d gpuai.Duration) {
	r.t.Helper()
	end := r.time.Add(d)
	for {
		next := r.m.NextDeadline()
		if next > end {
			break
		}
		r.time = max(r.time, next)
		r.apply(&Tick{})
	}
	r.time = end
	r.apply(&Tick{})
}

// node registers a node with n equal devices.
func (r *region) node(name string, n int) gpuai.Incarnation {
	r.t.Helper()
	return r.register(nodeSpec(name, n, "H100"))
}

func (r *region) register(s gpuai.NodeSpec) gpuai.Incarnation {
	r.t.Helper()
	return r.do(&RegisterNode{Spec: s, BootID: "boot-1", Nonce: "nonce-1"}).Incarnation
}

func nodeSpec(name string, n int, model string) gpuai.NodeSpec {
	s := gpuai.NodeSpec{
		ID: gpuai.NodeID(name), Zone: "z1", Address: "10.0.0.1", CPU: 64_000, Memory: 512 << 30,
		PortMin: 20_000, PortCount: 64,
	}
	for i := range n {
		s.Devices = append(s.Devices, gpuai.Device{
			ID: gpuai.DeviceID(fmt.Sprintf("%s-gpu-%02d", name, i)), Vendor: "nvidia", Model: model, Memory: 80 << 30,
		})
	}
	return s
}

// jobSpec returns a valid job of one group.
func jobSpec(name string, tasks, gpus uint32) *gpuai.JobSpec {
	s := &gpuai.JobSpec{Name: name, Groups: []gpuai.Group{{
		Count:     tasks,
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: gpus}, CPU: 1000, Memory: 1 << 30},
		Task:      gpuai.TaskSpec{Command: []string{"true"}},
	}}}
	s.Defaults()
	return s
}

func (r *region) newID() gpuai.JobID {
	r.jobs++
	var id gpuai.JobID
	le.PutUint64(id[8:], r.jobs)
	id[0] = 1
	return id
}

// submit stores a job and returns its ID.
func (r *region) submit(s *gpuai.JobSpec) gpuai.JobID {
	r.t.Helper()
	id := r.newID()
	r.do(&SubmitJob{ID: id, Spec: s})
	return id
}

func (r *region) job(id gpuai.JobID) gpuai.Job {
	r.t.Helper()
	j, ok := r.m.Job(id, false)
	if !ok {
		r.t.Fatalf("job %s is gone", id)
	}
	return j
}

func (r *region) leases(id gpuai.JobID) []gpuai.Lease { return r.m.LeasesOfJob(id, 0, 1000) }

// report tells of a lease's task, with the next sequence number.
func (r *region) report(l gpuai.Lease, s gpuai.ReportState, exit int32) Result {
	r.t.Helper()
	slot, _ := r.m.leaseSlot(l.ID)
	return r.do(&ReportLease{Node: l.Node, Report: gpuai.Report{
		Lease: l.ID, Seq: r.m.leases.Get(slot).seq + 1, Incarnation: l.Incarnation, State: s, ExitCode: exit,
	}})
}

func (r *region) expire(node string, inc gpuai.Incarnation) {
	r.t.Helper()
	r.do(&ExpireLeases{Node: gpuai.NodeID(node), Incarnation: inc, SilentFor: gpuai.Hour * 2, Term: r.term})
}

func (r *region) status(id gpuai.JobID, want gpuai.JobStatus) {
	r.t.Helper()
	if got := r.job(id).Status; got != want {
		r.t.Fatalf("the job is %s, want %s: %+v", got, want, r.job(id))
	}
}

// restored returns the machine's copy by way of a snapshot.
func restored(t testing.TB, m *Machine) *Machine {
	t.Helper()
	var b bytes.Buffer
	if err := m.Fork().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	c, err := Restore(&b, m.opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// brief reports whether walks are to take few seeds.
func brief() bool { return underRace || testing.Short() }

// lengthy skips a test of a large region where time is short.
func lengthy(t *testing.T) {
	t.Helper()
	if brief() {
		t.Skip("a large region: it runs without the race detector, for 386")
	}
}

// few is how many seeds a walk runs with: all, or where time is short some.
func few(all, some uint64) uint64 {
	if brief() {
		return some
	}
	return all
}
