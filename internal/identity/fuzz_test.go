package identity

import (
	"context"
	"crypto/x509"
	"testing"

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
