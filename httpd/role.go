package httpd

import (
	"strings"

	"github.com/gpuai/gpuai"
)

// roles says who a route is for. A route without any is for nobody.
type roles uint16

// The roles: the scopes of tokens, those whom certificates name, and anyone.
const (
	reader roles = 1 << iota
	submitter
	tenantAdmin
	contributor
	operator
	node
	server
	// anyone needs to show nothing.
	anyone
)

// Who most routes are for.
const (
	tenantReads = operator | reader
	members     = operator | reader | submitter | tenantAdmin
	anyToken    = members | contributor
)

var roleNames = [...]string{"read", "submit", "tenant-admin", "contributor", "operator", "a node's certificate", "a server's certificate", "nothing"}

// String lists the roles.
func (r roles) String() string {
	var out []string
	for i, name := range roleNames {
		if r>>i&1 != 0 {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return "nobody"
	}
	return strings.Join(out, " or ")
}

// rolesOf returns what somebody is. Scopes of a tenant or a contributor count for
// those that have one.
func rolesOf(p *gpuai.Principal) (r roles) {
	for _, x := range [...]struct {
		role roles
		has  bool
	}{
		{reader, p.Tenant != "" && p.Scopes.Has(gpuai.ScopeRead)},
		{submitter, p.Tenant != "" && p.Scopes.Has(gpuai.ScopeSubmit)},
		{tenantAdmin, p.Tenant != "" && p.Scopes.Has(gpuai.ScopeTenantAdmin)},
		{contributor, p.Contributor != "" && p.Scopes.Has(gpuai.ScopeContributor)},
		{operator, p.Operator()},
		{node, p.Node != ""},
		{server, p.Server != ""},
	} {
		if x.has {
			r |= x.role
		}
	}
	return r
}

// takes reports whether a route is for somebody.
func (rt *route) takes(p *gpuai.Principal, cfg *Config) bool {
	who := rt.who
	if rt.metrics && cfg.PrivateMetrics {
		who = operator
	}
	return who&anyone != 0 || cfg.Auth == nil && who != 0 || who&rolesOf(p) != 0
}

// judges reports whether it matters who calls a route.
func (rt *route) judges(cfg *Config) bool {
	return rt.who&anyone == 0 || rt.metrics && cfg.PrivateMetrics
}

// tenant returns the tenant whose jobs the caller may touch; "" is all.
func (c *call) tenant() gpuai.TenantID {
	if c.who.Operator() {
		return ""
	}
	if c.who.Tenant == "" { // no tenant has this name, so nothing is found
		return noTenant
	}
	return c.who.Tenant
}

// noTenant is a tenant that cannot be.
const noTenant gpuai.TenantID = "-"

// owner returns the contributor whose nodes the caller may touch; "" is all.
func (c *call) owner() gpuai.ContributorID {
	if c.who.Operator() {
		return ""
	}
	if c.who.Contributor == "" || !c.who.Scopes.Has(gpuai.ScopeContributor) {
		return gpuai.ContributorID(noTenant)
	}
	return c.who.Contributor
}

// own makes a job the caller's: of its tenant, when it says none.
func (c *call) own(spec *gpuai.JobSpec, at string) error {
	if spec.Tenant == "" {
		spec.Tenant = c.who.Tenant
	}
	if mine := c.tenant(); mine != "" && spec.Tenant != mine {
		return &gpuai.Error{
			Code: gpuai.Forbidden, Detail: "this token is of tenant " + string(mine) + ": leave the job's tenant out, or use a token of its tenant",
			Fields: []gpuai.FieldError{{Pointer: at + "/tenant", Detail: "is another tenant than the token's"}},
		}
	}
	return nil
}

// job returns the job that the path names, as the backend finds it. For who may
// not touch all jobs it is found among its tenant's: another's is as unknown as
// one that never was.
func (c *call) job() (string, error) {
	ref, err := c.variable("job")
	if err != nil || ref == "" {
		return ref, err
	}
	return c.jobOf(ref)
}

// jobOf is job for one that something else names.
func (c *call) jobOf(ref string) (string, error) {
	mine := c.tenant()
	if mine == "" {
		return ref, nil
	}
	whole, err := gpuai.ParseJobID(ref)
	if err == nil { // whose it is never changes
		if _, err := c.api.backend.FindJob(whole.String(), mine); err == nil {
			return whole.String(), nil
		}
	}
	if c.rt.where != here && !c.stale() { // one of this name may be new
		if err := c.linearize(); err != nil {
			return "", err
		}
	}
	id, err := c.api.backend.FindJob(ref, mine)
	if err != nil {
		return "", err
	}
	return id.String(), nil
}

// discreet takes what tells of another tenant's job from a lease.
func (c *call) discreet(l *gpuai.Lease) {
	mine := c.tenant()
	if mine == "" || l.PreemptedBy.IsZero() {
		return
	}
	if _, err := c.api.backend.FindJob(l.PreemptedBy.String(), mine); err != nil {
		l.PreemptedBy = gpuai.JobID{}
	}
}

func (c *call) discreetly(leases []gpuai.Lease) {
	for i := range leases {
		c.discreet(&leases[i])
	}
}

// unnamed is what a contributor is told of a lease: how much of its node it holds,
// and nothing of whose it is.
func unnamed(l gpuai.Lease) gpuai.Lease {
	return gpuai.Lease{
		ID: l.ID, Node: l.Node, Incarnation: l.Incarnation, State: l.State, Devices: l.Devices, Share: l.Share,
		CPU: l.CPU, Memory: l.Memory, TTL: l.TTL, Grace: l.Grace, Price: l.Price,
		GrantedAt: l.GrantedAt, StartedAt: l.StartedAt, EndedAt: l.EndedAt, ModifyIndex: l.ModifyIndex,
	}
}
