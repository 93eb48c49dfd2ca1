package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// LevelServers is the level from which on the machine remembers servers.
const LevelServers uint32 = 2

// MaxAddress bounds a server's address: a DNS name, a colon and a port.
const MaxAddress = 262

// A serverRec is a server of which something is to be remembered that Raft's
// configuration does not hold.
type serverRec struct {
	name    uint32 // string number; 0: forgotten
	addr    uint32 // string number of its address; 0: as in Raft's configuration
	retired bool   // it was removed, or is about to be
}

func (r *serverRec) put(b []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, r.name), r.addr)
	if r.retired {
		return append(b, 1)
	}
	return append(b, 0)
}

func (r *serverRec) get(rd *wire.Reader) {
	r.name, r.addr, r.retired = rd.U32(), rd.U32(), rd.U8() != 0
}

// A ServerRecord is what the region remembers of a server beside Raft's
// configuration.
type ServerRecord struct {
	ID      gpuai.ServerID
	Address string // "": as in Raft's configuration
	Retired bool   // removed, or about to be: the ID is never used again
}

// Servers returns all that is remembered of servers, in the order in which they
// became known.
func (m *Machine) Servers() (out []ServerRecord) {
	for s := range m.servers.Len() {
		r := m.servers.Get(s)
		if r.name == 0 {
			continue
		}
		x := ServerRecord{ID: gpuai.ServerID(m.strs.Get(r.name)), Retired: r.retired}
		if r.addr != 0 {
			x.Address = m.strs.Get(r.addr)
		}
		out = append(out, x)
	}
	return out
}

// retiredServer reports whether a server was removed from the region.
func (m *Machine) retiredServer(id string) bool {
	for s := range m.servers.Len() {
		if r := m.servers.Get(s); r.retired && m.strs.Get(r.name) == id {
			return true
		}
	}
	return false
}

// serverFor returns the record of a server, a new one where there is none, or
// why there can be none.
func (m *Machine) serverFor(id string) (slot uint32, bad Result) {
	if !gpuai.ValidName(id) {
		return 0, rejected(gpuai.InvalidSpec, "a server's ID is 1 to 63 of a-z, 0-9 and '-'")
	}
	if m.Level() < LevelServers {
		return 0, rejected(gpuai.Conflict, "the region's feature level does not know servers yet: upgrade all of them first")
	}
	m.now.work -= workLook * int64(m.servers.Len())
	for s := range m.servers.Len() {
		if r := m.servers.Get(s); r.name != 0 && m.strs.Get(r.name) == id {
			return s, Result{}
		}
	}
	switch {
	case m.servers.Len() >= MaxServers:
		return 0, rejected(gpuai.TooLarge, "the region remembers as many servers as it can")
	case m.strs.Len() >= MaxStrings:
		return 0, rejected(gpuai.TooLarge, "the region holds as many distinct names as it can")
	}
	return m.servers.Append(serverRec{name: m.strs.Intern(id)}), Result{}
}

// forgetServers lets every ID be used again, and no address be known: a
// restored region is another cluster, and no server of the old one can vote in
// it.
func (m *Machine) forgetServers() {
	for s := range m.servers.Len() {
		*m.servers.Mut(s) = serverRec{}
	}
}

func readServers(rd *wire.Reader, count uint32, t *mem.Table[serverRec]) {
	for range count {
		var r serverRec
		r.get(rd)
		if rd.Err() == nil {
			t.Append(r)
		}
	}
}

// checkServers verifies that the remembered servers have names, and one each.
func (m *Machine) checkServers() error {
	if n := m.servers.Len(); n > MaxServers {
		return fmt.Errorf("%d servers are remembered, more than %d", n, MaxServers)
	}
	for s := range m.servers.Len() {
		r := m.servers.Get(s)
		if *r == (serverRec{}) {
			continue
		}
		if r.name == 0 || r.name >= m.strs.Len() || r.addr >= m.strs.Len() {
			return fmt.Errorf("remembered server %d has no name, or no address", s)
		}
		for o := range s {
			if m.servers.Get(o).name == r.name {
				return fmt.Errorf("server %s is remembered twice", m.strs.Get(r.name))
			}
		}
	}
	return nil
}
