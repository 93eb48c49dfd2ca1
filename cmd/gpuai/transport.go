package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
)

// maxRecorded bounds an answer that is kept for -o json.
const maxRecorded = 64 << 20

// A recorder passes requests on, and keeps the last JSON answer as it came: -o
// json prints that, so that fields which this build does not know are not lost.
// With curl it prints each call as a curl command. Safe for concurrent use.
type recorder struct {
	next http.RoundTripper
	talk io.Writer
	curl bool // print the calls to talk

	mu      sync.Mutex // guards below
	body    []byte
	sentKey string // the last idempotency key
	waits   bool   // it has been said that no server answers
}

// RoundTrip implements http.RoundTripper.
func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if r.curl {
		if err := printCurl(r.talk, req); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	if k := req.Header.Get("Idempotency-Key"); k != "" {
		r.sentKey = k
	}
	r.mu.Unlock()
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		r.missed(req, err)
		return nil, err
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/json" && kind != "application/problem+json" {
		return resp, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRecorded))
	resp.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", req.URL.Host, err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.body = body
	return resp, nil
}

// missed says once that the command goes on trying.
func (r *recorder) missed(req *http.Request, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if unknown := new(x509.UnknownAuthorityError); errors.As(err, unknown) {
		return // nobody is asked again
	}
	if !r.waits && req.Context().Err() == nil {
		r.waits = true
		fmt.Fprintf(r.talk, "no answer from %s, still trying\n", req.URL.Host)
	}
}

// last returns the last JSON answer.
func (r *recorder) last() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.body
}

// key returns the last idempotency key sent, "" when there is none. It is safe
// on nil.
func (r *recorder) key() string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sentKey
}

// printCurl prints req as a command for a shell.
func printCurl(w io.Writer, req *http.Request) error {
	var b strings.Builder
	b.WriteString("curl -sS")
	if req.Method != http.MethodGet {
		b.WriteString(" -X " + req.Method)
	}
	for _, h := range [...]string{"Content-Type", "Idempotency-Key", "Accept", "If-Match"} {
		if v := req.Header.Get(h); v != "" {
			b.WriteString(" -H " + shellQuote(h+": "+v))
		}
	}
	if req.Header.Get("Authorization") != "" { // the shell has it, the screen does not
		b.WriteString(` -H "Authorization: Bearer $GPUAI_TOKEN"`)
	}
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return fmt.Errorf("reading the request's body: %w", err)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			return fmt.Errorf("reading the request's body: %w", err)
		}
		if len(data) > 0 {
			b.WriteString(" --data-binary " + shellQuote(string(data)))
		}
	}
	_, err := fmt.Fprintf(w, "%s %s\n", b.String(), shellQuote(req.URL.String()))
	return err
}

// shellQuote quotes s for a POSIX shell.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
