package gpuai

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// Limits of access tokens and of what gives them.
const (
	MaxTokenTTL     = 5 * 365 * Day // of an access token
	DefaultTokenTTL = 90 * Day      // of one that says nothing
	// MaxGivenTTL bounds a token that a tenant's administrator makes, and
	// MaxGivenLoginTTL one that is made by who has logged in as such: it goes on
	// when the provider knows them no more.
	MaxGivenTTL      = 365 * Day
	MaxGivenLoginTTL = 30 * Day
	MaxNoteLen       = 256 // bytes of a description, a display name, a claim or its value
)

// An AccessTokenID names an access token: it is the part of its text that is no
// secret. The zero ID is none.
type AccessTokenID [10]byte

// AccessTokenIDLen is the length of an ID's text.
const AccessTokenIDLen = 16

// AccessTokenPrefix begins the text of every access token:
// "gpu_" ID "_" secret.
const AccessTokenPrefix = "gpu_"

// BootstrapPrefix begins the text of the secret with which a region's first
// operator token is made.
const BootstrapPrefix = "gpuboot-"

// String returns the 16 characters of id, in Crockford's base 32, lower case.
func (id AccessTokenID) String() string { return string(AppendBase32(nil, id[:])) }

// IsZero reports whether id is the zero ID.
func (id AccessTokenID) IsZero() bool { return id == AccessTokenID{} }

// MarshalText writes the text of id.
func (id AccessTokenID) MarshalText() ([]byte, error) { return AppendBase32(nil, id[:]), nil }

var errAccessTokenID = errors.New("the ID of an access token has 16 characters of 0-9 and a-z without i, l, o and u")

// UnmarshalText reads the text of an ID, in either case.
func (id *AccessTokenID) UnmarshalText(b []byte) error {
	if len(b) != AccessTokenIDLen {
		return errAccessTokenID
	}
	var out AccessTokenID
	acc, bits, o := uint32(0), uint(0), 0
	for _, c := range b {
		v := crockfordValue(c)
		if v > 31 {
			return errAccessTokenID
		}
		acc = acc<<5 | uint32(v)
		if bits += 5; bits >= 8 {
			bits -= 8
			out[o] = byte(acc >> bits)
			o++
		}
	}
	*id = out
	return nil
}

// ParseAccessTokenID reads the text of an ID, in either case.
func ParseAccessTokenID(s string) (id AccessTokenID, err error) {
	err = id.UnmarshalText([]byte(s))
	return id, err
}

// AppendBase32 appends b in Crockford's base 32, lower case. Its length is a
// multiple of 5.
func AppendBase32(dst, b []byte) []byte {
	acc, bits := uint32(0), uint(0)
	for _, x := range b {
		acc = acc<<8 | uint32(x)
		for bits += 8; bits >= 5; {
			bits -= 5
			c := crockford[acc>>bits&31]
			if c >= 'A' {
				c += 'a' - 'A'
			}
			dst = append(dst, c)
		}
	}
	return dst
}

// SplitAccessToken returns the ID in the text of an access token; false when it
// is none.
func SplitAccessToken(text string) (id AccessTokenID, ok bool) {
	rest, ok := strings.CutPrefix(text, AccessTokenPrefix)
	if !ok || len(rest) < AccessTokenIDLen+2 || rest[AccessTokenIDLen] != '_' {
		return id, false
	}
	return id, id.UnmarshalText([]byte(rest[:AccessTokenIDLen])) == nil
}

// An AccessToken is what is known of a token by which requests are allowed. Its
// text is known to nobody but its holder.
type AccessToken struct {
	ID AccessTokenID `json:"id"`
	// Tenant is whose jobs it is for, Contributor whose nodes; "" is none.
	Tenant      TenantID      `json:"tenant,omitzero"`
	Contributor ContributorID `json:"contributor,omitzero"`
	Scopes      []Scope       `json:"scopes"`
	// User is who logged in for it, by an identity provider's word; "" for one
	// that was made.
	User        string   `json:"user,omitzero"`
	Description string   `json:"description,omitzero"`
	CreatedAt   WallTime `json:"created_unix_ms"`
	ExpiresAt   WallTime `json:"expires_unix_ms"`
	// UsedAt is when it was last used, to within minutes; 0 is never.
	UsedAt  WallTime `json:"last_used_unix_ms,omitzero"`
	Expired bool     `json:"expired,omitzero"`
	Revoked bool     `json:"revoked,omitzero"`
}

// A TokenRequest asks for a new access token.
type TokenRequest struct {
	Tenant      TenantID      `json:"tenant,omitzero"`
	Contributor ContributorID `json:"contributor,omitzero"`
	Scopes      []Scope       `json:"scopes"`
	TTL         Duration      `json:"ttl_ms,omitzero"` // 0 is DefaultTokenTTL
	Description string        `json:"description,omitzero"`
}

// Defaults fills in what was not said.
func (r *TokenRequest) Defaults() {
	if r.TTL == 0 {
		r.TTL = DefaultTokenTTL
	}
}

// Validate reports everything wrong with a request, after Defaults.
func (r *TokenRequest) Validate() []FieldError {
	var v fieldErrors
	s := ScopesOf(r.Scopes...)
	validateAccess(&v, s, r.Tenant, r.Contributor)
	v.check(s != 0, "/scopes", "lists at least one of read, submit, tenant-admin, contributor and operator")
	v.check(r.TTL >= Second && r.TTL <= MaxTokenTTL, "/ttl_ms", "is between 1 second and 5 years")
	v.check(ValidNote(r.Description), "/description", "is at most 256 bytes of text on one line")
	return v
}

// validateAccess says what is wrong with scopes, and with whose they are.
func validateAccess(v *fieldErrors, s Scopes, tenant TenantID, contributor ContributorID) {
	inTenant := s.Has(ScopeRead) || s.Has(ScopeSubmit) || s.Has(ScopeTenantAdmin)
	v.check(tenant == "" || ValidName(string(tenant)), "/tenant", "is 1 to 63 characters of a-z, 0-9 and '-'")
	v.check(contributor == "" || ValidName(string(contributor)), "/contributor", "is 1 to 63 characters of a-z, 0-9 and '-'")
	v.check(tenant != "" || !inTenant, "/tenant", "is needed for the scopes read, submit and tenant-admin")
	v.check(tenant == "" || inTenant, "/tenant", "is for the scopes read, submit and tenant-admin only")
	v.check((contributor != "") == s.Has(ScopeContributor), "/contributor", "is given with the scope contributor, and only with it")
}

// ValidNote reports whether s can be a description: at most MaxNoteLen bytes of
// UTF-8 without control characters.
func ValidNote(s string) bool {
	if len(s) > MaxNoteLen || !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// A RoleMapping gives those who log in with a claim of a value, such as a group,
// scopes in a tenant, or as a contributor.
type RoleMapping struct {
	Claim       string        `json:"claim"`
	Value       string        `json:"value"`
	Tenant      TenantID      `json:"tenant,omitzero"`
	Contributor ContributorID `json:"contributor,omitzero"`
	// Scopes that it gives; none removes the mapping.
	Scopes []Scope `json:"scopes"`
}

// Validate reports everything wrong with a mapping.
func (r *RoleMapping) Validate() []FieldError {
	var v fieldErrors
	if len(r.Scopes) > 0 {
		validateAccess(&v, ScopesOf(r.Scopes...), r.Tenant, r.Contributor)
	}
	v.check(r.Claim != "" && ValidNote(r.Claim), "/claim", "is the name of a claim, such as groups")
	v.check(r.Value != "" && ValidNote(r.Value), "/value", "is the value that the claim has, or holds")
	return v
}

// A NewAccessToken is a token that was just made, with its text, which is told
// this once only.
type NewAccessToken struct {
	Token AccessToken `json:"token"`
	Text  string      `json:"text"`
}

// A LoginRequest exchanges the ID token that an identity provider gave a user for
// an access token.
type LoginRequest struct {
	IDToken string `json:"id_token"`
	// Tenant chooses one, of a user who has several; "" is the only one.
	Tenant TenantID `json:"tenant,omitzero"`
}

// LoginInfo says how users log in.
type LoginInfo struct {
	// Issuer and ClientID are the identity provider's; "" is none.
	Issuer   string `json:"issuer,omitzero"`
	ClientID string `json:"client_id,omitzero"`
	// Scopes is what to ask the provider for.
	Scopes []string `json:"scopes,omitempty"`
	// Insecure is set where requests need no token.
	Insecure bool `json:"insecure,omitzero"`
}

// WhoAmI says who a request comes from.
type WhoAmI struct {
	Actor       string        `json:"actor"`
	Tenant      TenantID      `json:"tenant,omitzero"`
	Contributor ContributorID `json:"contributor,omitzero"`
	Scopes      []Scope       `json:"scopes"`
}

// A BootstrapRequest asks for a region's first operator token.
type BootstrapRequest struct {
	Secret string `json:"secret"`
}
