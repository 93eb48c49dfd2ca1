package raft

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// newcomer starts a server that is no member, with an empty directory.
func (c *cluster) newcomer(id gpuai.ServerID) *Node {
	c.t.Helper()
	if _, ok := c.path[id]; !ok {
		c.path[id] = c.t.TempDir()
		c.addr[id] = string(id) + ":7"
	}
	was := c.tweak
	defer func() { c.tweak = was }()
	c.tweak = func(cfg *Config) { cfg.Peers, cfg.Bootstrap = nil, false }
	c.start(id)
	if !slices.Contains(c.ids, id) {
		c.ids = append(c.ids, id)
	}
	return c.nodes[id]
}

// raise brings the cluster to the newest feature level, as its server does.
func (c *cluster) raise() {
	c.t.Helper()
	err := c.retry(func(l *Node) error { return l.command(context.Background(), &fsm.SetFeatureLevel{Level: fsm.MaxLevel}) })
	if err != nil && code(err) != gpuai.Conflict { // it is there
		c.t.Fatal(err)
	}
}

// retry asks whoever leads until the answer is none of "ask another one".
func (c *cluster) retry(f func(leader *Node) error) error {
	c.t.Helper()
	var err error
	until(c.t, "a leader answers", func() bool {
		err = f(c.leader())
		return !errors.Is(err, ErrHandedOver) && code(err) != gpuai.NoLeader && code(err) != gpuai.OutcomeUnknown
	})
	return err
}

// join has a newcomer admitted, and waits until it is caught up.
func (c *cluster) join(id gpuai.ServerID) *Node {
	c.t.Helper()
	n := c.newcomer(id)
	if err := c.retry(func(l *Node) error { return l.Admit(context.Background(), n.JoinRequest()) }); err != nil {
		c.t.Fatalf("admit %s: %v", id, err)
	}
	if err := n.Adopt(c.leader().cluster()); err != nil {
		c.t.Fatal(err)
	}
	at := c.leader().AppliedIndex()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.WaitApplied(ctx, at); err != nil {
		c.t.Fatalf("server %s does not catch up: %v", id, err)
	}
	return n
}

func (c *cluster) promote(id gpuai.ServerID) {
	c.t.Helper()
	if err := c.retry(func(l *Node) error { return l.PromoteMember(context.Background(), id) }); err != nil {
		c.t.Fatalf("promote %s: %v", id, err)
	}
}

func (c *cluster) remove(id gpuai.ServerID) {
	c.t.Helper()
	err := c.retry(func(l *Node) error { return l.RemoveMember(context.Background(), id) })
	if err != nil && code(err) != gpuai.NotFound { // a repeated removal
		c.t.Fatalf("remove %s: %v", id, err)
	}
}

// without returns the IDs that are not given.
func without(all []gpuai.ServerID, ids ...gpuai.ServerID) (out []gpuai.ServerID) {
	for _, id := range all {
		if !slices.Contains(ids, id) {
			out = append(out, id)
		}
	}
	return out
}

// drop ends a server that is no member any more.
func (c *cluster) drop(id gpuai.ServerID) {
	c.t.Helper()
	c.kill(id)
	c.ids = without(c.ids, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.damage, id)
}

func (c *cluster) voters() (out []gpuai.ServerID) {
	for _, m := range c.leader().Members() {
		if m.Voter {
			out = append(out, m.ID)
		}
	}
	slices.Sort(out)
	return out
}

// TestCase15ReplaceAllServers replaces each of three servers under load, the
// leader too, and loses nothing that was acknowledged.
func TestCase15ReplaceAllServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		c.leader()
		running := make(chan []*Node, 1)
		show := func() {
			var all []*Node
			for _, n := range c.nodes {
				all = append(all, n)
			}
			select {
			case <-running:
			default:
			}
			running <- all
		}
		show()
		s := submitUntilStopped(3, 5*time.Millisecond, func() []*Node {
			all := <-running
			select {
			case running <- all:
			default: // a newer list is there
			}
			return all
		})
		for _, swap := range [][2]gpuai.ServerID{{"a", "d"}, {"b", "e"}, {"c", "f"}} {
			at := s.count()
			c.join(swap[1])
			show()
			c.promote(swap[1])
			c.remove(swap[0])
			c.drop(swap[0])
			show()
			until(t, "jobs are acknowledged", func() bool { return s.count() > at+50 })
		}
		acked, codes := s.finish()
		t.Logf("%d acknowledged, codes %s", len(acked), codes)
		if got := c.voters(); !slices.Equal(got, []gpuai.ServerID{"d", "e", "f"}) {
			t.Errorf("the voters are %v", got)
		}
		c.converged()
		for _, n := range c.nodes {
			for _, id := range acked {
				if !c.has(n, id) {
					t.Fatalf("server %s lost the acknowledged job %s", n.cfg.ID, id)
				}
			}
		}
	})
}

// TestCase15RemovedServerCannotDisturb removes a server that cannot hear of it.
func TestCase15RemovedServerCannotDisturb(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		gone := c.follower().cfg.ID
		c.mem.isolate(c.addr[gone])
		c.submit(c.leader())
		c.remove(gone)
		term, leader := c.leader().Status().Term, c.leader()
		time.Sleep(time.Minute) // virtual: it wants to be elected
		c.mem.isolate()
		until(t, "the removed server notices", func() bool { return c.damaged()[gone] != nil })
		if err := c.damaged()[gone]; !strings.Contains(err.Error(), "was removed from its region") || !strings.Contains(err.Error(), "rejoin --wipe") {
			t.Errorf("it says %v", err)
		}
		time.Sleep(time.Minute) // virtual: it goes on nevertheless
		if now := c.leader(); now != leader || now.Status().Term != term {
			t.Errorf("the removed server made %s lead term %d, it was %s in %d", now.cfg.ID, now.Status().Term, leader.cfg.ID, term)
		}
		c.drop(gone)
		if err := c.leader().AddMember(t.Context(), gone, "new:7"); code(err) != gpuai.Conflict || !strings.Contains(err.Error(), "never used again") {
			t.Errorf("its ID is given again: %v", err)
		}
		// Its directory, wiped, and its old ID: it would vote twice.
		c.path[gone] = t.TempDir()
		n := c.newcomer(gone)
		if err := c.leader().Admit(t.Context(), n.JoinRequest()); code(err) != gpuai.Forbidden || !strings.Contains(err.Error(), "was removed") {
			t.Errorf("it is admitted: %v", err)
		}
		c.drop(gone)
	})
}

// TestCase15RemovedServerHears removes a server that follows: it stops.
func TestCase15RemovedServerHears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		gone := c.follower().cfg.ID
		c.remove(gone)
		until(t, "the removed server notices", func() bool { return c.damaged()[gone] != nil })
		c.drop(gone)
		c.converged()
	})
}

// TestCase15RemoveTheLeader hands over first.
func TestCase15RemoveTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		old := c.leader()
		if err := old.RemoveMember(t.Context(), old.cfg.ID); !errors.Is(err, ErrHandedOver) {
			t.Fatalf("the leader's removal of itself: %v", err)
		}
		began := time.Now()
		until(t, "another leads", func() bool {
			for _, n := range c.nodes {
				if n != old && n.IsLeader() {
					return true
				}
			}
			return false
		})
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("the hand-over took %s", d)
		}
		c.remove(old.cfg.ID)
		c.drop(old.cfg.ID)
		if got := c.voters(); len(got) != 2 || slices.Contains(got, old.cfg.ID) {
			t.Errorf("the voters are %v", got)
		}
		c.converged()
	})
}

// TestDangerousChangesAreRefused asks for what would end the region.
func TestDangerousChangesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		l := c.leader()
		down := c.follower().cfg.ID
		up := without(c.ids, down, l.cfg.ID)[0]
		c.kill(down)
		ctx := t.Context()
		for _, k := range []struct {
			name string
			err  error
			code gpuai.Code
			want string
		}{
			{"no majority left", l.RemoveMember(ctx, up), gpuai.Conflict, "would leave 2 voters of which 1 can be reached"},
			{"a stranger", l.RemoveMember(ctx, "z"), gpuai.NotFound, "no server z is a member"},
			{"promote a stranger", l.PromoteMember(ctx, "z"), gpuai.NotFound, "no server z is a member"},
			{"another's address", l.AddMember(ctx, "z", c.addr[up]), gpuai.Conflict, "is that of server " + string(up)},
			{"no address", l.AddMember(ctx, "z", "z"), gpuai.InvalidSpec, "must be host:port"},
			{"an address of everybody", l.AddMember(ctx, "z", "0.0.0.0:7"), gpuai.InvalidSpec, "--advertise"},
			{"no name", l.AddMember(ctx, "Z z", "z:7"), gpuai.InvalidSpec, "a server's ID is"},
			{"an ID in use", l.AddMember(ctx, up, "z:7"), gpuai.Conflict, "is a member already"},
			{"on a follower", c.nodes[up].AddMember(ctx, "z", "z:7"), gpuai.NoLeader, "does not lead"},
		} {
			if code(k.err) != k.code || !strings.Contains(k.err.Error(), k.want) {
				t.Errorf("%s: %v, want %s with %q", k.name, k.err, k.code, k.want)
			}
		}
		c.start(down)
		c.converged()
	})
}

func TestTheLastVoterStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 1)
		c.raise()
		c.join("b")
		err := c.leader().RemoveMember(t.Context(), "a")
		if code(err) != gpuai.Conflict || !strings.Contains(err.Error(), "last voter") {
			t.Errorf("got %v", err)
		}
		c.promote("b")
		c.remove("a")
		c.drop("a")
		c.submit(c.leader())
	})
}

// TestCase14AddressChange restarts servers at new addresses that nobody was
// told: first one, then all.
func TestCase14AddressChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		c.leader()
		c.tweak = func(cfg *Config) { cfg.Peers, cfg.Bootstrap = nil, false } // the log knows them
		moved := c.follower().cfg.ID
		c.kill(moved)
		c.addr[moved] = "moved:7"
		c.start(moved)
		n := c.nodes[moved]
		if got := n.JoinRequest(); got.Address != "moved:7" || !got.Holds || got.Cluster == "" {
			t.Fatalf("it says of itself %+v", got)
		}
		at, _ := c.submit(c.leader())
		if err := c.retry(func(l *Node) error { return l.Admit(t.Context(), n.JoinRequest()) }); err != nil {
			t.Fatalf("the new address: %v", err)
		}
		if err := n.WaitApplied(t.Context(), at.Index); err != nil {
			t.Fatal(err)
		}
		if m, _ := c.leader().Member(moved); m.Addr != "moved:7" || !m.Voter {
			t.Errorf("recorded is %+v", m)
		}
		// One of the same name elsewhere, while this one answers.
		twin := n.JoinRequest()
		twin.Address = "twin:7"
		if err := c.leader().Admit(t.Context(), twin); code(err) != gpuai.Conflict || !strings.Contains(err.Error(), "two servers must not have one ID") {
			t.Errorf("a second server of one ID: %v", err)
		}
		c.converged()
	})
}

// TestCase14AllAddressesChange tells each other by hints, as announcements do.
func TestCase14AllAddressesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		c.leader()
		c.kill(c.ids...)
		for _, id := range c.ids {
			c.addr[id] = string(id) + "-moved:7"
		}
		c.start(c.ids...) // Peers name the new addresses
		for _, id := range c.ids {
			n := c.nodes[id]
			if err := c.retry(func(l *Node) error { return l.Admit(t.Context(), n.JoinRequest()) }); err != nil {
				t.Fatalf("the new address of %s: %v", id, err)
			}
		}
		c.converged()
		// A new server may have the address that another one began with.
		c.path["d"], c.addr["d"] = t.TempDir(), "a:7"
		c.join("d")
		c.promote("d")
		if m, _ := c.leader().Member("d"); m.Addr != "a:7" || !m.Voter {
			t.Errorf("the new server is %+v", m)
		}
		c.converged()
		c.kill(c.ids...) // no snapshot: no state before they have found each other
		c.tweak = func(cfg *Config) { cfg.Peers, cfg.Bootstrap = nil, false }
		c.start(c.ids...)
		c.converged()
	})
}

// TestCase14JoinsAreRefusedByCluster cross-wires two clusters.
func TestCase14JoinsAreRefusedByCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, other := startVirtual(t, 1), newVirtual(t, 1)
		other.mem = c.mem
		other.ids, other.path = []gpuai.ServerID{"x"}, map[gpuai.ServerID]string{"x": t.TempDir()}
		other.addr = map[gpuai.ServerID]string{"x": "x:7"}
		other.start("x")
		x, a := other.leader(), c.leader()
		if x.cluster() == a.cluster() {
			t.Fatal("two clusters have one ID")
		}
		if _, err := x.DialJoin(t.Context(), c.addr["a"]); err == nil || !strings.Contains(err.Error(), "this server belongs to cluster "+string(a.cluster())) {
			t.Errorf("the handshake: %v", err)
		}
		for _, k := range []struct {
			name   string
			change func(*JoinRequest)
			want   string
		}{
			{"another cluster's", func(*JoinRequest) {}, "belongs to cluster " + string(x.cluster())},
			{"another region's", func(r *JoinRequest) { r.Cluster, r.Region = "", "mars" }, "is of region mars"},
			{"an old build", func(r *JoinRequest) { r.Cluster, r.Level = "", 0 }, "run a newer version"},
			{"a voter's ID, empty", func(r *JoinRequest) { r.Cluster, r.Server, r.Holds = "", "a", false }, "could vote twice"},
			{"a part of the log, no member", func(r *JoinRequest) { r.Cluster, r.Server, r.Holds = a.cluster(), "y", true }, "is no member any more"},
		} {
			r := x.JoinRequest()
			k.change(&r)
			if err := a.Admit(t.Context(), r); code(err) != gpuai.Forbidden || !strings.Contains(err.Error(), k.want) {
				t.Errorf("%s: %v, want %q", k.name, err, k.want)
			}
		}
		if got := a.Members(); len(got) != 1 {
			t.Errorf("the members are %+v", got)
		}
		other.kill("x")
	})
}

// TestANonvoterDoesNotCount kills the non-voter and one of three voters.
func TestANonvoterDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.raise()
		c.join("d")
		m, _ := c.leader().Member("d")
		if m.Voter {
			t.Fatal("it votes at once")
		}
		down := without(c.voters(), c.leader().cfg.ID)[0]
		c.kill(down, "d")
		c.submit(c.leader())
		if st := c.leader().Status(); len(st.Members) != 4 {
			t.Errorf("the members are %+v", st.Members)
		}
		c.start(down)
		c.newcomer("d")
		c.converged()
	})
}
