package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetRole maps a claim's value to scopes, in place of what it was mapped to for
// the same tenant and contributor; no scopes remove the mapping. It holds for
// those who log in from now on.
//
// Rejected: InvalidSpec, also below LevelTenants; NotFound when the tenant was not
// created, or no such mapping is there to remove; TooLarge or RateLimited at a
// limit of the machine.
type SetRole struct{ Mapping gpuai.RoleMapping }

// Append appends the encoded command to dst.
func (c *SetRole) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetRole, env, func(b []byte) []byte {
		r := &c.Mapping
		b = wire.AppendStr(wire.AppendStr(b, r.Claim), r.Value)
		b = wire.AppendStr(wire.AppendStr(b, string(r.Tenant)), string(r.Contributor))
		return append(b, uint8(gpuai.ScopesOf(r.Scopes...)))
	})
}

func readSetRole(r *wire.Reader) (c SetRole, ok bool) {
	c.Mapping = gpuai.RoleMapping{Claim: r.Str(), Value: r.Str(), Tenant: gpuai.TenantID(r.Str()), Contributor: gpuai.ContributorID(r.Str())}
	scopes := gpuai.Scopes(r.U8())
	c.Mapping.Scopes = scopes.List()
	return c, r.Done() == nil && scopes.Within(gpuai.AllScopes)
}

func (m *Machine) applySetRole(r *wire.Reader) Result {
	c, ok := readSetRole(r)
	x := &c.Mapping
	if m.Level() < LevelTenants || !ok || len(x.Validate()) > 0 {
		return malformed
	}
	texts := roleTexts(x.Claim, x.Value)
	slot, found := m.findRole(texts, string(x.Tenant), string(x.Contributor))
	switch {
	case len(x.Scopes) == 0 && !found:
		return rejected(gpuai.NotFound, "there is no such mapping")
	case len(x.Scopes) == 0:
		m.blobs.Free(uint32(m.roles.Get(slot).text))
		*m.roles.Mut(slot) = roleRec{}
		m.roleSlots.Free(slot)
		return Result{}
	case found:
		m.roles.Mut(slot).scopes = gpuai.ScopesOf(x.Scopes...)
		return Result{}
	case x.Tenant != "" && !m.HasTenant(x.Tenant):
		return rejected(gpuai.NotFound, "this tenant does not exist: an operator creates it with gpuai tenant create")
	case m.roleSlots.Len() >= MaxRoles:
		return rejected(gpuai.TooLarge, "the region has its maximum of role mappings")
	case m.strs.Len() >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	case !m.blobs.Room(len(texts), MaxBlocks):
		return rejected(gpuai.RateLimited, "the region's memory for texts is full: retry later")
	}
	slot, _ = m.roleSlots.Alloc()
	m.roles.Put(slot, roleRec{
		tenant: m.number(string(x.Tenant)), contributor: m.number(string(x.Contributor)),
		scopes: gpuai.ScopesOf(x.Scopes...), text: ref(m.blobs.Put(texts)), textHash: hashOf(texts),
	})
	return Result{}
}
