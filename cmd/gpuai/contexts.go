package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/gpuai/gpuai"
)

// A regionContext is how to reach one region as somebody. It holds a token, so
// the file it is in is its owner's only.
type regionContext struct {
	Addrs  []string       `json:"addrs"`
	Tenant gpuai.TenantID `json:"tenant,omitzero"` // of jobs that name none
	Token  string         `json:"token,omitzero"`
	CACert string         `json:"ca_cert,omitzero"` // PEM
	// ClientCert and ClientKey are files of a certificate to show.
	ClientCert string `json:"client_cert,omitzero"`
	ClientKey  string `json:"client_key,omitzero"`
}

// A contextBook is the file of contexts.
type contextBook struct {
	Current  string                    `json:"current,omitzero"`
	Contexts map[string]*regionContext `json:"contexts"`
	path     string
}

// contextPath returns where contexts are kept; "" where there is no place.
func (a *app) contextPath() string {
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.getenv("HOME")
		if home == "" {
			return ""
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "gpuai", "contexts.json")
}

// contexts reads the file of contexts; one that is not there is empty.
func (a *app) contexts() (*contextBook, error) {
	b := &contextBook{Contexts: map[string]*regionContext{}, path: a.contextPath()}
	if b.path == "" {
		return b, nil
	}
	text, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return b, nil
	}
	if err == nil {
		err = json.Unmarshal(text, b, json.RejectUnknownMembers(true))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the contexts in %s: %w", b.path, err)
	}
	return b, nil
}

// save writes the file, which only its owner can read, whole or not at all.
func (b *contextBook) save() error {
	if b.path == "" {
		return errors.New("there is no place for contexts: set XDG_CONFIG_HOME or HOME")
	}
	text, err := json.Marshal(b, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.path), 0o700); err != nil {
		return fmt.Errorf("writing the contexts: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(b.path), "contexts-*") // 0600
	if err != nil {
		return fmt.Errorf("writing the contexts: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), b.path)
	}
	if err != nil {
		return fmt.Errorf("writing the contexts: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// chosen returns the context in use and its name: that of --context, of
// GPUAI_CONTEXT, or the current one; an empty one where there is none.
func (a *app) chosen() (name string, c *regionContext, err error) {
	b, err := a.contexts()
	if err != nil {
		return "", nil, err
	}
	name, said := a.api.context, "--context"
	if name == "" {
		name, said = a.getenv("GPUAI_CONTEXT"), "GPUAI_CONTEXT"
	}
	if name == "" {
		if c := b.Contexts[b.Current]; c != nil {
			return b.Current, c, nil
		}
		return "", &regionContext{}, nil
	}
	if c = b.Contexts[name]; c == nil {
		return "", nil, usageError{fmt.Errorf("%s names the context %q, which is not there: see gpuai context list", said, name)}
	}
	return name, c, nil
}

// A reach is how this command reaches a region.
type reach struct {
	addrs  []string
	token  gpuai.Secret
	tenant gpuai.TenantID
	tls    *tls.Config
}

// reach puts flags, environment and context together. The context's token goes to
// the context's servers only.
func (a *app) reach() (*reach, error) {
	name, c, err := a.chosen()
	if err != nil {
		return nil, err
	}
	r := &reach{tenant: c.Tenant}
	addr := a.api.addr
	if addr == "" {
		addr = a.getenv("GPUAI_ADDR")
	}
	own := addr == ""
	if own {
		if addr = strings.Join(c.Addrs, ","); addr == "" {
			addr = defaultAddr
		}
	}
	scheme := "http"
	if c.CACert != "" || a.getenv("GPUAI_CACERT") != "" {
		scheme = "https" // who knows the CA of a region speaks TLS to it
	}
	for s := range strings.SplitSeq(addr, ",") {
		u, err := urlOf(scheme, s)
		if err != nil {
			return nil, err
		}
		r.addrs = append(r.addrs, u)
	}
	own = own || !slices.ContainsFunc(r.addrs, func(s string) bool { return !slices.Contains(c.Addrs, s) })
	if t := a.getenv("GPUAI_TENANT"); t != "" {
		r.tenant = gpuai.TenantID(t)
	}
	token := a.getenv("GPUAI_TOKEN")
	if token == "" && own {
		token = c.Token
	} else if token == "" && c.Token != "" {
		a.say("the token of context %s is not sent to %s, which is no server of it: set GPUAI_TOKEN, or another --context\n", name, addr)
	}
	r.token = gpuai.NewSecret(strings.TrimSpace(token))
	for _, s := range r.addrs {
		if u, _ := url.Parse(s); token != "" && u.Scheme == "http" && !isLoopbackHost(u.Hostname()) {
			return nil, usageError{fmt.Errorf("the token would go to %s unencrypted: use https, or unset GPUAI_TOKEN", s)}
		}
	}
	r.tls, err = a.clientTLS(c)
	return r, err
}

func isLoopbackHost(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// clientTLS returns what the environment or the context says of certificates.
func (a *app) clientTLS(c *regionContext) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	pem := []byte(c.CACert)
	if path := a.getenv("GPUAI_CACERT"); path != "" {
		var err error
		if pem, err = os.ReadFile(path); err != nil {
			return nil, usageError{fmt.Errorf("GPUAI_CACERT: %w", err)}
		}
	}
	if len(pem) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageError{errors.New("the CA certificate of GPUAI_CACERT or of the context is no PEM certificate")}
		}
	}
	cert, key := a.getenv("GPUAI_CLIENT_CERT"), a.getenv("GPUAI_CLIENT_KEY")
	if cert == "" && key == "" {
		cert, key = c.ClientCert, c.ClientKey
	}
	if cert == "" && key == "" {
		return cfg, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, usageError{fmt.Errorf("the client's certificate (GPUAI_CLIENT_CERT, GPUAI_CLIENT_KEY): %w", err)}
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}

// useContext makes a context the current one, adding it where it is new.
func (a *app) useContext(name string, set func(*regionContext)) error {
	b, err := a.contexts()
	if err != nil {
		return err
	}
	c := b.Contexts[name]
	if c == nil {
		c = &regionContext{}
		b.Contexts[name] = c
	}
	set(c)
	b.Current = name
	return b.save()
}
