package agent

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network"
	"github.com/gpuai/gpuai/agent/network/netspace"
	"github.com/gpuai/gpuai/agent/network/nettest"
)

// member makes a task a gang's member that runs gpuai-probe.
func member(image string, rank uint32, argv ...string) func(*gpuai.Assignment) {
	return func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.Task.Command = append([]string{"gpuai-probe"}, argv...)
		a.GroupName, a.Lease.Job, a.Lease.Task = "main", gpuai.JobID{7}, rank
		a.Gang = &gpuai.GangInfo{Rank: rank, Size: 2, Min: 2, Max: 2, MasterAddr: "10.1.1.1", MasterPort: 7000, NodeIPs: []string{"10.1.1.1", "10.1.1.1"}}
	}
}

func (f *fixture) output(lease gpuai.Token, stream string) string {
	f.t.Helper()
	return string(f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: stream, Limit: 10_000}).Data)
}

// done checks that a task ended well and wrote what it should.
func (f *fixture) done(lease gpuai.Token, wants ...string) {
	f.t.Helper()
	r, out := f.last(lease), f.output(lease, "stdout")
	if r.State != gpuai.ReportDone {
		f.t.Errorf("reported %+v\n%s%s", r, out, f.output(lease, "stderr"))
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			f.t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// The members of a gang in sandboxes find one another by what their environment
// says, also one that joins when another agent has taken over.
func TestGangInSandboxesMeets(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	gang := network.Gang{Job: gpuai.JobID{7}, Group: "main"}
	first, second := gang.Addr(0).String(), gang.Addr(1).String()
	f := newFixture(t)
	a := f.run(boxed(t, dir))
	zero := f.grant(testNode, member(image, 0, "listen", "$MASTER_ADDR:$MASTER_PORT"))
	f.running(zero)
	a.stop(t)
	a = f.run(boxed(t, dir))
	one := f.grant(testNode, member(image, 1, "dial", "$MASTER_ADDR:$MASTER_PORT"))
	f.done(one, `answered "you are `+second)
	f.done(zero, "asked by "+second)
	f.done(f.grant(testNode, member(image, 1, "say")), "env GPUAI_NODE_IPS="+first+","+second+"\n", "env MASTER_ADDR="+first+"\n",
		"env MASTER_PORT=7000\n", "env NCCL_SOCKET_IFNAME=gang0\n", "env GLOO_SOCKET_IFNAME=gang0\n")
	checkClosed(t, a.Agent, zero)
	spread := f.grant(testNode, func(a *gpuai.Assignment) {
		member(image, 0, "say")(a)
		a.Gang.NodeIPs, a.Gang.Spread = []string{"10.1.1.1", "10.1.1.2"}, true
	})
	if r := f.last(spread); r.State != gpuai.ReportLost || !strings.Contains(r.Reason, "on several nodes") {
		t.Errorf("a gang of two nodes: %+v", r)
	}
	alone := f.grant(testNode, func(a *gpuai.Assignment) {
		member(image, 0, "say")(a)
		a.Gang.Max, a.Gang.NodeIPs = 1, []string{"10.1.1.1"}
	})
	f.done(alone, "env GPUAI_NODE_IPS=127.0.0.1\n", "env MASTER_ADDR=127.0.0.1\n")
}

// A task has the network that it asks for and its node's operator allows, and
// leaves nothing of it.
func TestNetworkOfASandbox(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	w := nettest.New(t)
	f := newFixture(t)
	closed := boxed(t, dir)
	open := func(c *Config) {
		closed(c)
		c.Sandbox.Network = NetworkConfig{Egress: Egress{Internet: true}, DNS: []netip.Addr{netip.MustParseAddr(nettest.Resolver)}, Space: w.Host}
	}
	a := f.run(open)
	hellos := f.hellos(testNode)
	if l := hellos[len(hellos)-1].Node.Labels; l[gpuai.LabelEgress] != gpuai.LabelYes || l[gpuai.LabelGangNetwork] != gpuai.LabelYes || l[gpuai.LabelHostNetwork] != "" {
		t.Errorf("labels %v", l)
	}
	task := func(n gpuai.Network, argv ...string) func(*gpuai.Assignment) {
		return func(a *gpuai.Assignment) {
			inImage(image)(a)
			a.Task.Command, a.Network = append([]string{"gpuai-probe"}, argv...), n
		}
	}
	f.done(f.grant(testNode, task(gpuai.NetworkEgress, "dial", nettest.Internet+":80")), `answered "`+nettest.Uplink)
	if r := f.last(f.grant(testNode, task(gpuai.NetworkHost, "say"))); r.State != gpuai.ReportFailed || !strings.Contains(r.Reason, "--network-host") {
		t.Errorf("the host's: %+v", r)
	}
	// One that runs over a restart has it throughout; a policy that is taken back
	// holds for it too.
	stays := f.grant(testNode, task(gpuai.NetworkEgress, "family"))
	f.running(stays)
	a.stop(t)
	if got := tasksLinks(t, w); len(got) != 1 {
		t.Errorf("while no agent is there: %v", got)
	}
	a = f.run(func(c *Config) { open(c); c.Sandbox.Network.Egress = Egress{} })
	if r := f.last(f.grant(testNode, task(gpuai.NetworkEgress, "say"))); r.State != gpuai.ReportFailed || !strings.Contains(r.Reason, "--network-egress") {
		t.Errorf("egress that is not allowed: %+v", r)
	}
	if got := tasksLinks(t, w); len(got) != 1 {
		t.Errorf("with the next agent: %v", got)
	}
	f.revoke(testNode, stays)
	f.last(stays)
	eventually(t, "the task's link to go", func() bool { return len(tasksLinks(t, w)) == 0 })
	checkClosed(t, a.Agent, stays)
	a.stop(t)
	f.run(func(c *Config) { open(c); c.Sandbox.Network.Egress = Egress{} })
	if out := inWorld(t, w, "nft", "list", "ruleset"); out != "" {
		t.Errorf("rules are left:\n%s", out)
	}
}

// inWorld runs a program in the world's host.
func inWorld(t *testing.T, w *nettest.World, argv ...string) (out string) {
	t.Helper()
	err := netspace.Within(w.Host, func() error {
		b, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		out = string(b)
		return err
	})
	if err != nil {
		t.Fatal(errors.Join(err, errors.New(out)))
	}
	return out
}

// tasksLinks are the links of tasks in the world's host.
func tasksLinks(t *testing.T, w *nettest.World) (out []string) {
	t.Helper()
	for line := range strings.Lines(inWorld(t, w, "ip", "-o", "link")) {
		if strings.Contains(line, ": gpn") {
			out = append(out, line)
		}
	}
	return out
}
