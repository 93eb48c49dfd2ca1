package liveness

import (
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// crowd is a region of nodes with one device each, of which the first ones
// hold a lease.
type crowd struct {
	*world
	refs []fsm.NodeRef
}

// newCrowd registers nodes and gives so many of them a lease of a TTL.
func newCrowd(t *testing.T, nodes, leased int, ttl gpuai.Duration) *crowd {
	c := &crowd{world: newWorld(t)}
	for i := range nodes {
		c.refs = append(c.refs, c.register(nodeID(i), "a"))
	}
	spec := &gpuai.JobSpec{Name: "crowd", LeaseTTL: ttl, Groups: []gpuai.Group{{
		Count: uint32(leased), Restart: gpuai.Restart{On: []gpuai.RestartCause{}},
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}}, Task: gpuai.TaskSpec{Command: []string{"x"}},
	}}}
	spec.Defaults()
	c.do(&fsm.SubmitJob{ID: gpuai.JobID{15: 1, 14: 2}, Spec: spec})
	for c.live() < leased {
		c.do(&fsm.Tick{}) // what one entry's budget did not reach
	}
	return c
}

// holders returns the nodes with a lease, and the others.
func (c *crowd) holders() (with, without []fsm.NodeRef) {
	for _, r := range c.refs {
		if _, n := c.m.LeaseTTLs(r.Node, r.Incarnation); n > 0 {
			with = append(with, r)
		} else {
			without = append(without, r)
		}
	}
	return with, without
}

// pass lets time pass; the nodes of alive beat every 4 s, a sixteenth of them
// in each window.
func (c *crowd) pass(d Time, alive []fsm.NodeRef) (all Decision) {
	for end, k := c.now+d, 0; c.now < end; k++ {
		c.now = min(c.now+second/4, end)
		part := k % 16
		c.beat(alive[len(alive)*part/16 : len(alive)*(part+1)/16]...)
		one := c.window()
		all.Expire = append(all.Expire, one.Expire...)
		all.Suspect = append(all.Suspect, one.Suspect...)
		all.Tripped = all.Tripped || one.Tripped
		all.Open, all.Held = one.Open, one.Held
	}
	return all
}

// TestCase26ReconnectAfterFailover: 20,000 nodes are gone from a leader, and
// come back to the next one over a whole TTL. Nobody is declared dead, and
// nobody's lease ends. (BenchmarkScan and BenchmarkBeats show what 100,000
// cost.)
func TestCase26ReconnectAfterFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("beats of 20,000 nodes over a whole TTL take too long for a short run")
	}
	const nodes = 20_000
	c := newCrowd(t, nodes, nodes, 20_000)
	c.pass(4*second, c.refs)
	for range 2 { // the second leader's clock begins anew as well
		c.now += 11 * second // nobody leads, and nobody is heard
		c.elect()
		if d := c.pass(11*second, c.refs[:1]); len(d.Expire)+len(d.Suspect) > 0 {
			t.Fatalf("the new leader heard nobody for 11 s: %d expiries, %d suspects", len(d.Expire), len(d.Suspect))
		}
	}
	// They come back, an eightieth in each window.
	expired := 0
	for k := range 80 {
		c.now += second / 4
		for back := k; back >= 0; back -= 16 { // each beats again after 4 s
			c.beat(c.refs[nodes*back/80 : nodes*(back+1)/80]...)
		}
		d := c.window()
		expired += len(d.Expire)
		if d.Tripped {
			// More than 5 % came later than 12 s: what follows is held back.
			t.Logf("the breaker opened in window %d", k)
		}
	}
	if expired > 0 || c.live() != nodes {
		t.Errorf("%d expiries, %d of %d leases are left", expired, c.live(), nodes)
	}
	if d := c.pass(8*second, c.refs); len(d.Expire) > 0 || c.m.Counts().Nodes[gpuai.NodeReady] != nodes {
		t.Errorf("after all came back: %d expiries, nodes by state %v", len(d.Expire), c.m.Counts().Nodes)
	}
}

// TestCase27ThirtyPercentGone: 30 % of 10,000 nodes vanish at once. The breaker
// opens before the first of their leases may end, holds all of them for its
// pause and longer than that where their TTL is longer, lets 0.1 % of the nodes
// a second go, and closes when the others are back.
func TestCase27ThirtyPercentGone(t *testing.T) {
	for _, ttl := range []gpuai.Duration{20_000, 60_000} {
		t.Run(ttl.String(), func(t *testing.T) {
			const nodes, gone = 10_000, 3_000
			c := newCrowd(t, nodes, nodes/2, ttl)
			with, without := c.holders()
			lost := with[:gone]
			alive := append(append([]fsm.NodeRef{}, with[gone:]...), without...)
			c.pass(8*second, c.refs)
			d := c.pass(14*second, alive)
			if !d.Tripped || !d.Open || len(d.Expire) > 0 {
				t.Fatalf("after 14 s: tripped %v, open %v, %d expiries", d.Tripped, d.Open, len(d.Expire))
			}
			// It opened 8 to 13 s after the first fell silent: the pause counts
			// from then, the TTL with the grace from a node's last beat.
			held := max(8*second+30*second, Time(ttl+5_000)*millisecond-4*second) - 15*second
			if d := c.pass(held, alive); !d.Open || len(d.Expire) > 0 {
				t.Fatalf("before any may end: open %v, %d expiries", d.Open, len(d.Expire))
			}
			c.pass(12*second, alive) // they are not all due at once
			if d := c.pass(60*second, alive); len(d.Expire) < 500 || len(d.Expire) > 610 || !d.Open {
				t.Fatalf("%d expiries in a minute, want 10 a second; open %v", len(d.Expire), d.Open)
			}
			if d := c.pass(8*second, append(alive, lost...)); d.Open || d.Held > 0 {
				t.Errorf("all are back: open %v, %d held", d.Open, d.Held)
			}
			if n := c.m.Counts(); n.Nodes[gpuai.NodeReady] != nodes || c.live() < nodes/2-800 {
				t.Errorf("nodes by state %v, %d leases", n.Nodes, c.live())
			}
		})
	}
}

// TestCase28FlappingNode: a node that falls silent again and again is
// quarantined, each time for twice as long, and its beats do not let it in
// before.
func TestCase28FlappingNode(t *testing.T) {
	c := newCrowd(t, 1, 0, 20_000)
	node := c.refs
	p := c.policy()
	state := func() gpuai.NodeState {
		_, _, s, _ := c.m.NodeSlot(node[0].Node)
		return s
	}
	flap := func() { // it must have something to lose
		c.lease(20_000)
		c.pass(26*second, nil)
		if s := state(); s != gpuai.NodeSilent {
			t.Fatalf("it is %s after 26 s of silence", s)
		}
		c.tick()
		c.pass(4*second, node)
	}
	for round := range 3 {
		for i := uint32(0); i < p.FlapLimit; i++ {
			if flap(); state() != gpuai.NodeReady {
				t.Fatalf("round %d: it is %s after return %d", round, state(), i+1)
			}
		}
		flap()
		if s := state(); s != gpuai.NodeQuarantined {
			t.Fatalf("round %d: it is %s after one return too many", round, s)
		}
		back := Time(p.FlapBackoff<<round) * millisecond
		c.pass(back-8*second, node)
		if c.tick(); state() != gpuai.NodeQuarantined {
			t.Fatalf("round %d: it is %s before its back-off of %d s is over", round, state(), back/second)
		}
		c.pass(10*second, node)
		c.tick()
		c.pass(5*second, node)
		if s := state(); s != gpuai.NodeReady {
			t.Fatalf("round %d: it is %s after its back-off", round, s)
		}
	}
}

// tick lets the machine's own deadlines come, as a leader does.
func (c *crowd) tick() { c.do(&fsm.Tick{}) }

// TestCase28BadDevice: one bad device is quarantined and its node goes on.
func TestCase28BadDevice(t *testing.T) {
	c := newCrowd(t, 0, 0, 20_000)
	spec := gpuai.NodeSpec{ID: "pair", Address: "a", CPU: 64_000, Memory: 1 << 40}
	for _, id := range []gpuai.DeviceID{"d0", "d1"} {
		spec.Devices = append(spec.Devices, gpuai.Device{ID: id, Vendor: "sim", Model: "X", Memory: 1 << 30})
	}
	res := c.do(&fsm.RegisterNode{Spec: spec, BootID: "boot", Nonce: "a"})
	node := []fsm.NodeRef{{Node: "pair", Incarnation: res.Incarnation}}
	c.lease(20_000)
	ls, _ := c.m.Leases(0, 10, true)
	bad := ls[0].Devices[0]
	c.do(&fsm.ReportLease{Node: "pair", Report: gpuai.Report{
		Lease: ls[0].ID, Seq: 1, Incarnation: res.Incarnation, State: gpuai.ReportUnkillable, Unclean: ls[0].Devices,
	}})
	c.pass(2*second, node)
	c.tick()
	n, ok := c.m.Node("pair")
	if !ok || n.State != gpuai.NodeReady {
		t.Fatalf("its node is %s", n.State)
	}
	for _, d := range n.Devices {
		if want := d.ID == bad; (d.Health == gpuai.DeviceQuarantined) != want {
			t.Errorf("device %s is %s; the bad one is %s", d.ID, d.Health, bad)
		}
	}
	for range 2 {
		c.lease(20_000)
	}
	if ls, _ = c.m.Leases(0, 10, true); len(ls) != 1 || ls[0].Devices[0] == bad {
		t.Errorf("the leases now: %+v", ls)
	}
}
