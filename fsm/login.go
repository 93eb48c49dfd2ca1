package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// logins count the tokens that were made for who logged in. All of it is derived
// from the tokens, and no order in it decides anything.
type logins struct {
	users         *mem.Table[loginRec]
	userSlots     *mem.Slots
	userByHash    *mem.Hash
	byContributor *mem.Table[uint32] // by string number
	all           mem.Var[uint32]
}

// A loginRec is how many tokens of one user are kept.
type loginRec struct {
	user [32]byte
	n    uint32
}

func newLogins(s *mem.Space) logins {
	return logins{
		users: mem.NewTable[loginRec](s, 5), userSlots: mem.NewSlots(s), userByHash: mem.NewHash(s),
		byContributor: mem.NewTable[uint32](s, 10), all: mem.NewVar[uint32](s, 0),
	}
}

func (l *logins) fork(s *mem.Space) logins {
	return logins{
		users: l.users.Fork(s), userSlots: l.userSlots.Fork(s), userByHash: l.userByHash.Fork(s),
		byContributor: l.byContributor.Fork(s), all: l.all.Fork(s),
	}
}

func hashLogin(user *[32]byte) uint64 { return mem.HashBytes(39, user[:]) }

func (l *logins) find(user *[32]byte) (uint32, bool) {
	return l.userByHash.Find(hashLogin(user), func(s uint32) bool { return l.users.Get(s).user == *user })
}

// of returns how many tokens of a user's logins are kept.
func (l *logins) of(user *[32]byte) uint32 {
	if s, ok := l.find(user); ok {
		return l.users.Get(s).n
	}
	return 0
}

// ofContributor is of for all users of a contributor.
func (l *logins) ofContributor(name uint32) uint32 {
	if name < l.byContributor.Len() {
		return *l.byContributor.Get(name)
	}
	return 0
}

// add counts a token that is new; one that nobody has logged in for is not counted.
func (l *logins) add(r *tokenRec) {
	if !r.ofLogin() {
		return
	}
	s, ok := l.find(&r.login)
	if !ok {
		s, _ = l.userSlots.Alloc() // no more than tokens, which have had their room
		l.users.Put(s, loginRec{user: r.login})
		l.userByHash.Insert(hashLogin(&r.login), s)
	}
	l.users.Mut(s).n++
	l.byContributor.Grow(r.contributor + 1)
	*l.byContributor.Mut(r.contributor)++
	*l.all.Mut()++
}

// remove counts a token that goes.
func (l *logins) remove(r *tokenRec) {
	if !r.ofLogin() {
		return
	}
	*l.byContributor.Mut(r.contributor)--
	*l.all.Mut()--
	s, _ := l.find(&r.login)
	u := l.users.Mut(s)
	if u.n--; u.n == 0 {
		l.userByHash.Delete(hashLogin(&r.login), s)
		*u = loginRec{}
		l.userSlots.Free(s)
	}
}

// ofLogin reports whether a token was made for who logged in.
func (r *tokenRec) ofLogin() bool { return r.login != [32]byte{} }

// TokenRoom returns what a CreateToken would be rejected with now for want of
// room. It changes nothing. The last places of the region are operators', so that
// those who fill it cannot keep them from mending that, and the last of a tenant
// are no login's.
func (m *Machine) TokenRoom(c *CreateToken) Result {
	all, ofTenant := m.tokenSlots.Len(), uint32(0)
	if n, ok := m.strs.Find(string(c.Tenant)); ok && c.Tenant != "" && n < m.tokensOf.Len() {
		ofTenant = *m.tokensOf.Get(n)
	}
	switch {
	case all >= MaxAccessTokens:
		return rejected(gpuai.RateLimited, "the region has its maximum of access tokens: revoke some; those that are over are forgotten after a day")
	case all >= MaxAccessTokens-OperatorTokens && !c.First && !c.ByOperator:
		return rejected(gpuai.RateLimited, "the region has nearly its maximum of access tokens, and the last ones are the operators': revoke some; those that are over are forgotten after a day")
	case ofTenant >= MaxTenantTokens:
		return rejected(gpuai.RateLimited, "the tenant has its maximum of access tokens: revoke some; those that are over are forgotten after a day")
	case m.strs.Len()+1 >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	case !m.blobs.Room(len(c.Description)+len(c.User)+2*5, MaxBlocks):
		return rejected(gpuai.RateLimited, "the region's memory for texts is full: retry later")
	}
	if c.User == "" {
		return Result{}
	}
	return m.loginRoom(c, ofTenant)
}

// loginRoom is TokenRoom for what holds for logins only.
func (m *Machine) loginRoom(c *CreateToken, ofTenant uint32) Result {
	contributor, _ := m.strs.Find(string(c.Contributor))
	switch {
	case ofTenant >= MaxTenantTokens-MadeTokens:
		return rejected(gpuai.RateLimited, "the tenant has nearly its maximum of access tokens, and the last ones are for those that its administrators make: revoke some; those that are over are forgotten after a day")
	case *m.logins.all.Get() >= MaxLogins:
		return rejected(gpuai.RateLimited, "the region has its maximum of access tokens of logins: revoke some; those that are over are forgotten after a day")
	case m.logins.of(&c.Login) >= MaxUserLogins:
		return rejected(gpuai.RateLimited, c.User+" has logged in too often since a day before: use a token that you have until it expires")
	case contributor != 0 && m.logins.ofContributor(contributor) >= MaxContributorLogins:
		return rejected(gpuai.RateLimited, "all users of the contributor have logged in too often since a day before: use a token that you have until it expires")
	}
	return Result{}
}

// checkLogins counts the tokens of logins anew.
func (m *Machine) checkLogins() error {
	users, contributors, all := map[[32]byte]uint32{}, map[uint32]uint32{}, uint32(0)
	for s, ok := m.tokenSlots.Next(0); ok; s, ok = m.tokenSlots.Next(s + 1) {
		if r := m.tokens.Get(s); r.ofLogin() {
			users[r.login]++
			contributors[r.contributor]++
			all++
		}
	}
	l := &m.logins
	if n := *l.all.Get(); n != all || l.userSlots.Len() != uint32(len(users)) {
		return fmt.Errorf("%d access tokens are of logins of %d users, recorded %d of %d", all, len(users), n, l.userSlots.Len())
	}
	for s, ok := l.userSlots.Next(0); ok; s, ok = l.userSlots.Next(s + 1) {
		u := l.users.Get(s)
		if at, ok := l.find(&u.user); !ok || at != s || users[u.user] != u.n {
			return fmt.Errorf("%d access tokens are of a user's logins, recorded %d", users[u.user], u.n)
		}
	}
	for c := range l.byContributor.Len() {
		if n := *l.byContributor.Get(c); n != contributors[c] {
			return fmt.Errorf("%d access tokens are of logins of contributor %d, recorded %d", contributors[c], c, n)
		}
	}
	return nil
}
