package sandbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network"
	"github.com/gpuai/gpuai/agent/network/netspace"
	"github.com/gpuai/gpuai/agent/network/nettest"
	"github.com/gpuai/gpuai/agent/probe"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// A netBench is a node whose tasks have egress, in a world of its own.
type netBench struct {
	*bench
	world *nettest.World
	node  *network.Node
	tasks []*os.File // their networks
}

func newNetBench(t *testing.T) *netBench {
	t.Helper()
	n := &netBench{bench: newBench(t), world: nettest.New(t)}
	e, err := network.ParseEgress("allow")
	if err == nil {
		c := network.Config{Egress: e, DNS: []netip.Addr{netip.MustParseAddr(nettest.Resolver)}, Space: n.world.Host}
		n.node, err = network.Open(c, n.dir, slog.New(slog.DiscardHandler))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.node.Close() })
	return n
}

// online gives a sandbox egress, for the next start.
func (n *netBench) online(lease gpuai.Token, t *sandbox.Task) {
	n.t.Helper()
	user, space, err := watchdog.Namespaces(watchdogPath, t.IDs.First, t.IDs.Size)
	if err == nil {
		n.t.Cleanup(func() { user.Close(); space.Close() })
		_, err = n.node.Join(&network.Task{Lease: lease.String(), Space: space, Slot: t.IDs.Slot(), Egress: true})
	}
	if err != nil {
		n.t.Fatal(err)
	}
	t.UserNS, t.NetNS = filepath.Join(n.run, "user"), filepath.Join(n.run, "net")
	path := func(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
	n.pins, n.tasks = map[string]string{"user": path(user), "net": path(space)}, append(n.tasks, space)
}

// beside has a task with the next address, which answers.
func (n *netBench) beside(t *sandbox.Task) {
	n.t.Helper()
	space := n.world.Space()
	if _, err := n.node.Join(&network.Task{Lease: "beside", Space: space, Slot: t.IDs.Slot() + 1, Egress: true}); err != nil {
		n.t.Fatal(err)
	}
	n.tasks = append(n.tasks, space)
	n.world.Listen(space, ":80")
}

// Case 35: a sandbox that reaches the internet has nothing else more than one
// that does not.
func TestCase35EscapesAreDeniedWithEgress(t *testing.T) {
	b := newNetBench(t)
	task := b.task(1, "egress", "+an address of the internet="+nettest.Internet+":80", "+its resolver="+nettest.Resolver+":53",
		"a host of the LAN="+nettest.LANOther+":80", "a neighbour with a public address="+nettest.NextDoor+":80",
		"the host's address in the LAN="+nettest.LANHost+":80", "the host's public address="+nettest.Uplink+":80")
	b.beside(task)
	b.online(1, task)
	b.start(1, task)
	end := b.ended(1)
	table, seen := closed(t, b.log(1, "stdout"))
	var rows strings.Builder
	for row := range strings.Lines(table) { // the others are as without
		if strings.HasPrefix(row, "| network ") {
			rows.WriteString(row)
		}
	}
	checkTable(t, "egress probes", rows.String())
	if end.Code != 0 || seen < 60 {
		t.Errorf("%d probes, exit code %d (%s)\n%s", seen, end.Code, end.Reason, b.log(1, "stderr"))
	}
}

// The suite must be able to fail here too: without a filter its probes are open.
func TestCase35ProbesSeeAnOpenNetwork(t *testing.T) {
	b := newNetBench(t)
	task := b.task(2, "egress", "the host's address in the LAN="+nettest.LANHost+":80")
	b.beside(task)
	b.online(2, task)
	b.world.Unguard()
	for _, space := range b.tasks {
		b.world.Untell(space)
	}
	// Without rules, and without a way to where nobody answers.
	err := netspace.Within(b.world.Host, func() error {
		return errors.Join(exec.Command("nft", "flush", "ruleset").Run(), exec.Command("ip", "route", "del", "default").Run())
	})
	if err != nil {
		t.Fatal(err)
	}
	b.start(2, task)
	b.ended(2)
	open := openOnes(b.log(2, "stdout"))
	for _, want := range []string{"the host's end of the link, HTTP", "the next task's address", "the host's address in the LAN"} {
		if !slices.Contains(open, want) {
			t.Errorf("%q is not seen to be open, only %q", want, open)
		}
	}
}

func openOnes(out string) (open []string) {
	for line := range strings.Lines(out) {
		var r probe.Result
		if err := json.Unmarshal([]byte(line), &r); err == nil && r.Open {
			open = append(open, r.Name)
		}
	}
	return open
}

// A sandbox in the host's network is one in all else.
func TestCase35HostNetworkIsAllThatIsOpen(t *testing.T) {
	b := newBench(t)
	task := b.task(3)
	task.HostNet = true
	b.start(3, task)
	end := b.ended(3)
	out := b.log(3, "stdout")
	for line := range strings.Lines(out) {
		var r probe.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if r.Open && r.Control != "network" {
			t.Errorf("%s: %s is open: got %s", r.Control, r.Name, r.Got)
		}
	}
	if open := openOnes(out); !slices.Contains(open, "the network's interfaces") || end.Code != 3 {
		t.Errorf("exit code %d (%s), open: %q\n%s", end.Code, end.Reason, open, b.log(3, "stderr"))
	}
}
