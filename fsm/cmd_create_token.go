package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// CreateToken makes an access token. Whoever proposes it has minted its ID and
// text; the machine is told the text's SHA-256 only.
//
// The first one that says First is the region's first operator token, and
// creates the tenant gpuai.DefaultTenant if it was not created; there is no
// second. Making a token forgets some that have been over for a day.
//
// Rejected: InvalidSpec, also below LevelTenants; NotFound when the tenant was
// not created; Conflict when the ID is taken, or First was said before;
// TooLarge or RateLimited at a limit of the machine or of the tenant.
type CreateToken struct {
	ID          gpuai.AccessTokenID
	Hash        [32]byte
	Tenant      gpuai.TenantID
	Contributor gpuai.ContributorID
	Scopes      gpuai.Scopes
	TTL         gpuai.Duration
	Description string
	User        string
	First       bool
}

// Append appends the encoded command to dst.
func (c *CreateToken) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeCreateToken, env, func(b []byte) []byte {
		b = append(append(b, c.ID[:]...), c.Hash[:]...)
		b = wire.AppendStr(wire.AppendStr(b, string(c.Tenant)), string(c.Contributor))
		b = append(b, uint8(c.Scopes), bool8(c.First))
		b = put64(b, int64(c.TTL))
		return wire.AppendStr(wire.AppendStr(b, c.Description), c.User)
	})
}

func readCreateToken(r *wire.Reader) (c CreateToken, ok bool) {
	copy(c.ID[:], r.Bytes(len(c.ID)))
	copy(c.Hash[:], r.Bytes(len(c.Hash)))
	c.Tenant, c.Contributor = gpuai.TenantID(r.Str()), gpuai.ContributorID(r.Str())
	c.Scopes = gpuai.Scopes(r.U8())
	first := r.U8()
	c.First = first == 1
	c.TTL = gpuai.Duration(r.I64())
	c.Description, c.User = r.Str(), r.Str()
	return c, r.Done() == nil && first <= 1
}

func (c *CreateToken) valid() bool {
	ask := gpuai.TokenRequest{Tenant: c.Tenant, Contributor: c.Contributor, Scopes: c.Scopes.List(), TTL: c.TTL, Description: c.Description}
	return !c.ID.IsZero() && c.Scopes.Within(gpuai.AllScopes) && len(ask.Validate()) == 0 && gpuai.ValidNote(c.User) &&
		(!c.First || c.Scopes.Has(gpuai.ScopeOperator))
}

func (m *Machine) applyCreateToken(r *wire.Reader) Result {
	c, ok := readCreateToken(r)
	if m.Level() < LevelTenants || !ok || !c.valid() {
		return malformed
	}
	if _, taken := m.accessTokenSlot(c.ID); taken {
		return rejected(gpuai.Conflict, "this token ID is taken")
	}
	if c.First && m.access.Get().bootstrapped {
		return rejected(gpuai.Conflict, "the region's first operator token was made before: an operator makes further ones with gpuai token create; if it was lost, see gpuai operator bootstrap --recover")
	}
	if c.Tenant != "" && !m.HasTenant(c.Tenant) {
		return rejected(gpuai.NotFound, "this tenant does not exist: an operator creates it with gpuai tenant create")
	}
	if res := m.roomForToken(&c); res.Code != gpuai.OK {
		m.takeBack()
		return res
	}
	if c.First {
		m.access.Mut().bootstrapped = true
		if !m.HasTenant(gpuai.DefaultTenant) {
			if res := m.openAccount(string(gpuai.DefaultTenant), ""); res.Code != gpuai.OK {
				m.takeBack()
				return res
			}
		}
	}
	m.addToken(tokenRec{
		id: c.ID, hash: c.Hash, tenant: m.number(string(c.Tenant)), contributor: m.number(string(c.Contributor)),
		scopes: c.Scopes, created: m.now.time, wall: m.now.wall, expires: m.now.time.Add(c.TTL),
	}, tokenTexts(c.Description, c.User))
	return Result{}
}

// roomForToken forgets tokens that are over and reports whether there is room for
// one more.
func (m *Machine) roomForToken(c *CreateToken) Result {
	m.sweepAccess(sweepTokens)
	full := func() bool {
		if m.tokenSlots.Len() >= MaxAccessTokens {
			return true
		}
		n, ok := m.strs.Find(string(c.Tenant))
		return ok && c.Tenant != "" && n < m.tokensOf.Len() && *m.tokensOf.Get(n) >= MaxTenantTokens
	}
	if full() {
		m.access.Mut().sweep = 0
		m.sweepAccess(MaxAccessTokens)
	}
	switch {
	case full():
		return rejected(gpuai.RateLimited, "the region, or the tenant, has its maximum of access tokens: revoke some; those that are over are forgotten after a day")
	case m.strs.Len()+1 >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	case !m.blobs.Room(len(c.Description)+len(c.User)+2*5, MaxBlocks):
		return rejected(gpuai.RateLimited, "the region's memory for texts is full: retry later")
	}
	return Result{}
}

// number returns the string number of a name; 0 for "".
func (m *Machine) number(name string) uint32 {
	if name == "" {
		return 0
	}
	return m.strs.Intern(name)
}
