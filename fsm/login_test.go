package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// aLogin is the token of the n-th login, by a user.
func aLogin(n int, user byte) *CreateToken {
	c := aToken(n)
	c.User, c.Login = fmt.Sprint("ann", n), [32]byte{user}
	return c
}

// made applies commands in large entries, of which each must succeed.
func (r *region) made(cmds []Command) {
	r.t.Helper()
	for len(cmds) > 0 {
		n := min(512, len(cmds))
		for i, res := range r.apply(cmds[:n]...).Results {
			if res.Code != gpuai.OK {
				r.t.Fatalf("%d: %+v", i, res)
			}
		}
		cmds = cmds[n:]
	}
}

// Of logins beside one another, in one entry, as many as there is room for are
// let in: by the user, whatever they are called now, and by the contributor.
func TestLoginsAreBounded(t *testing.T) {
	r := accessRegion(t)
	var cmds []Command
	for n := range MaxUserLogins + 2 {
		cmds = append(cmds, aLogin(n, 1))
	}
	let := func(out *Output) (n int) {
		for _, res := range out.Results {
			switch res.Code {
			case gpuai.OK:
				n++
			case gpuai.RateLimited:
			default:
				t.Fatalf("%+v", res)
			}
		}
		return n
	}
	if n := let(r.apply(cmds...)); n != MaxUserLogins {
		t.Fatalf("%d logins of one user were let in", n)
	}
	r.do(aLogin(1000, 2))
	r.do(aToken(1001))
	for _, m := range []*Machine{r.m.Fork(), restored(t, r.m)} {
		if res := m.TokenRoom(aLogin(1002, 1)); res.Code != gpuai.RateLimited {
			t.Errorf("one more of the user: %+v", res)
		}
		if res := m.TokenRoom(aLogin(1002, 2)); res.Code != gpuai.OK {
			t.Errorf("one more of another: %+v", res)
		}
	}
	cmds = nil
	for n := range MaxContributorLogins + 2 {
		c := aLogin(2000+n, byte(3+n%250))
		c.Tenant, c.Contributor, c.Scopes = "", "carol", gpuai.ScopesOf(gpuai.ScopeContributor)
		cmds = append(cmds, c)
	}
	r.made(cmds[:MaxContributorLogins-2])
	if n := let(r.apply(cmds[MaxContributorLogins-2:]...)); n != 2 {
		t.Fatalf("%d more logins of one contributor were let in, where there was room for 2", n)
	}
	r.wait(gpuai.Hour + tokensKept + expiryStep)
	if n := r.m.tokenSlots.Len(); n != 0 || *r.m.logins.all.Get() != 0 || r.m.logins.userSlots.Len() != 0 {
		t.Errorf("%d tokens are kept, %d of logins", n, *r.m.logins.all.Get())
	}
	r.do(aLogin(3000, 1))
}

// The last places of a tenant are no login's, those of the region operators'.
func TestLoginsLeaveRoomForOthers(t *testing.T) {
	r := accessRegion(t)
	r.check = false
	login := func(n int) *CreateToken {
		c := aLogin(n, 0)
		le.PutUint32(c.Login[:], uint32(n+1))
		return c
	}
	var cmds []Command
	for n := range MaxTenantTokens - MadeTokens {
		cmds = append(cmds, login(n))
	}
	r.made(cmds)
	r.refuse(login(9000), gpuai.RateLimited)
	cmds = nil
	for n := range MadeTokens {
		cmds = append(cmds, aToken(10_000+n))
	}
	r.made(cmds)
	r.refuse(aToken(9000), gpuai.RateLimited)
	if err := r.m.Check(); err != nil {
		t.Fatal(err)
	}
	more := login(9000)
	more.Tenant = "beta"
	full := r.m.Fork()
	*full.logins.all.Mut() = MaxLogins
	if res := full.TokenRoom(more); res.Code != gpuai.RateLimited {
		t.Errorf("a login beside as many as there may be: %+v", res)
	}
	for s := full.tokenSlots.Len(); s < MaxAccessTokens-OperatorTokens; s++ {
		full.tokenSlots.Take(s)
	}
	made := aToken(9000)
	made.Tenant = "beta"
	if res := full.TokenRoom(made); res.Code != gpuai.RateLimited {
		t.Errorf("a tenant's token in the operators' places: %+v", res)
	}
	if made.ByOperator = true; full.TokenRoom(made).Code != gpuai.OK {
		t.Errorf("an operator's: %+v", full.TokenRoom(made))
	}
	// All are over at once: they go in parts, each of a quarter of an entry's work.
	r.time = r.time.Add(gpuai.Hour + tokensKept + expiryStep)
	entries := 0
	for ; r.m.tokenSlots.Len() > 0; entries++ {
		before := r.m.tokenSlots.Len()
		r.apply(&Tick{})
		if gone := before - r.m.tokenSlots.Len(); gone > WorkPerEntry/4/workEnd || gone == 0 {
			t.Fatalf("entry %d forgot %d tokens", entries, gone)
		}
	}
	if entries != 2 {
		t.Errorf("they went in %d entries", entries)
	}
	if err := r.m.Check(); err != nil {
		t.Error(err)
	}
}
