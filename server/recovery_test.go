package server

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// losing is a proxy of a server that does all it is asked and answers nothing to the
// first n writes: it cuts their connections.
func losing(t *testing.T, m *member, n int32) *client.Client {
	t.Helper()
	to, err := url.Parse("http://" + m.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	var writes atomic.Int32
	p := httputil.NewSingleHostReverseProxy(to)
	p.ModifyResponse = func(res *http.Response) error {
		if res.Request.Method == http.MethodPost && writes.Add(1) <= n {
			panic(http.ErrAbortHandler)
		}
		return nil
	}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	c, err := client.New(client.Config{Addrs: []string{srv.URL}, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The first operator's token is made, and its answer is lost: nobody knows its text,
// and the region makes no second first one. Who has a server's data directory gets in
// all the same, also where that answer is lost, too, and ends what was lost.
func TestLostBootstrapIsRecovered(t *testing.T) {
	r := startRegionWith(t, 1, func(c *Config) { c.Authenticate = true })
	m, ctx := r.servers[0], t.Context()
	secret := secretOf(t, m)
	if made, err := losing(t, m, 1).Bootstrap(ctx, gpuai.NewSecret(secret)); err == nil {
		t.Fatalf("the answer was not lost: %+v", made)
	}
	eventually(t, "the token that nobody knows", m.bootstrapped)
	_, err := m.as(t, "").Bootstrap(ctx, gpuai.NewSecret(secret))
	refusedAs(t, err, gpuai.Conflict)

	leave := func(text string) {
		t.Helper()
		if err := LeaveRecovery(m.cfg.DataDir, text); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(m.cfg.DataDir, RecoveryFile)
	leave("gpuboot-one")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	_, err = m.as(t, "").Bootstrap(ctx, gpuai.NewSecret("gpuboot-wrong"))
	refusedAs(t, err, gpuai.Conflict)
	if _, err := losing(t, m, 1).Bootstrap(ctx, gpuai.NewSecret("gpuboot-one")); err == nil {
		t.Fatal("the answer was not lost")
	}
	_, err = m.as(t, "").Bootstrap(ctx, gpuai.NewSecret("gpuboot-one"))
	refusedAs(t, err, gpuai.Conflict) // it was good once

	leave("gpuboot-old")
	old := time.Now().Add(-recoveryGood - time.Minute)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	_, err = m.as(t, "").Bootstrap(ctx, gpuai.NewSecret("gpuboot-old"))
	refusedAs(t, err, gpuai.Unauthenticated)
	leave("gpuboot-shown")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = m.as(t, "").Bootstrap(ctx, gpuai.NewSecret("gpuboot-shown"))
	refusedAs(t, err, gpuai.Conflict)

	leave("gpuboot-two") // in place of that one
	made, err := m.as(t, "").Bootstrap(ctx, gpuai.NewSecret("gpuboot-two"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the server keeps the secret: %v", err)
	}
	op := m.as(t, made.Text)
	tokens, _, err := op.AccessTokens(ctx, client.Page{})
	if err != nil || len(tokens) != 3 {
		t.Fatalf("%d tokens, %v, want the two that were lost and the one that was not", len(tokens), err)
	}
	for _, x := range tokens {
		if x.ID != made.Token.ID && x.UsedAt == 0 {
			if _, err := op.RevokeToken(ctx, x.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.auditTellsOfRecovery(t, made.Token.ID)
}

// auditTellsOfRecovery holds that the audit has the first token, two by recovery, and
// who ended the lost ones.
func (m *member) auditTellsOfRecovery(t *testing.T, by gpuai.AccessTokenID) {
	t.Helper()
	records, _ := m.auditOf(t)
	did := map[string]int{}
	for _, x := range records {
		did[x.Command+" "+x.Actor+" "+x.Change]++
	}
	for what, n := range map[string]int{
		"create_token bootstrap/" + string(m.cfg.ID) + "@127.0.0.1 scopes operator, ttl 90d, the region's first": 1,
		"create_token recovery/" + string(m.cfg.ID) + "@127.0.0.1 scopes operator, ttl 90d":                      2,
		"revoke_token token/" + by.String() + "@127.0.0.1 scopes operator":                                       2,
	} {
		if did[what] != n {
			t.Errorf("the audit has %q %d times, want %d: %v", what, did[what], n, did)
		}
	}
}

// Who logs in is in the audit as who they are, and from where; nobody else's command
// is the server's own.
func TestActorsOfTheUnknown(t *testing.T) {
	for want, p := range map[string]gpuai.Principal{
		"operator@local":     {},
		"anonymous@10.0.0.7": {From: "10.0.0.7"},
		"token/A@10.0.0.7":   {Actor: "token/A", From: "10.0.0.7"},
		"bootstrap/a@::1":    {Actor: "bootstrap/a", From: "::1"},
	} {
		if got := actorOf(&p); got != want {
			t.Errorf("%+v is %s, want %s", p, got, want)
		}
	}
}
