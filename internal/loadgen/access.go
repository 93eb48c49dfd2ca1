package loadgen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
)

// An Access is how a region with authentication is reached: whom to trust, and as
// whom. The zero value is of a region without.
type Access struct {
	TLS    *tls.Config    // of clients, who show no certificate; nil is plain HTTP
	Token  gpuai.Secret   // an operator's
	Tenant gpuai.TenantID // whose jobs are submitted; "" is the default tenant
}

// Files in which a keeper leaves the access to its region.
const (
	accessCA    = "ca.pem"
	accessToken = "operator.token"
)

// NewAccess returns the operator's access to a region, by its CA's certificate.
func NewAccess(ca []byte, token gpuai.Secret) (Access, error) {
	trust, err := identity.ReadTrustFile(ca)
	if err != nil {
		return Access{}, err
	}
	return Access{TLS: identity.TrustConfig(trust), Token: token}, nil
}

// saveAccess leaves what readAccess reads in a directory of its owner's only.
func saveAccess(dir string, ca []byte, token gpuai.Secret) error {
	if err := os.WriteFile(filepath.Join(dir, accessCA), ca, 0o600); err != nil {
		return fmt.Errorf("keeping the region's CA: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, accessToken), []byte(token.Reveal()), 0o600); err != nil {
		return fmt.Errorf("keeping the operator's token: %w", err)
	}
	return nil
}

func readAccess(dir string) (Access, error) {
	ca, err := os.ReadFile(filepath.Join(dir, accessCA))
	if err != nil {
		return Access{}, fmt.Errorf("reading the region's CA: %w", err)
	}
	token, err := os.ReadFile(filepath.Join(dir, accessToken))
	if err != nil {
		return Access{}, fmt.Errorf("reading the operator's token: %w", err)
	}
	return NewAccess(ca, gpuai.NewSecret(strings.TrimSpace(string(token))))
}

// client returns a client of servers with connections of its own, by t, which it
// has trust the region.
func (a Access) client(t *http.Transport, addrs []string) (*client.Client, error) {
	return client.New(client.Config{Addrs: addrs, HTTP: a.http(t), Token: a.Token})
}

func (a Access) http(t *http.Transport) *http.Client {
	t.TLSClientConfig = a.TLS
	return &http.Client{Transport: t}
}

// operator makes the first operator's token of a region with authentication, and
// keeps it beside the servers' directories.
func (cfg *KeepConfig) operator(ctx context.Context, first *member) (Access, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	go func() {
		select {
		case <-first.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	ca, token, err := cfg.Operator(ctx, first.Member)
	select {
	case <-first.gone:
		return Access{}, first.problem("ended at its start")
	default:
	}
	if err != nil {
		return Access{}, err
	}
	if err := saveAccess(cfg.Dir, ca, token); err != nil {
		return Access{}, err
	}
	return NewAccess(ca, token)
}

// joinToken makes a token with which one server joins.
func (a Access) joinToken(ctx context.Context, first Member) (gpuai.Secret, error) {
	c, err := a.client(&http.Transport{DisableKeepAlives: true}, []string{"https://" + first.HTTP})
	if err != nil {
		return gpuai.Secret{}, err
	}
	made, err := c.CreateJoinToken(ctx, gpuai.JoinTokenRequest{Join: gpuai.IdentityServer})
	return gpuai.NewSecret(made.Token), err
}

// voting waits until every server votes: who has just joined catches up first.
func (ms members) voting(ctx context.Context, acc Access) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	c, err := acc.client(&http.Transport{DisableKeepAlives: true}, ms.urls("https://"))
	if err != nil {
		return err
	}
	for {
		all, err := c.Members(ctx, false)
		voters := 0
		for i := range all.Members {
			if all.Members[i].Voter {
				voters++
			}
		}
		if err == nil && voters == len(ms) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d servers vote: %w", voters, len(ms), errors.Join(err, ctx.Err()))
		case <-time.After(pollReady):
		}
	}
}
