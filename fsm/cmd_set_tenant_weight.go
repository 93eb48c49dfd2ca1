package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetTenantWeight says how much of the devices a tenant is to have beside
// others of the same priority: in proportion to its weight, 1 to
// gpuai.MaxTenantWeight. A tenant to whom none was given has DefaultWeight.
//
// Rejected: InvalidSpec, TooLarge when the region knows too many tenants,
// PreconditionFailed below LevelPlacement.
type SetTenantWeight struct {
	Tenant gpuai.TenantID
	Weight uint32
}

// Append appends the encoded command to dst.
func (c *SetTenantWeight) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetTenantWeight, env, func(b []byte) []byte {
		return le.AppendUint32(wire.AppendStr(b, string(c.Tenant)), c.Weight)
	})
}

func (m *Machine) applySetTenantWeight(r *wire.Reader) Result {
	tenant, weight := r.Str(), r.U32()
	switch {
	case r.Done() != nil || !gpuai.ValidName(tenant):
		return malformed
	case m.Level() < LevelPlacement:
		return rejected(gpuai.PreconditionFailed, "the region is below feature level 3, which brings weights of tenants: upgrade all its servers")
	case weight < 1 || weight > gpuai.MaxTenantWeight:
		return rejected(gpuai.InvalidSpec, "a weight is between 1 and 10000")
	case m.strs.Len() >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	name := m.strs.Intern(tenant)
	slot, ok := m.tenantFor(name)
	if !ok {
		return rejected(gpuai.TooLarge, "the region knows its maximum of tenants")
	}
	m.tenants.Mut(slot).weight = weight
	m.turns.touchTenant(name)
	return Result{}
}
