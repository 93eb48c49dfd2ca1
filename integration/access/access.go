// Package access is how the programs that show the real binaries at work reach the
// regions with authentication that they form: by what a server leaves in its data
// directory, as an operator on its host would.
package access

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

// A Region is what is known of one: whom to trust, and its operator's token.
type Region struct {
	CA       string // file of the CA's certificate
	Operator gpuai.Secret
	trust    *identity.Trust
}

// pollEvery is the time between two looks at a directory.
const pollEvery = 20 * time.Millisecond

// Trust returns what is known of the region of a server on this host before anybody
// has a token. It waits for the server's first certificate.
func Trust(ctx context.Context, data string) (*Region, error) {
	r := &Region{CA: filepath.Join(data, store.TrustFile)}
	err := nursery.Poll(ctx, "the region's CA", pollEvery, func() (bool, error) {
		text, err := os.ReadFile(r.CA)
		if err == nil {
			r.trust, err = identity.ReadTrustFile(text)
		}
		return err == nil, nil // it is being written
	})
	return r, err
}

// Bootstrap makes the first operator's token of a region, as gpuai operator
// bootstrap does, by the data directory of the server that forms it.
func Bootstrap(ctx context.Context, data, url string) (*Region, error) {
	r, err := Trust(ctx, data)
	if err != nil {
		return nil, err
	}
	secret, err := os.ReadFile(filepath.Join(data, server.BootstrapFile))
	if err != nil {
		return nil, fmt.Errorf("read the secret for the first operator's token: %w", err)
	}
	c, err := r.As(gpuai.Secret{}, url)
	if err != nil {
		return nil, err
	}
	made, err := c.Bootstrap(ctx, gpuai.NewSecret(strings.TrimSpace(string(secret))))
	if err != nil {
		return nil, fmt.Errorf("make the first operator's token: %w", err)
	}
	r.Operator = gpuai.NewSecret(made.Text)
	return r, nil
}

// TLS returns the configuration of clients that trust this region's servers only.
func (r *Region) TLS() *tls.Config { return identity.TrustConfig(r.trust) }

// As returns a client of servers, by their URLs, with a token; the zero value is none.
func (r *Region) As(token gpuai.Secret, urls ...string) (*client.Client, error) {
	return client.New(client.Config{Addrs: urls, TLS: r.TLS(), Token: token})
}

// Client returns the operator's client of servers.
func (r *Region) Client(urls ...string) (*client.Client, error) { return r.As(r.Operator, urls...) }

// JoinEnv makes a token with which one node or server joins, and returns it as the
// environment of gpuai agent run and gpuai server run: a command line is no secret.
func JoinEnv(ctx context.Context, operator *client.Client, kind gpuai.IdentityKind) ([]string, error) {
	t, err := operator.CreateJoinToken(ctx, gpuai.JoinTokenRequest{Join: kind})
	if err != nil {
		return nil, fmt.Errorf("make a join token: %w", err)
	}
	return []string{"GPUAI_JOIN_TOKEN=" + t.Token}, nil
}

// AwaitVoters waits until so many servers vote and answer.
func AwaitVoters(ctx context.Context, operator *client.Client, n int) error {
	return nursery.Poll(ctx, fmt.Sprintf("%d voters", n), pollEvery, func() (bool, error) {
		bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		all, err := operator.Members(bounded, false)
		voters := 0
		for i := range all.Members {
			if all.Members[i].Voter {
				voters++
			}
		}
		return err == nil && voters == n, nil // there may be no leader just now
	})
}

// Source returns the certificate of a server on this host, by its data directory, as
// the server itself reads it: to stand in for it.
func Source(data string) (*identity.Source, error) {
	text, err := os.ReadFile(filepath.Join(data, store.KeyringFile))
	if err != nil {
		return nil, fmt.Errorf("read a server's keys: %w", err)
	}
	ring, err := identity.ReadKeyring(text)
	if err != nil {
		return nil, err
	}
	if text, err = os.ReadFile(filepath.Join(data, store.CredentialFile)); err != nil {
		return nil, fmt.Errorf("read a server's certificate: %w", err)
	}
	held, err := identity.ReadCredential(text, ring)
	if err != nil {
		return nil, err
	}
	s := identity.NewSource(identity.SourceConfig{})
	s.Set(held)
	return s, nil
}
