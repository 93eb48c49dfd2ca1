package raft

import (
	"maps"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// records is what the machine remembers of servers, in a form that is read
// without its lock: whoever dials or answers must not wait for Apply.
type records struct {
	addr    store.AddressBook // of those whose address is not the configuration's
	retired map[gpuai.ServerID]bool
}

// noteServers takes over what the machine remembers of servers. It is called by
// hraft's goroutine for the machine, or with it held up.
func (r *replica) noteServers(m *fsm.Machine) {
	x := &records{addr: make(store.AddressBook), retired: make(map[gpuai.ServerID]bool)}
	for _, s := range m.Servers() {
		if s.Address != "" {
			x.addr[s.ID] = s.Address
		}
		if s.Retired {
			x.retired[s.ID] = true
		}
	}
	before := r.servers.Swap(x)
	if r.moved != nil && (before == nil || !maps.Equal(before.addr, x.addr)) && len(x.addr) > 0 {
		r.moved(x.addr)
	}
}

// moved makes addresses durable that are in the state only: where all servers
// start at once there is no state before they have found each other.
func (n *Node) moved(book store.AddressBook) {
	if err := n.cfg.Dir.SetAddresses(book); err != nil {
		n.cfg.Logger.Error("the servers' addresses were not recorded: after a restart this server may not find those that moved", "error", err)
	}
}

// recorded returns a server's address by the state, or by the last start's.
func (n *Node) recorded(id gpuai.ServerID) string {
	if x := n.replica.servers.Load(); x != nil && x.addr[id] != "" {
		return x.addr[id]
	}
	return n.atStart[id]
}

// retired reports whether a server was removed, or is being removed.
func (n *Node) retired(id gpuai.ServerID) bool {
	x := n.replica.servers.Load()
	return x != nil && x.retired[id]
}

// membersIn returns a configuration's members, at the addresses that they have
// told since. The library's own are never changed: it changes them under the
// feet of the goroutines that replicate.
func (n *Node) membersIn(conf hraft.Configuration) []Member {
	out := membersOf(conf)
	for i := range out {
		if addr := n.recorded(out[i].ID); addr != "" {
			out[i].Addr = addr
		}
	}
	return out
}
