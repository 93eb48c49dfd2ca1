package doctor

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"time"
)

// JoinedFacts are of the node's certificate.
type JoinedFacts struct {
	As    string // "node/NAME"; "" where the host has not joined
	Until time.Time
	Err   error // why the certificate that there is cannot be used
}

const (
	secureOnly = "gives nodes no leases without a certificate: the region has authentication"
	joinFirst  = "join the region: gpuai agent join, with a token of gpuai token create --join node; and give --servers as https://HOST:PORT"
)

// joined says as whom this host has joined, and how it meets servers.
func joined(c *Config) (f JoinedFacts, meet *tls.Config) {
	f.Err = c.Unusable
	if id := c.Agent.Identity; id != nil {
		held := id.Credential()
		f.As, f.Until, meet = held.Peer.Identity.String(), held.NotAfter(), id.ClientConfig()
	}
	return f, meet
}

func (f *Facts) judgeJoined() Check {
	const code = "identity"
	secure := false
	for i := range f.Servers {
		secure = secure || f.Servers[i].Secure
	}
	switch j := &f.Joined; {
	case j.Err != nil:
		return fail(code, cure{joinFirst, noStart}, "%v", j.Err)
	case j.As != "":
		return ok(code, "%s, until %s; it is renewed before", j.As, j.Until.UTC().Format(time.RFC3339))
	case secure:
		return fail(code, cure{joinFirst, "the region " + secureOnly}, "none: this host has not joined")
	}
	return ok(code, "none: no server asks for one")
}

// isSecure reports whether a server speaks TLS only, or TLS by a CA of its own, as
// regions with authentication do, by what a host met that has not joined.
func isSecure(err error, body []byte) bool {
	var unknown x509.UnknownAuthorityError
	return errors.As(err, &unknown) || strings.Contains(string(body), "HTTP request to an HTTPS server")
}
