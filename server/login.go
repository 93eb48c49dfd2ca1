package server

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
)

// loginTTL is for how long the token of a login is good: a working day.
const loginTTL = 12 * gpuai.Hour

// LoginInfo implements httpd.Access.
func (s *Server) LoginInfo() gpuai.LoginInfo {
	info := gpuai.LoginInfo{Issuer: s.cfg.OIDCIssuer, ClientID: s.cfg.OIDCClientID}
	if info.Issuer != "" {
		info.Scopes = []string{"openid", "profile", "email", "groups"}
	}
	return info
}

// Login implements httpd.Access: who the provider says logged in gets a token of
// what the role mappings give.
func (s *Server) Login(ctx context.Context, r gpuai.LoginRequest) (out gpuai.NewAccessToken, err error) {
	if s.provider == nil {
		return out, gpuai.NewError(gpuai.PreconditionFailed, "this region has no identity provider: use a token that an operator or your tenant's administrator has made")
	}
	user, err := s.provider.Verify(ctx, r.IDToken)
	switch {
	case errors.Is(err, identity.ErrIDToken):
		s.log.Info("a login was refused", "error", err)
		return out, gpuai.NewError(gpuai.Unauthenticated, "the identity provider did not make this ID token for this region, or it is too old: log in again with gpuai login")
	case err != nil:
		s.log.Warn("the identity provider cannot be asked", "error", err)
		return out, &gpuai.Error{Code: gpuai.NoLeader, Detail: "the identity provider cannot be asked now: retry", RetryAfter: 5 * gpuai.Second}
	}
	given, err := roleOf(user, s.Roles(), r.Tenant)
	if err != nil {
		return out, err
	}
	id, err := s.loginID(r.IDToken, &given)
	if err != nil {
		return out, err
	}
	ctx = httpd.WithPrincipal(ctx, &gpuai.Principal{Actor: user.Actor(), From: httpd.PrincipalOf(ctx).From})
	out, err = s.createToken(ctx, fsm.CreateToken{
		ID: id, Tenant: given.Tenant, Contributor: given.Contributor, Scopes: gpuai.ScopesOf(given.Scopes...), TTL: loginTTL,
		Description: "login", User: user.Actor(), Login: user.Hash(),
	})
	if isCode(err, gpuai.Conflict) { // another server was faster
		err = errExchanged
	}
	return out, err
}

// roleOf adds up what mappings give a user: in the tenant that is asked for, or in
// the only one.
func roleOf(user *identity.User, all []gpuai.RoleMapping, tenant gpuai.TenantID) (out gpuai.RoleMapping, err error) {
	var tenants []gpuai.TenantID
	claims := claimsOf(all)
	all = slices.DeleteFunc(all, func(m gpuai.RoleMapping) bool { return !user.Has(m.Claim, m.Value) })
	for i := range all {
		if t := all[i].Tenant; t != "" && !slices.Contains(tenants, t) {
			tenants = append(tenants, t)
		}
	}
	slices.SortFunc(tenants, func(a, b gpuai.TenantID) int { return cmp.Compare(a, b) })
	switch {
	case len(all) == 0:
		return out, gpuai.NewError(gpuai.Forbidden, user.Label()+" has logged in, and no role of this region is mapped to what the provider says of them: an operator maps one with gpuai operator role set"+unusable(user, claims))
	case tenant == "" && len(tenants) > 1:
		return out, gpuai.NewError(gpuai.InvalidSpec, user.Label()+" is in several tenants: choose one with --tenant, of "+joinTenants(tenants))
	case tenant != "" && !slices.Contains(tenants, tenant):
		return out, gpuai.NewError(gpuai.Forbidden, user.Label()+" has no role in tenant "+string(tenant))
	case tenant == "" && len(tenants) == 1:
		tenant = tenants[0]
	}
	var scopes gpuai.Scopes
	for i := range all {
		m := &all[i]
		if m.Tenant != "" && m.Tenant != tenant || m.Contributor != "" && out.Contributor != "" && m.Contributor != out.Contributor {
			continue
		}
		scopes |= gpuai.ScopesOf(m.Scopes...)
		out.Contributor = cmp.Or(out.Contributor, m.Contributor)
	}
	out.Tenant, out.Scopes = tenant, scopes.List()
	return out, nil
}

// claimsOf returns the claims that mappings name, in order.
func claimsOf(all []gpuai.RoleMapping) (claims []string) {
	for i := range all {
		claims = append(claims, all[i].Claim)
	}
	slices.Sort(claims)
	return slices.Compact(claims)
}

// maxUnusable bounds the claims of which one answer says why they are of no use.
const maxUnusable = 4

// unusable says which claims the user has that mappings name, and that are nothing
// that one could map.
func unusable(user *identity.User, claims []string) string {
	var why []string
	for _, c := range claims {
		if w := user.Unusable(c); w != "" && len(why) < maxUnusable {
			why = append(why, "the claim "+c+" "+w)
		}
	}
	if len(why) == 0 {
		return ""
	}
	return "; " + strings.Join(why, "; ") + " (a claim that is mapped is a text, a list of texts, true or false)"
}

func joinTenants(all []gpuai.TenantID) string {
	var out []string
	for _, t := range all {
		out = append(out, string(t))
	}
	return strings.Join(out, ", ")
}
