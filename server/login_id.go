package server

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// errExchanged refuses an ID token that was exchanged before.
var errExchanged = gpuai.NewError(gpuai.Unauthenticated, "this ID token was exchanged for a token before, and is good once: log in again with gpuai login")

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
		return id, errExchanged
	}
	return id, nil
}
