package identity

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"
)

// FuzzCertificates takes any bytes for the certificates of a handshake, which are
// read before it is known who is there: no chain is trusted that a CA of the
// cluster has not begun.
func FuzzCertificates(f *testing.F) {
	r := newRealm(&testing.T{}, "c1")
	good := r.credential(nodeN1, 7)
	for _, der := range good.cert.Certificate {
		f.Add(der, good.cert.Certificate[1])
	}
	f.Add([]byte{0x30, 0x82}, []byte{})
	trust := r.trust()
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var chain []*x509.Certificate
		for _, der := range [][]byte{first, second} {
			if c, err := x509.ParseCertificate(der); err == nil {
				chain = append(chain, c)
			}
		}
		p, err := trust.Verify(chain, r.clock.Now())
		if err == nil && (p != good.Peer || string(chain[0].Raw) != string(good.cert.Certificate[0])) {
			t.Errorf("%+v is trusted", p)
		}
		if len(chain) > 0 {
			_ = HashOf(chain[0])
		}
	})
}

// nobodysKeys are a provider's that has signed nothing.
type nobodysKeys struct{}

func (nobodysKeys) VerifySignature(context.Context, string) ([]byte, error) { return nil, ErrIDToken }

// FuzzIDToken takes any text for the ID token of a login, which is read before
// its signature is checked.
func FuzzIDToken(f *testing.F) {
	f.Add("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2kiLCJhdWQiOiJncHVhaSIsInN1YiI6ImEifQ.AAAA")
	f.Add("e30.e30.")
	f.Add("a.b.c.d")
	p := &Provider{issuer: "https://i", client: "gpuai"}
	p.verifier = oidc.NewVerifier(p.issuer, nobodysKeys{}, &oidc.Config{ClientID: p.client})
	f.Fuzz(func(t *testing.T, text string) {
		if u, err := p.Verify(t.Context(), text); err == nil {
			t.Errorf("%q is the token of %+v", text, u)
		}
	})
}

// FuzzCallback asks the port to which a provider redirects a login for anything at all:
// only what knows the login's state is taken for the provider's answer.
func FuzzCallback(f *testing.F) {
	const state = "THE-STATE"
	for _, target := range []string{"/callback?code=x&state=" + state, "/callback?state=", "/callback?state=x&state=" + state, "/%63allback?state=" + state, "//callback?state=" + state, "/callback?%zz&state=" + state, "/callback;x?state=" + state, "/?error=x"} {
		f.Add("GET", target)
	}
	f.Add("POST", "/callback?state=x")
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		answers := make(chan url.Values, 1)
		h := callback(state, answers)
		for range 2 { // the second finds no room, and does not wait
			w := httptest.NewRecorder()
			h.ServeHTTP(w, (&http.Request{Method: method, URL: u, Header: http.Header{}}).WithContext(t.Context()))
			if known := u.Path == "/callback" && u.Query().Get("state") == state; known != (w.Code == http.StatusOK) || known != (len(answers) == 1) {
				t.Errorf("%s %q is answered %d, %d answers", method, target, w.Code, len(answers))
			}
		}
	})
}

// FuzzClaims takes any claims for a user's: none is a role by what no mapping names,
// and what is said of a user is short and plain.
func FuzzClaims(f *testing.F) {
	f.Add(`{"groups":["ml",1,null],"email":"a@x","email_verified":true,"preferred_username":"ann"}`, "groups", "ml")
	f.Add(`{"_claim_names":{"groups":"x"},"email":"a@x"}`, "groups", "")
	f.Fuzz(func(t *testing.T, claims, claim, value string) {
		u := &User{issuer: "https://i", Subject: claims, Name: claims}
		if json.Unmarshal([]byte(claims), &u.claims) != nil {
			return
		}
		if _, is := u.claims[claim]; u.Has(claim, value) && !is {
			t.Errorf("%q has %q = %q", claims, claim, value)
		}
		if l := u.Label(); len(l) > maxActorName || strings.ContainsAny(l, " \n\r\x1b") || !utf8.ValidString(l) {
			t.Errorf("the user is called %q", l)
		}
		_ = u.Unusable(claim)
	})
}
