package blobs

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"
)

// An s3Server is an S3 server with one bucket, "bucket", that knows one key and
// checks the signature of every request.
type s3Server struct {
	url string

	mu     sync.Mutex // guards below
	signed []string   // the headers that requests had signed
	puts   int
}

func startS3(t *testing.T) *s3Server {
	t.Helper()
	mem := s3mem.New()
	if err := mem.CreateBucket(t.Context(), "bucket"); err != nil {
		t.Fatal(err)
	}
	fake := gofakes3.New(mem, gofakes3.WithV4Auth(map[string]string{"the-id": "the-secret"})).Server()
	s := &s3Server{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, after, _ := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders=")
		signed, _, _ := strings.Cut(after, ",")
		s.mu.Lock()
		s.signed = append(s.signed, signed)
		if r.Method == http.MethodPut {
			s.puts++
		}
		s.mu.Unlock()
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.url = srv.URL
	t.Setenv("AWS_ACCESS_KEY_ID", "the-id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	return s
}

func (s *s3Server) store(scheme string) string {
	q := "?endpoint=" + s.url
	if scheme == "s3" {
		q += "&region=eu-west-1"
	}
	return scheme + "://bucket/some/prefix" + q
}

// What is signed for Google does not have the header that its front end changes.
func TestGoogleSignatureLeavesAcceptEncodingOut(t *testing.T) {
	srv := startS3(t)
	for scheme, want := range map[string]bool{"s3": true, "gs": false} {
		s := open(t, srv.store(scheme))
		if err := s.Put(t.Context(), "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
		srv.mu.Lock()
		last := srv.signed[len(srv.signed)-1]
		srv.mu.Unlock()
		if got := strings.Contains(last, "accept-encoding"); got != want {
			t.Errorf("%s signs %q", scheme, last)
		}
	}
}

func TestWrongCredentialsAreTold(t *testing.T) {
	srv := startS3(t)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	s := open(t, srv.store("s3"))
	if err := s.Put(t.Context(), "a", []byte("x")); err == nil || !strings.Contains(err.Error(), "store a: ") {
		t.Errorf("%v", err)
	}
}
