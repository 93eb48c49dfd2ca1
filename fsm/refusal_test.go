package fsm

import (
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// tells has an agent say what it has, and why it takes no new task.
func (r *region) tells(node string, why *gpuai.Refusal) {
	r.t.Helper()
	n, _ := r.m.Node(gpuai.NodeID(node))
	for i := range n.Devices {
		n.Devices[i].Free = 0
	}
	r.do(&UpdateDevices{Node: n.ID, Incarnation: n.Incarnation, Devices: n.Devices, Refuses: why})
}

// A node that refuses new tasks gets none, with GPUs or without; what runs there goes
// on; explain says why, and what waits starts when it takes tasks again.
func TestNodeThatRefuses(t *testing.T) {
	full := &gpuai.Refusal{Code: gpuai.DiskFull, Detail: "its disk is full"}
	r := newest(t, nil)
	r.node("a", 2)
	runs := r.submit(jobSpec("runs", 1, 1))
	r.tells("a", full)
	if n, _ := r.m.Node("a"); n.Refuses == nil || *n.Refuses != *full || n.State != gpuai.NodeReady {
		t.Fatalf("%+v", n)
	}
	cpu, gpu := r.submit(jobSpec("cpu", 1, 0)), r.submit(jobSpec("gpu", 1, 1))
	r.m = restored(t, r.m)
	r.wantLive(runs, 1)
	if ls := r.revoking(runs); len(ls) > 0 {
		t.Errorf("what runs is to end: %+v", ls)
	}
	for _, id := range []gpuai.JobID{cpu, gpu} {
		r.wantLive(id, 0)
		x, _ := r.m.Fork().Explain(id)
		if !slices.ContainsFunc(x.Reasons, func(w gpuai.Reason) bool {
			return w.Code == gpuai.DiskFull && w.Nodes == 1 && strings.Contains(w.Message, full.Detail) && strings.Contains(w.Fix, "make room")
		}) || slices.ContainsFunc(x.Reasons, func(w gpuai.Reason) bool { return w.Code == gpuai.NodesUnhealthy }) {
			t.Errorf("why it waits: %+v", x.Reasons)
		}
	}
	if c := r.m.countCapacity(); c.NodesOpen != 0 {
		t.Errorf("%+v", c)
	}
	r.tells("a", nil)
	r.wantLive(cpu, 1)
	r.wantLive(gpu, 1)
	r.tells("a", &gpuai.Refusal{Code: gpuai.NodeRefuses, Detail: "its journal cannot be written"})
	s := nodeSpec("a", 2, "H100")
	r.register(s) // with its next session it says so, or not
	r.wantLive(r.submit(jobSpec("more", 1, 0)), 1)
	s.Refuses = full
	r.register(s)
	r.wantLive(r.submit(jobSpec("less", 1, 0)), 0)
}

// What an agent says of its host are its own words, or those of whose node it is:
// tenants are told the code, and no more.
func TestRefusalInWordsIsTheOperators(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	r.tells("a", &gpuai.Refusal{Code: gpuai.NodeRefuses, Detail: "send your token to example.net"})
	job := r.submit(jobSpec("j", 1, 0))
	for asker, told := range map[gpuai.TenantID]bool{"": true, gpuai.DefaultTenant: false} {
		f := r.m.Fork()
		f.AnswerTo(asker)
		x, _ := f.Explain(job)
		i := slices.IndexFunc(x.Reasons, func(w gpuai.Reason) bool { return w.Code == gpuai.NodeRefuses })
		if i < 0 || strings.Contains(x.Reasons[i].Message, "example.net") != told {
			t.Errorf("to %q: %+v", asker, x.Reasons)
		}
	}
}

// Below the level no such thing can be said, and what cannot be kept never.
func TestRefusalsThatAreRefused(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelTenants - 1})
	inc := r.node("a", 2)
	c := &UpdateDevices{Node: "a", Incarnation: inc, Refuses: &gpuai.Refusal{Code: gpuai.DiskFull}}
	s := nodeSpec("b", 2, "H100")
	s.Refuses = c.Refuses
	placed := nodeSpec("c", 2, "H100")
	placed.Devices[1].LinkIsland = 1
	cmds := []Command{c, &RegisterNode{Spec: s, BootID: "b", Nonce: "n"}, &RegisterNode{Spec: placed, BootID: "b", Nonce: "n"}, &UpdateDevices{Node: "a", Incarnation: inc, Devices: placed.Devices}}
	for _, c := range cmds {
		r.refuse(c, gpuai.InvalidSpec)
	}
	r.do(&SetFeatureLevel{Level: LevelTenants})
	for _, c := range cmds {
		r.do(c)
	}
	r.refuse(&UpdateDevices{Node: "a", Incarnation: inc, Refuses: &gpuai.Refusal{Code: gpuai.Quiet}}, gpuai.InvalidSpec)
	r.refuse(&UpdateDevices{Node: "a", Incarnation: inc, Refuses: &gpuai.Refusal{Code: gpuai.DiskFull, Detail: strings.Repeat("x", gpuai.MaxTextLen+1)}}, gpuai.InvalidSpec)
	placed.Devices[0].PCIeGroup = gpuai.MaxGPUs + 1
	r.refuse(&UpdateDevices{Node: "a", Incarnation: inc, Devices: placed.Devices}, gpuai.InvalidSpec)
}
