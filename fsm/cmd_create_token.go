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
// second. A token that is over is forgotten after a day.
//
// Rejected: InvalidSpec, also below LevelTenants; NotFound when the tenant was
// not created; Conflict when the ID is taken, or First was said before;
// TooLarge or RateLimited at a limit of the machine, of the tenant, or of the logins
// of a user, of a contributor or of all: see TokenRoom.
type CreateToken struct {
	ID          gpuai.AccessTokenID
	Hash        [32]byte
	Tenant      gpuai.TenantID
	Contributor gpuai.ContributorID
	Scopes      gpuai.Scopes
	TTL         gpuai.Duration
	Description string
	// User and Login are of who logged in: the name, for people, and the SHA-256 of
	// the provider's name, a zero byte and the user's there. Both or none.
	User  string
	Login [32]byte
	First bool
	// ByOperator says that an operator asks.
	ByOperator bool
}

// Append appends the encoded command to dst.
func (c *CreateToken) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeCreateToken, env, func(b []byte) []byte {
		b = append(append(b, c.ID[:]...), c.Hash[:]...)
		b = wire.AppendStr(wire.AppendStr(b, string(c.Tenant)), string(c.Contributor))
		b = append(append(b, c.Login[:]...), uint8(c.Scopes), bool8(c.First)|bool8(c.ByOperator)<<1)
		b = put64(b, int64(c.TTL))
		return wire.AppendStr(wire.AppendStr(b, c.Description), c.User)
	})
}

func readCreateToken(r *wire.Reader) (c CreateToken, ok bool) {
	copy(c.ID[:], r.Bytes(len(c.ID)))
	copy(c.Hash[:], r.Bytes(len(c.Hash)))
	c.Tenant, c.Contributor = gpuai.TenantID(r.Str()), gpuai.ContributorID(r.Str())
	copy(c.Login[:], r.Bytes(len(c.Login)))
	c.Scopes = gpuai.Scopes(r.U8())
	flags := r.U8()
	c.First, c.ByOperator = flags&1 != 0, flags&2 != 0
	c.TTL = gpuai.Duration(r.I64())
	c.Description, c.User = r.Str(), r.Str()
	return c, r.Done() == nil && flags <= 3
}

func (c *CreateToken) valid() bool {
	ask := gpuai.TokenRequest{Tenant: c.Tenant, Contributor: c.Contributor, Scopes: c.Scopes.List(), TTL: c.TTL, Description: c.Description}
	return !c.ID.IsZero() && c.Scopes.Within(gpuai.AllScopes) && len(ask.Validate()) == 0 && gpuai.ValidNote(c.User) &&
		(c.User == "") == (c.Login == [32]byte{}) &&
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
	if res := m.TokenRoom(&c); res.Code != gpuai.OK {
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
		id: c.ID, hash: c.Hash, login: c.Login, tenant: m.number(string(c.Tenant)), contributor: m.number(string(c.Contributor)),
		scopes: c.Scopes, created: m.now.time, wall: m.now.wall, expires: m.now.time.Add(c.TTL),
	}, tokenTexts(c.Description, c.User))
	return Result{}
}

// number returns the string number of a name; 0 for "".
func (m *Machine) number(name string) uint32 {
	if name == "" {
		return 0
	}
	return m.strs.Intern(name)
}
