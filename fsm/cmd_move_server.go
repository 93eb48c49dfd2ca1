package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// MoveServer records the address of a server whose address is no longer that of
// Raft's configuration.
//
// Rejected: InvalidSpec for what is no server's name and for an address of 0 or
// more than MaxAddress bytes, Conflict below LevelServers, TooLarge when
// MaxServers are remembered or there is no room for another name.
type MoveServer struct {
	Server  gpuai.ServerID
	Address string // host:port of its Raft port
}

// Append appends the encoded command to dst.
func (c *MoveServer) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeMoveServer, env, func(b []byte) []byte {
		return wire.AppendStr(wire.AppendStr(b, string(c.Server)), c.Address)
	})
}

func (m *Machine) applyMoveServer(r *wire.Reader) Result {
	id, addr := r.Str(), r.Str()
	switch {
	case r.Done() != nil:
		return malformed
	case addr == "" || len(addr) > MaxAddress:
		return rejected(gpuai.InvalidSpec, "a server's address has 1 to 262 bytes")
	case m.strs.Len()+1 >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region holds as many distinct names as it can")
	}
	slot, bad := m.serverFor(id)
	if bad.Code != gpuai.OK {
		return bad
	}
	m.servers.Mut(slot).addr = m.strs.Intern(addr)
	m.out.Servers = true
	return Result{}
}
