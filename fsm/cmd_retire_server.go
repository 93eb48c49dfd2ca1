package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// RetireServer remembers for ever that a server is being removed from the
// region: its ID is given to no other, since a server that comes back under its
// old ID with an empty directory could vote twice. It is applied before Raft's
// configuration changes, so that no removal is without it.
//
// Rejected: InvalidSpec for what is no server's name, Conflict below
// LevelServers, TooLarge when MaxServers are remembered. Retiring a server again
// changes nothing.
type RetireServer struct{ Server gpuai.ServerID }

// Append appends the encoded command to dst.
func (c *RetireServer) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeRetireServer, env, func(b []byte) []byte { return wire.AppendStr(b, string(c.Server)) })
}

func (m *Machine) applyRetireServer(r *wire.Reader) Result {
	id := r.Str()
	if r.Done() != nil {
		return malformed
	}
	slot, bad := m.serverFor(id)
	if bad.Code != gpuai.OK {
		return bad
	}
	m.servers.Mut(slot).retired = true
	m.noteMet(gpuai.Identity{Kind: gpuai.IdentityServer, Name: id})
	m.out.Servers = true
	return Result{}
}
