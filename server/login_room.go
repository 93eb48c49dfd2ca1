package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

const (
	// maxUserLogins bounds the tokens that are kept of one user's logins, those that
	// are over for less than a day too; maxContributorLogins those of all users of a
	// contributor, which has no bound of its own in the machine.
	maxUserLogins        = 256
	maxContributorLogins = 1_024
	// operatorTokens are the last of the region's tokens, which operators may make
	// only, and tenantTokens the last of a tenant's, which no login may take.
	operatorTokens = 1_024
	tenantTokens   = 256
)

// loginID is the ID of the token for which an ID token is exchanged. It is made of
// what the provider has signed, so the same ID token is good once: its access
// token is known for longer than it is good itself. (The text of an ID token does
// not do here: its signature can be written in more than one way.)
func (s *Server) loginID(idToken string, given *gpuai.RoleMapping) (id gpuai.AccessTokenID, err error) {
	_, rest, _ := strings.Cut(idToken, ".")
	payload, _, _ := strings.Cut(rest, ".")
	claims, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return id, gpuai.NewError(gpuai.Unauthenticated, "the ID token is malformed: log in again with gpuai login")
	}
	h := sha256.New()
	for _, part := range [...]string{string(given.Tenant), string(given.Contributor), string(claims)} {
		sum := sha256.Sum256([]byte(part))
		h.Write(sum[:])
	}
	copy(id[:], h.Sum(nil))
	known := false
	s.node.View(func(m *fsm.Machine) { _, known = m.AccessToken(id) })
	if known {
		return id, gpuai.NewError(gpuai.Unauthenticated, "this ID token was exchanged for a token before, and is good once: log in again with gpuai login")
	}
	return id, nil
}

// roomForToken leaves the last places in the table of tokens to operators, so that
// those who fill it cannot keep them from mending that, and bounds how many of
// them the logins of one user take. Beside others that ask at once it may let a
// few more in: the machine's own bounds hold.
func (s *Server) roomForToken(ctx context.Context, c *fsm.CreateToken) error {
	if c.First || httpd.PrincipalOf(ctx).Operator() {
		return nil
	}
	var all, ofTenant uint32
	s.node.View(func(m *fsm.Machine) { all, ofTenant = m.CountTokens(c.Tenant) })
	if all >= fsm.MaxAccessTokens-operatorTokens {
		return &gpuai.Error{Code: gpuai.RateLimited, RetryAfter: gpuai.Minute, Detail: "the region has nearly its maximum of access tokens, and the last ones are the operators': revoke some; those that are over are forgotten after a day"}
	}
	if c.User == "" {
		return nil
	}
	if c.Tenant != "" && ofTenant >= fsm.MaxTenantTokens-tenantTokens {
		return &gpuai.Error{Code: gpuai.RateLimited, RetryAfter: gpuai.Minute, Detail: "the tenant has nearly its maximum of access tokens, and the last ones are for those that its administrators make: revoke some; those that are over are forgotten after a day"}
	}
	user, contributor := s.logins(c)
	if user >= maxUserLogins || c.Contributor != "" && contributor >= maxContributorLogins {
		return &gpuai.Error{Code: gpuai.RateLimited, RetryAfter: gpuai.Minute, Detail: c.User + ", or all users of the contributor, have logged in too often since a day before: use a token that you have until it expires"}
	}
	return nil
}

// logins counts the tokens that are kept of logins of a user, and of a contributor.
func (s *Server) logins(c *fsm.CreateToken) (user, contributor int) {
	for at := uint32(0); ; {
		var page []gpuai.AccessToken
		s.node.View(func(m *fsm.Machine) { page, at = m.AccessTokens(at, fsm.MaxScan, c.Tenant) })
		for i := range page {
			switch t := &page[i]; {
			case t.User == "":
				continue
			case t.User == c.User:
				user++
				fallthrough
			default:
				if t.Contributor == c.Contributor {
					contributor++
				}
			}
		}
		if at == 0 {
			return user, contributor
		}
	}
}
