package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// RevokeIdentity makes every certificate of a node or a server void, at once and
// for good. It can join again with a token that names it. Who has never registered
// is forgotten IdentityKept later, when none of its certificates can be good.
//
// Rejected: InvalidSpec, also below LevelTenants; NotFound for who has neither
// joined nor registered, TooLarge at MaxIdentities, PreconditionFailed in a
// region without an authority. Revoking again changes nothing.
type RevokeIdentity struct{ Identity gpuai.Identity }

// Append appends the encoded command to dst.
func (c *RevokeIdentity) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeRevokeIdentity, env, func(b []byte) []byte {
		return wire.AppendStr(append(b, uint8(c.Identity.Kind)), c.Identity.Name)
	})
}

func (m *Machine) applyRevokeIdentity(r *wire.Reader) Result {
	var id gpuai.Identity
	id.Kind = gpuai.IdentityKind(r.U8())
	id.Name = r.Str()
	switch {
	case r.Done() != nil:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	case !m.HasAuthority():
		return rejected(gpuai.PreconditionFailed, "this region has no authority: nobody in it has a certificate")
	case !id.Valid():
		return rejected(gpuai.InvalidSpec, "an identity is node/NAME or server/NAME")
	case !m.met(id):
		return rejected(gpuai.NotFound, "nobody of this name has joined the region")
	}
	slot, bad := m.identityFor(id)
	if bad.Code != gpuai.OK {
		return bad
	}
	if i := m.identities.Mut(slot); !i.revoked {
		i.revoked, i.before, i.since = true, m.stamp(), m.now.time
		m.forgetIdentity(slot)
	}
	m.out.Trust = true
	return Result{}
}

// met reports whether the region knows anybody of this name: who joined behind a
// backup that was restored has registered, at most.
func (m *Machine) met(id gpuai.Identity) bool {
	if m.Standing(id).Known {
		return true
	}
	_, registered := m.nodeSlot(gpuai.NodeID(id.Name))
	return registered && id.Kind == gpuai.IdentityNode
}
