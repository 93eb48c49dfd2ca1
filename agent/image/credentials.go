package image

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/gpuai/gpuai"
)

// credentials reads the node's store of registry credentials: a file in the
// form of docker's config.json, {"auths": {"registry.example.com": {"auth":
// base64 of user:password}}}, or with username and password. It is read again
// when it has changed, so that a rotated password needs no restart. Credential
// helpers are programs, and are not run.
type credentials struct {
	path string // "" for none

	mu   sync.Mutex // guards below
	seen fs.FileInfo
	auth map[string]credential
}

// A credential is what a registry wants to see.
type credential struct {
	user                      string
	password, token, identity gpuai.Secret
}

// authenticator gives it to the library that talks to registries, which keeps
// it for as long as one image is fetched.
func (c *credential) authenticator() authn.Authenticator {
	return authn.FromConfig(authn.AuthConfig{
		Username: c.user, Password: c.password.Reveal(),
		RegistryToken: c.token.Reveal(), IdentityToken: c.identity.Reveal(),
	})
}

var _ authn.Keychain = (*credentials)(nil)

// maxCredentials bounds the file.
const maxCredentials = 1 << 20

// Resolve returns the credentials for a repository: its own, or its registry's.
func (c *credentials) Resolve(target authn.Resource) (authn.Authenticator, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		return nil, err
	}
	for key := target.String(); key != ""; {
		if a, ok := c.auth[key]; ok {
			return a.authenticator(), nil
		}
		i := strings.LastIndexByte(key, '/')
		key = key[:max(i, 0)]
	}
	return authn.Anonymous, nil
}

// CheckCredentials says what is wrong with a file of registry credentials.
func CheckCredentials(path string) error { return (&credentials{path: path}).check() }

// check says what is wrong with the file.
func (c *credentials) check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.load()
}

// load reads the file if it is new. mu is held.
func (c *credentials) load() error {
	if c.path == "" {
		return nil
	}
	fi, err := os.Stat(c.path)
	switch {
	case err != nil:
		return fmt.Errorf("registry credentials: %w", err)
	case fi.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("registry credentials: %s can be read by others (mode %04o): chmod 600 it", c.path, fi.Mode().Perm())
	case fi.Size() > maxCredentials:
		return fmt.Errorf("registry credentials: %s is larger than %d bytes", c.path, maxCredentials)
	case c.seen != nil && os.SameFile(fi, c.seen) && fi.ModTime().Equal(c.seen.ModTime()) && fi.Size() == c.seen.Size():
		return nil
	}
	b, err := os.ReadFile(c.path)
	if err != nil {
		return fmt.Errorf("registry credentials: %w", err)
	}
	auth, err := parseCredentials(b)
	if err != nil {
		return fmt.Errorf("registry credentials: %s %w", c.path, err)
	}
	c.auth, c.seen = auth, fi
	return nil
}

// parseCredentials reads docker's form. Its errors never quote the file.
func parseCredentials(b []byte) (map[string]credential, error) {
	var file struct {
		Auths map[string]struct {
			Auth     gpuai.Secret `json:"auth"`
			Username string       `json:"username"`
			Password gpuai.Secret `json:"password"`
			Token    gpuai.Secret `json:"registrytoken"`
			Identity gpuai.Secret `json:"identitytoken"`
		} `json:"auths"`
	}
	if json.Unmarshal(b, &file) != nil {
		return nil, errors.New(`is not JSON of the form {"auths": {"REGISTRY": {"username": …, "password": …}}}`)
	}
	out := map[string]credential{}
	for registry, a := range file.Auths {
		c := credential{user: a.Username, password: a.Password, token: a.Token, identity: a.Identity}
		if !a.Auth.IsZero() {
			plain, err := base64.StdEncoding.DecodeString(a.Auth.Reveal())
			user, password, ok := strings.Cut(string(plain), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("has for %q an auth that is not the base64 of user:password", clip(registry))
			}
			c.user, c.password = user, gpuai.NewSecret(password)
		}
		out[registryKey(registry)] = c
	}
	return out, nil
}

// registryKey is a registry as references name it; docker's file has URLs too.
func registryKey(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(s, "/"), "/v1"), "/v2")
	if s == "docker.io" || s == "index.docker.io" {
		return name.DefaultRegistry
	}
	return s
}
