package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/gpuai/gpuai"
)

// OIDCTimeout bounds one conversation with an OpenID provider.
const OIDCTimeout = 10 * time.Second

// ErrIDToken is returned, wrapped with why, for what is no good ID token of the
// provider for this region.
var ErrIDToken = errors.New("the ID token is not good")

// A Provider is an OpenID provider that users log in with. It is asked when it is
// first needed, and safe for concurrent use.
type Provider struct {
	issuer, client string

	mu       sync.Mutex // guards below
	verifier *oidc.IDTokenVerifier
	asking   chan struct{} // closed once the question under way is over; nil: none is
	failed   error         // of the last question …
	failedAt time.Time
}

// oidcPause is how long a provider is left alone that could not be asked.
const oidcPause = 5 * time.Second

// NewProvider returns the provider of an issuer, in which the region is called
// client. It asks nobody.
func NewProvider(issuer, client string) *Provider {
	return &Provider{issuer: issuer, client: client}
}

// A User is who a provider says has logged in.
type User struct {
	issuer  string
	Subject string
	// Name is a verified address or a name, for people; the subject where there is
	// none. It proves nothing.
	Name   string
	claims map[string]any
}

// maxActorName bounds the name in an Actor, in bytes.
const maxActorName = 46

// Actor names the user in the audit, for people by an address or a name, which may
// be another's tomorrow, and for good by a hash: the first 8 bytes of SHA-256 of the
// issuer, a zero byte and the subject, in hex.
func (u *User) Actor() string {
	sum := u.Hash()
	return fmt.Sprintf("%s#%x", u.Label(), sum[:8])
}

// Label is the name as it may be written anywhere: short, and without control
// characters or spaces.
func (u *User) Label() string {
	name := strings.Map(func(c rune) rune {
		if c <= ' ' || c == 0x7f || c == utf8.RuneError {
			return '_'
		}
		return c
	}, u.Name)
	for len(name) > maxActorName {
		_, n := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-n]
	}
	return name
}

// Hash names the user for good: the SHA-256 of the issuer, a zero byte and the
// subject.
func (u *User) Hash() [32]byte { return sha256.Sum256([]byte(u.issuer + "\x00" + u.Subject)) }

// Has reports whether a claim of the user has a value, or holds it. An address that
// the provider has not verified is anybody's.
func (u *User) Has(claim, value string) bool {
	if claim == "email" && !u.verified() {
		return false
	}
	switch v := u.claims[claim].(type) {
	case string:
		return v == value
	case bool:
		return fmt.Sprint(v) == value
	case []any:
		for _, x := range v {
			if s, ok := x.(string); ok && s == value {
				return true
			}
		}
	}
	return false
}

// Unusable says why a claim of the user is nothing that a mapping could name: "is a
// number", or another sentence without its subject. It is "" for one that could be
// named, and for one that the user does not have.
func (u *User) Unusable(claim string) string {
	v, has := u.claims[claim]
	if !has {
		if elsewhere, _ := u.claims["_claim_names"].(map[string]any); elsewhere[claim] != nil {
			return "is not in the ID token, as the provider found it too long: have it send fewer values"
		}
		return ""
	}
	switch v := v.(type) {
	case nil:
		return "is null"
	case float64:
		return "is a number"
	case map[string]any:
		return "is an object: have the provider put what is in it into a claim of its own"
	case string:
		if v == "" {
			return "is empty"
		}
		if claim == "email" && !u.verified() {
			return "is an address that the provider has not verified"
		}
	case []any:
		return unusableList(v)
	}
	return ""
}

func unusableList(all []any) string {
	texts := 0
	for _, x := range all {
		if s, ok := x.(string); ok && s != "" {
			texts++
		}
	}
	switch {
	case len(all) == 0:
		return "is an empty list"
	case texts < len(all):
		return fmt.Sprintf("is a list in which %d of %d values are no texts", len(all)-texts, len(all))
	}
	return ""
}

func (u *User) verified() bool {
	v := u.claims["email_verified"]
	return v == true || v == "true" // some providers write it as text
}

// Verify returns the user of an ID token: its signature, issuer, audience and
// times are checked. The error wraps ErrIDToken, unless the provider cannot be
// asked.
func (p *Provider) Verify(ctx context.Context, text string) (*User, error) {
	ctx, cancel := context.WithTimeout(ctx, OIDCTimeout)
	defer cancel()
	v, err := p.discover(ctx)
	if err != nil {
		return nil, err
	}
	token, err := v.Verify(ctx, text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIDToken, err)
	}
	if token.Subject == "" { // or all such users would be one
		return nil, fmt.Errorf("%w: it has no sub", ErrIDToken)
	}
	u := &User{issuer: token.Issuer, Subject: token.Subject, Name: token.Subject, claims: map[string]any{}}
	if err := token.Claims(&u.claims); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIDToken, err)
	}
	for _, claim := range [...]string{"email", "preferred_username"} {
		if s, ok := u.claims[claim].(string); ok && s != "" && (claim != "email" || u.verified()) {
			u.Name = s
			break
		}
	}
	return u, nil
}

// discover asks the provider for its keys, once it answers. All who wait meanwhile
// share one question, and each for no longer than its ctx.
func (p *Provider) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	p.mu.Lock()
	if p.verifier != nil || p.failed != nil && time.Since(p.failedAt) < oidcPause {
		defer p.mu.Unlock()
		return p.verifier, p.failed
	}
	if p.asking == nil {
		p.asking = make(chan struct{})
		go p.ask(p.asking) // for OIDCTimeout at most
	}
	answered := p.asking
	p.mu.Unlock()
	select {
	case <-answered:
	case <-ctx.Done():
		return nil, fmt.Errorf("ask the OpenID provider %s: %w", p.issuer, ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.verifier, p.failed
}

// ask asks the provider and closes answered.
func (p *Provider) ask(answered chan struct{}) {
	// The keys are fetched later too: not with a context that ends, and not for ever.
	ctx := oidc.ClientContext(context.Background(), &http.Client{Timeout: OIDCTimeout})
	found, err := oidc.NewProvider(ctx, p.issuer)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking, p.failed = nil, nil; err != nil {
		p.failed, p.failedAt = fmt.Errorf("ask the OpenID provider %s: %w", p.issuer, err), time.Now()
	} else {
		p.verifier = found.Verifier(&oidc.Config{ClientID: p.client})
	}
	close(answered)
}

// A Login is a user's login at a provider through a browser on this host: the code
// flow with PKCE (RFC 7636) and a redirect to a loopback port (RFC 8252).
type Login struct {
	Issuer, Client string
	Scopes         []string // beside openid
	// Open has the user open a URL, in a browser or otherwise.
	Open func(url string) error
}

const loginDone = `<!doctype html><title>GPUAI</title><p>You are logged in. You can close this page.`

// Run waits until the user has logged in and returns the ID token, or why not.
func (l *Login) Run(ctx context.Context) (gpuai.Secret, error) {
	found, err := oidc.NewProvider(ctx, l.Issuer)
	if err != nil {
		return gpuai.Secret{}, fmt.Errorf("ask the OpenID provider %s: %w", l.Issuer, err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return gpuai.Secret{}, fmt.Errorf("listen for the provider's answer: %w", err)
	}
	cfg := oauth2.Config{
		ClientID: l.Client, Endpoint: found.Endpoint(), Scopes: append([]string{oidc.ScopeOpenID}, l.Scopes...),
		RedirectURL: "http://" + lis.Addr().String() + "/callback",
	}
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	answers := make(chan url.Values, 1)
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: callback(state, answers)}
	go func() { _ = srv.Serve(lis) }() // until it is shut down
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = srv.Shutdown(end)
	}()
	if err := l.Open(cfg.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier))); err != nil {
		return gpuai.Secret{}, err
	}
	select {
	case <-ctx.Done():
		return gpuai.Secret{}, fmt.Errorf("nobody logged in: %w", ctx.Err())
	case q := <-answers:
		return l.exchange(ctx, found, &cfg, &answer{q, nonce, verifier})
	}
}

// callback takes the provider's redirect, which knows the state of the login: once, as
// far as there is room in answers. Any page that this host's browser shows can ask it.
func callback(state string, answers chan<- url.Values) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/callback" || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 { // somebody else's page
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(loginDone))
		select {
		case answers <- q:
		default:
		}
	})
}

// An answer is what the provider's redirect brought, and what it must fit.
type answer struct {
	query           url.Values
	nonce, verifier string
}

// exchange turns the code of an answer into an ID token.
func (l *Login) exchange(ctx context.Context, found *oidc.Provider, cfg *oauth2.Config, a *answer) (gpuai.Secret, error) {
	if why := a.query.Get("error"); why != "" {
		return gpuai.Secret{}, fmt.Errorf("the provider refused the login: %.100q %.400q", why, a.query.Get("error_description"))
	}
	tokens, err := cfg.Exchange(ctx, a.query.Get("code"), oauth2.VerifierOption(a.verifier))
	if err != nil {
		return gpuai.Secret{}, fmt.Errorf("exchange the provider's code: %w", err)
	}
	text, _ := tokens.Extra("id_token").(string)
	id, err := found.Verifier(&oidc.Config{ClientID: l.Client}).Verify(ctx, text)
	if err != nil {
		return gpuai.Secret{}, fmt.Errorf("%w: %w", ErrIDToken, err)
	}
	if id.Nonce != a.nonce {
		return gpuai.Secret{}, fmt.Errorf("%w: it was made for another login", ErrIDToken)
	}
	return gpuai.NewSecret(text), nil
}
