package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// RevokeToken ends an access token, for good and at once. It is idempotent.
//
// Rejected: InvalidSpec, also below LevelTenants; NotFound when there is no such
// token, or when Tenant is given and it is another's.
type RevokeToken struct {
	ID     gpuai.AccessTokenID
	Tenant gpuai.TenantID // "" is any
}

// Append appends the encoded command to dst.
func (c *RevokeToken) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeRevokeToken, env, func(b []byte) []byte {
		return wire.AppendStr(append(b, c.ID[:]...), string(c.Tenant))
	})
}

func (m *Machine) applyRevokeToken(r *wire.Reader) Result {
	var id gpuai.AccessTokenID
	copy(id[:], r.Bytes(len(id)))
	tenant := r.Str()
	if m.Level() < LevelTenants || r.Done() != nil {
		return malformed
	}
	slot, ok := m.accessTokenSlot(id)
	if !ok || tenant != "" && m.text(m.tokens.Get(slot).tenant) != tenant {
		return rejected(gpuai.NotFound, "no access token has this ID")
	}
	if !m.tokens.Get(slot).revoked {
		t := m.tokens.Mut(slot)
		t.revoked, t.ended = true, m.now.time
		m.forgetToken(slot)
	}
	return Result{}
}
