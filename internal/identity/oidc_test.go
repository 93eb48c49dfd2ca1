package identity

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
)

// A provider that hangs is asked once, whoever logs in meanwhile, and nobody waits
// for it longer than they wish to.
func TestProviderThatHangsIsAskedOnce(t *testing.T) {
	var asked atomic.Int64
	came, release := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			close(came)
		}
		<-release
		http.Error(w, "no", http.StatusInternalServerError)
	}))
	defer srv.Close()
	p := NewProvider(srv.URL, "x")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := p.Verify(ctx, "x.y.z"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrIDToken) {
				t.Errorf("who gave up: %v", err)
			}
		})
	}
	<-came
	cancel()
	wg.Wait() // while the provider hangs still
	close(release)
	for range 20 { // it has failed, or fails now, and is left alone
		if _, err := p.Verify(t.Context(), "x.y.z"); err == nil || errors.Is(err, ErrIDToken) {
			t.Errorf("of a provider that fails: %v", err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the provider was asked %d times", n)
	}
}
