package gpuai

// A Scope is one thing that a token allows, within the tenant of the token, or
// for ScopeContributor with the nodes of its contributor.
type Scope uint8

// The scopes. None contains another: a token lists all that it allows.
const (
	// ScopeRead sees jobs, leases, logs and usage of the tenant.
	ScopeRead Scope = iota
	// ScopeSubmit submits, stops and enters jobs, and sets secrets.
	ScopeSubmit
	// ScopeTenantAdmin makes and revokes tokens of the tenant.
	ScopeTenantAdmin
	// ScopeContributor sees and governs the nodes of a contributor, and never
	// what runs on them.
	ScopeContributor
	// ScopeOperator does everything in the region.
	ScopeOperator
	numScopes
)

var scopeNames = [numScopes]string{"read", "submit", "tenant-admin", "contributor", "operator"}

// String returns the scope's text.
func (s Scope) String() string { return enumName(scopeNames[:], uint8(s)) }

// MarshalText writes the scope's text.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a scope's text.
func (s *Scope) UnmarshalText(b []byte) error {
	return enumParse(scopeNames[:], "scope", b, (*uint8)(s))
}

// Scopes is a set of scopes, one bit each.
type Scopes uint8

// ScopesOf returns the set of all.
func ScopesOf(all ...Scope) (s Scopes) {
	for _, x := range all {
		s |= 1 << x
	}
	return s
}

// Has reports whether s holds x.
func (s Scopes) Has(x Scope) bool { return x < numScopes && s>>x&1 != 0 }

// AllScopes is every scope there is.
const AllScopes = Scopes(1<<numScopes - 1)

// List returns the scopes of s, in their order.
func (s Scopes) List() []Scope {
	out := []Scope{}
	for x := range numScopes {
		if s.Has(x) {
			out = append(out, x)
		}
	}
	return out
}

// Within reports whether all of s is in o.
func (s Scopes) Within(o Scopes) bool { return s&^o == 0 }

// A Principal is who a request comes from, once that is proven. The zero value
// is nobody, who may do nothing.
type Principal struct {
	// Actor names who it is in the audit: token/ID, user/NAME, node/ID or
	// server/ID.
	Actor string
	// Tenant is whose jobs it may touch; "" is none, or all for an operator.
	Tenant TenantID
	// Contributor is whose nodes it may touch; "" is none.
	Contributor ContributorID
	// Node and Server are set for those that a certificate names.
	Node   NodeID
	Server ServerID
	// Issued is when the certificate was issued that they have shown.
	Issued Stamp
	Scopes Scopes
	// Token is the access token that was shown; zero for none.
	Token AccessTokenID
	// From is the address that the request came from, without a port.
	From string
}

// Operator reports whether p may do everything in the region.
func (p *Principal) Operator() bool { return p.Scopes.Has(ScopeOperator) }

// A ContributorID names who owns nodes and is paid for them.
type ContributorID string
