package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gpuai/gpuai/store"
)

// A server that forms a region by itself has authentication unless it is told
// otherwise; one of a list of peers, or of a region that has none, does not.
func TestSecureByDefault(t *testing.T) {
	joined := t.TempDir()
	if err := os.WriteFile(filepath.Join(joined, store.CredentialFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  serverConfig
		want bool
	}{
		"alone":          {serverConfig{Data: t.TempDir(), Bootstrap: true}, true},
		"no directory":   {serverConfig{Data: filepath.Join(t.TempDir(), "new"), Bootstrap: true}, true},
		"plaintext":      {serverConfig{Data: t.TempDir(), Bootstrap: true, Insecure: true}, false},
		"peers":          {serverConfig{Data: t.TempDir(), Bootstrap: true, Peers: []string{"a=127.0.0.1:1"}}, false},
		"a token":        {serverConfig{Data: t.TempDir(), JoinToken: "gpujoin_x"}, true},
		"a certificate":  {serverConfig{Data: joined}, true},
		"nothing at all": {serverConfig{Data: t.TempDir()}, false},
	} {
		if got := c.cfg.secure(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
