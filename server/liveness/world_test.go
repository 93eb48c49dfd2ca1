package liveness

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// world is a real machine, driven entry by entry, and the Tracker of its
// leader.
type world struct {
	t     testing.TB
	m     *fsm.Machine
	index uint64
	term  uint64
	jobs  byte
	now   Time
	tr    *Tracker
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, m: fsm.New(fsm.Options{Region: "test"}), term: 1}
	w.elect()
	return w
}

// elect begins a term: its leader knows nothing of the beats before.
func (w *world) elect() {
	w.term++
	w.tr = New(w.term, w.now)
}

func (w *world) apply(cmd []byte) fsm.Result {
	w.t.Helper()
	w.index++
	h := fsm.Header{Time: gpuai.Instant(w.now / millisecond), Term: w.term}
	var out fsm.Output
	if err := w.m.Apply(w.index, w.term, fsm.AppendEntry(nil, h, cmd), &out); err != nil {
		w.t.Fatal(err)
	}
	return out.Results[0]
}

func (w *world) do(c fsm.Command) fsm.Result {
	w.t.Helper()
	res := w.apply(c.Append(nil, fsm.Envelope{Tenant: gpuai.DefaultTenant}))
	if res.Code != gpuai.OK {
		w.t.Fatalf("%T: %s (%s)", c, res.Code, res.Detail)
	}
	return res
}

func (w *world) policy() *gpuai.Policy {
	p := w.m.Policy()
	return &p
}

func nodeID(i int) gpuai.NodeID { return gpuai.NodeID(fmt.Sprintf("n%d", i)) }

// register registers a life of a node with a device.
func (w *world) register(id gpuai.NodeID, nonce string, held ...gpuai.HeldLease) fsm.NodeRef {
	w.t.Helper()
	replaces, _, _ := w.m.NodeLive(id)
	res := w.do(&fsm.RegisterNode{
		Spec: gpuai.NodeSpec{
			ID: id, Address: "a", CPU: 64_000, Memory: 1 << 40,
			Devices: []gpuai.Device{{ID: "d", Vendor: "sim", Model: "X", Memory: 1 << 30}},
		},
		BootID: "boot", Nonce: nonce, Replaces: replaces, Held: held,
	})
	return fsm.NodeRef{Node: id, Incarnation: res.Incarnation}
}

// lease submits a job of one task with a device and a TTL.
func (w *world) lease(ttl gpuai.Duration) gpuai.JobID {
	w.t.Helper()
	w.jobs++
	s := &gpuai.JobSpec{
		Name: "j", LeaseTTL: ttl,
		Groups: []gpuai.Group{{
			Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}},
			Task:      gpuai.TaskSpec{Command: []string{"x"}},
		}},
	}
	s.Defaults()
	return w.do(&fsm.SubmitJob{ID: gpuai.JobID{15: w.jobs, 14: 1}, Spec: s}).Job
}

func (w *world) beat(refs ...fsm.NodeRef) []bool { return w.tr.Beats(w.m, w.now, refs) }

// decide runs one window's scans.
func (w *world) decide() Decision {
	p := w.policy()
	for w.tr.Scan(w.m, p, w.now) {
	}
	return w.tr.Decide(p, w.now)
}

// window decides and applies.
func (w *world) window() Decision {
	d := w.decide()
	for _, cmd := range d.Commands(false) {
		if res := w.apply(cmd); res.Code != gpuai.OK {
			w.t.Fatalf("a decision was rejected: %s (%s)", res.Code, res.Detail)
		}
	}
	return d
}

const second = 1_000 * millisecond

// runTo runs windows up to a time and returns what they decided.
func (w *world) runTo(end Time) (all Decision) {
	for w.now < end {
		w.now = min(w.now+second/4, end)
		d := w.window()
		all.Expire = append(all.Expire, d.Expire...)
		all.Suspect = append(all.Suspect, d.Suspect...)
		all.Ready = append(all.Ready, d.Ready...)
		all.Tripped = all.Tripped || d.Tripped
		all.Open, all.Held = d.Open, d.Held
	}
	return all
}

func (w *world) live() int { return int(w.m.Counts().Leases) }
