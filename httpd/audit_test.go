package httpd

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestAuditExport(t *testing.T) {
	b := newTwin()
	s, doc := serve(t, b), newContract(t)
	resp, body := ask(t, s, "GET", "/v1/operator/audit?since=11", "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	n := 0
	for line := range strings.Lines(body) {
		var v any
		if err := decodeAny(line, &v); err != nil {
			t.Fatal(err)
		}
		if err := doc.doc.Components.Schemas["AuditLine"].Value.VisitJSON(v); err != nil {
			t.Errorf("%s does not fit the document: %v", line, err)
		}
		n++
	}
	if n != 3 || !strings.Contains(body, `"index":12`) {
		t.Errorf("%d lines: %s", n, body)
	}
	b.fail = errors.New("disk")
	if resp, err := http.Get(s.URL + "/v1/operator/audit"); err == nil {
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("an export that breaks off looks whole")
		}
	}
}

// denied refuses what it is asked, as a server does that knows its tenants.
type denied struct {
	*twin
	err *gpuai.Error
}

func (d denied) StopJob(context.Context, string, string) (gpuai.Job, error) {
	return gpuai.Job{}, d.err
}

// Who does not see all there is, and asks for what it is not told of, is noted: it may
// be guessing.
func TestCase33GuessesAreNoted(t *testing.T) {
	s := newSecured()
	twoTenants(t, s)
	for _, c := range []struct {
		role, method, target, request string
		noted                         bool
	}{
		{"read", "GET", "/v1/jobs/guess", "GET /v1/jobs/{job}", true},
		{"submit", "POST", "/v1/jobs/guess/stop", "POST /v1/jobs/{job}/stop", true},
		{"read", "GET", "/v1/leases/7", "GET /v1/leases/{lease}", true},
		{"contributor", "GET", "/v1/nodes/gpu-1", "GET /v1/nodes/{node}", true},
		{"operator", "GET", "/v1/jobs/guess", "", false},
		{"read", "GET", "/v1/no-such-path", "", false},
		{"nobody", "GET", "/v1/no-such-path", "", false},
		{"read", "GET", "/v1/jobs/same", "", false},
	} {
		s.b.notes = nil
		s.as(c.role, c.method, c.target, "")
		if !c.noted && len(s.b.notes) == 0 {
			continue
		}
		if len(s.b.notes) != 1 || s.b.notes[0].Request != c.request || s.b.notes[0].Code != gpuai.NotFound || !strings.HasPrefix(s.b.notes[0].Actor, "token/") {
			t.Errorf("%s %s of %s: noted %+v", c.method, c.target, c.role, s.b.notes)
		}
	}
}

// Refused requests are noted with who asked for which route; what a command was
// refused with, and what is not refused for who asked, is not.
func TestRefusedRequestsAreNoted(t *testing.T) {
	for _, c := range []struct {
		err   *gpuai.Error
		noted bool
	}{
		{gpuai.NewError(gpuai.Unauthenticated, "no"), true},
		{gpuai.NewError(gpuai.Forbidden, "no"), true},
		{gpuai.NewError(gpuai.QuotaExceeded, "no"), true},
		{&gpuai.Error{Code: gpuai.QuotaExceeded, Index: 7}, false}, // the command is in the audit itself
		{gpuai.NewError(gpuai.NotFound, "no"), false},
		{gpuai.NewError(gpuai.RateLimited, "no"), false},
	} {
		b := newTwin()
		h := New(Config{Hosts: testHosts, Backend: denied{b, c.err}})
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/jobs/hush-4711/stop", http.NoBody)
		r.RemoteAddr = "10.0.0.7:4711"
		r.Header.Set("Authorization", "Bearer gpu_a_hush")
		h.ServeHTTP(httptest.NewRecorder(), r)
		r.Header.Set(headerPrincipal, string(mustJSON(t, &gpuai.Principal{Actor: "token/A", Tenant: "t", From: "fe80::1", Scopes: gpuai.ScopesOf(gpuai.ScopeOperator)})))
		FromServers(h).ServeHTTP(httptest.NewRecorder(), r)
		if !c.noted {
			if len(b.notes) > 0 {
				t.Errorf("%v: %+v", c.err, b.notes)
			}
			continue
		}
		want := gpuai.AuditNote{Actor: "insecure@10.0.0.7", Request: "POST /v1/jobs/{job}/stop", Code: c.err.Code}
		known := want
		known.Actor, known.Tenant = "token/A@fe80::1", "t"
		if len(b.notes) != 2 || b.notes[0] != want || b.notes[1] != known {
			t.Errorf("%v: noted %+v", c.err, b.notes)
		}
	}
}
