package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// CreateTenant creates a tenant, for whom jobs may then be submitted that ask
// that their tenant exists, and access tokens be made. A tenant of which there
// were jobs before, or that was given a weight, keeps its usage and its weight.
//
// Rejected: InvalidSpec, also below LevelTenants; Conflict when it was created
// before; TooLarge or RateLimited at a limit of the machine.
type CreateTenant struct {
	Tenant gpuai.TenantID
	Name   string // for people
}

// Append appends the encoded command to dst.
func (c *CreateTenant) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeCreateTenant, env, func(b []byte) []byte {
		return wire.AppendStr(wire.AppendStr(b, string(c.Tenant)), c.Name)
	})
}

func (m *Machine) applyCreateTenant(r *wire.Reader) Result {
	tenant, name := r.Str(), r.Str()
	switch {
	case m.Level() < LevelTenants || r.Done() != nil || !gpuai.ValidName(tenant) || !gpuai.ValidNote(name):
		return malformed
	case m.tenantExists([]byte(tenant)):
		return rejected(gpuai.Conflict, "this tenant exists already")
	}
	return m.openAccount(tenant, name)
}
