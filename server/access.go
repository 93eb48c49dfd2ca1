package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/raft"
)

// secretBytes is the entropy of a token's secret: 160 bits.
const secretBytes = 20

// mintToken makes the ID and the text of an access token.
func mintToken() (id gpuai.AccessTokenID, text string, err error) {
	if _, err = rand.Read(id[:]); err != nil {
		return id, "", fmt.Errorf("mint an access token: %w", err)
	}
	text, err = mintText(id)
	return id, text, err
}

// mintText makes the text of a token.
func mintText(id gpuai.AccessTokenID) (string, error) {
	var secret [secretBytes]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return "", fmt.Errorf("mint an access token: %w", err)
	}
	b := append([]byte(gpuai.AccessTokenPrefix), id.String()...)
	return string(gpuai.AppendBase32(append(b, '_'), secret[:])), nil
}

// CreateTenant implements httpd.Access.
func (s *Server) CreateTenant(ctx context.Context, r gpuai.TenantRequest) (gpuai.TenantShare, error) {
	c := fsm.CreateTenant{Tenant: r.ID, Name: r.Name}
	if _, err := s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, r.ID, ""))); err != nil {
		return gpuai.TenantShare{}, err
	}
	var out gpuai.TenantShare
	s.node.View(func(m *fsm.Machine) { out, _ = m.Tenant(r.ID) })
	return out, nil
}

// accessCommand is command for what a region knows from LevelTenants on.
func (s *Server) accessCommand(ctx context.Context, cmd []byte) (raft.Applied, error) {
	if s.level() < fsm.LevelTenants {
		return raft.Applied{}, errNoTenants
	}
	return s.command(ctx, cmd)
}

// CreateToken implements httpd.Access.
func (s *Server) CreateToken(ctx context.Context, r gpuai.TokenRequest) (gpuai.NewAccessToken, error) {
	return s.createToken(ctx, fsm.CreateToken{
		Tenant: r.Tenant, Contributor: r.Contributor, Scopes: gpuai.ScopesOf(r.Scopes...), TTL: r.TTL, Description: r.Description,
	})
}

// createToken mints a token, also its ID where c has none, and has the leader make
// it, which may be another server.
func (s *Server) createToken(ctx context.Context, c fsm.CreateToken) (out gpuai.NewAccessToken, err error) {
	if c.ID.IsZero() {
		c.ID, out.Text, err = mintToken()
	} else {
		out.Text, err = mintText(c.ID)
	}
	if err != nil {
		return out, err
	}
	c.Hash = sha256.Sum256([]byte(out.Text))
	if s.level() < fsm.LevelTenants {
		return gpuai.NewAccessToken{}, errNoTenants
	}
	c.ByOperator = httpd.PrincipalOf(ctx).Operator()
	if err := s.roomForToken(&c); err != nil {
		return gpuai.NewAccessToken{}, err
	}
	if err := s.node.AdmitClient(); err != nil {
		return gpuai.NewAccessToken{}, err
	}
	did, err := s.propose(ctx, c.Append(nil, envelopeOf(ctx, c.Tenant, "")))
	if err == nil {
		err = tokenRefused(fsm.Result{Code: did[0].Code, Detail: did[0].Detail, Index: did[0].Index})
	}
	if err == nil {
		err = s.node.WaitApplied(ctx, did[0].Index)
	}
	if err != nil {
		return gpuai.NewAccessToken{}, err
	}
	s.node.View(func(m *fsm.Machine) {
		h, _ := m.AccessToken(c.ID)
		out.Token = h.AccessToken
	})
	return out, nil
}

// roomForToken keeps what this server's state would refuse for want of room out of
// the log; the machine is who judges.
func (s *Server) roomForToken(c *fsm.CreateToken) error {
	var res fsm.Result
	s.node.View(func(m *fsm.Machine) { res = m.TokenRoom(c) })
	return tokenRefused(res)
}

// tokenRefused returns what a token was refused with; nil when it was made.
func tokenRefused(res fsm.Result) error {
	if res.Code == gpuai.OK {
		return nil
	}
	err := &gpuai.Error{Code: res.Code, Detail: res.Detail, Index: res.Index}
	if res.Code == gpuai.RateLimited {
		err.RetryAfter = gpuai.Minute
	}
	return err
}

// RevokeToken implements httpd.Access.
func (s *Server) RevokeToken(ctx context.Context, id gpuai.AccessTokenID, tenant gpuai.TenantID) (out gpuai.AccessToken, err error) {
	c := fsm.RevokeToken{ID: id, Tenant: tenant}
	if tenant != "" && s.beyondTenants(id) {
		c.Tenant = nobodys // it is refused, and recorded, as what no tenant has
	}
	if _, err := s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, tenant, ""))); err != nil {
		return out, err
	}
	s.node.View(func(m *fsm.Machine) {
		h, _ := m.AccessToken(id)
		out = h.AccessToken
	})
	return out, nil
}

// nobodys is a tenant that cannot be.
const nobodys gpuai.TenantID = "-"

// beyondTenants reports whether a token is more than a tenant's: an operator's, also
// one that is of a tenant too, is no business of that tenant's administrators.
func (s *Server) beyondTenants(id gpuai.AccessTokenID) bool {
	var h fsm.HeldToken
	s.node.View(func(m *fsm.Machine) { h, _ = m.AccessToken(id) })
	return h.Allows.Has(gpuai.ScopeOperator)
}

// AccessTokens implements httpd.Access.
func (s *Server) AccessTokens(p httpd.Page) (tokens []gpuai.AccessToken, next string, err error) {
	from, err := readOffset("tokens", p.Cursor)
	if err != nil || from > fsm.MaxAccessTokens {
		return nil, "", badCursor()
	}
	limit, at := pageSize(p), uint32(from)
	for hold := 0; hold < maxHolds && len(tokens) < limit; hold++ {
		var page []gpuai.AccessToken
		s.node.View(func(m *fsm.Machine) { page, at = m.AccessTokens(at, limit-len(tokens), p.Tenant) })
		if p.Tenant != "" {
			page = slices.DeleteFunc(page, func(t gpuai.AccessToken) bool { return slices.Contains(t.Scopes, gpuai.ScopeOperator) })
		}
		if tokens = append(tokens, page...); at == 0 {
			return tokens, "", nil
		}
	}
	return tokens, makeCursor("tokens", strconv.FormatUint(uint64(at), 10)), nil
}

// Roles implements httpd.Access.
func (s *Server) Roles() (out []gpuai.RoleMapping) {
	s.node.View(func(m *fsm.Machine) { out = m.RoleMappings() })
	return out
}

// SetRole implements httpd.Access.
func (s *Server) SetRole(ctx context.Context, r gpuai.RoleMapping) error {
	c := fsm.SetRole{Mapping: r}
	_, err := s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, r.Tenant, "")))
	return err
}

// SetNodeOwner implements httpd.Access.
func (s *Server) SetNodeOwner(ctx context.Context, id gpuai.NodeID, owner gpuai.ContributorID) (gpuai.Node, error) {
	c := fsm.SetNodeOwner{Node: id, Contributor: owner}
	_, err := s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	if isCode(err, gpuai.NotFound) {
		return gpuai.Node{}, errNoNode(id)
	}
	if err != nil {
		return gpuai.Node{}, err
	}
	return s.Node(id, "")
}

// errNoNode is returned for a node that there is not, or that is another's.
func errNoNode(id gpuai.NodeID) error { return notFound("no node is called " + string(id)) }

// FindJob implements httpd.Reader.
func (s *Server) FindJob(ref string, tenant gpuai.TenantID) (gpuai.JobID, error) {
	at, err := s.locateOf(ref, tenant)
	return at.id, err
}

// eventsOf returns f for those events only that are of a tenant's jobs. What they
// say of others' is taken out.
func (s *Server) eventsOf(tenant gpuai.TenantID, f func([]gpuai.Event, uint64) error) func([]gpuai.Event, uint64) error {
	if tenant == "" {
		return f
	}
	mine := s.jobsOf(tenant)
	return func(all []gpuai.Event, index uint64) error {
		events := slices.DeleteFunc(slices.Clone(all), func(e gpuai.Event) bool { return e.Job.IsZero() || !mine(e.Job) })
		scrub(events, mine)
		return f(events, index)
	}
}

// scrub takes from events what they say of jobs that are not mine.
func scrub(events []gpuai.Event, mine func(gpuai.JobID) bool) {
	for i := range events {
		if by := events[i].By; !by.IsZero() && !mine(by) {
			events[i].By = gpuai.JobID{}
		}
	}
}

// jobsOf returns a function that reports whether a job is a tenant's.
func (s *Server) jobsOf(tenant gpuai.TenantID) func(gpuai.JobID) bool {
	known := map[gpuai.JobID]bool{}
	return func(id gpuai.JobID) bool {
		is, ok := known[id]
		if !ok {
			if len(known) >= maxEventJobs {
				clear(known)
			}
			_, err := s.FindJob(id.String(), tenant)
			is = err == nil
			known[id] = is
		}
		return is
	}
}

// maxEventJobs bounds the jobs of which a stream remembers whose they are.
const maxEventJobs = 4_096
