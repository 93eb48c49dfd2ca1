package httpd

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// TestCase26AcceptRate: agents that all come at once are let in at a bounded
// rate, and those for whom there is no turn within a second are sent away with
// a time to come back.
func TestCase26AcceptRate(t *testing.T) {
	const perSecond, agents = 20, 60
	s := serve(t, newTwin(), func(c *Config) { c.SessionsPerSecond = perSecond })
	began := time.Now()
	var opened, refused atomic.Int64
	var wg sync.WaitGroup
	for range agents {
		wg.Go(func() {
			_, resp, err := dial(t, s.URL, gpuai.SessionProtocol)
			switch {
			case err == nil:
				opened.Add(1)
			case resp != nil && resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") != "":
				refused.Add(1)
			default:
				t.Errorf("an agent was answered %v: %v", resp, err)
			}
		})
	}
	wg.Wait()
	// The burst is a tenth, and whoever waits does so for a second at most.
	most := perSecond/10 + int64(perSecond*(time.Since(began).Seconds()+0.1))
	if n := opened.Load(); n < perSecond || n > most {
		t.Errorf("%d of %d agents were let in within %v, want %d to %d", n, agents, time.Since(began), perSecond, most)
	}
	if refused.Load() == 0 || opened.Load()+refused.Load() != agents {
		t.Errorf("%d let in and %d sent away, of %d", opened.Load(), refused.Load(), agents)
	}
}
