package server

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
)

// BenchmarkSecureSessions has b.N agents, with a certificate each, connect to one
// server over TLS, stay, and renew their certificates. Both ends are in this process:
// what it reports is of both, so the server takes less.
//
//	go test ./server -run '^$' -bench SecureSessions -benchtime 5000x
func BenchmarkSecureSessions(b *testing.B) {
	s := oneSecure(b)
	certs := make([]*identity.Source, b.N)
	for i := range certs {
		certs[i] = certOf(b, s, fmt.Sprintf("n%d", i))
	}
	before := held()
	sessions := make([]*client.Session, b.N)
	b.ResetTimer()
	began := time.Now()
	eachOf(b.N, func(i int) { sessions[i] = sessionOf(b, s, certs[i], fmt.Sprintf("n%d", i)) })
	took := time.Since(began)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/took.Seconds(), "connects/s")
	b.ReportMetric(float64(held()-before)/float64(b.N), "B/node")
	began = time.Now()
	eachOf(b.N, func(i int) { renewOf(b, s, certs[i], fmt.Sprintf("n%d", i)) })
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "renewals/s")
	for _, x := range sessions {
		x.Close()
	}
}

// held is the memory of heap and stacks that is in use, once garbage is collected.
func held() int64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// eachOf calls f for 0 … n-1, some at a time.
func eachOf(n int, f func(int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

func oneSecure(b *testing.B) *Server {
	var cfg Config
	cfg.ID, cfg.DataDir, cfg.HTTPAddr, cfg.RaftAddr = "s1", b.TempDir(), "127.0.0.1:0", "127.0.0.1:0"
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	all, err := Form(ctx, []Config{cfg}, func(s *Server) { go func() { done <- s.Run(ctx) }() })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return all[0]
}

// certOf makes a node's certificate as a join would, without the join.
func certOf(b *testing.B, s *Server, name string) *identity.Source {
	key, csr, err := identity.NewKey(nodeNamed(name), nil)
	if err != nil {
		b.Fatal(err)
	}
	req, err := identity.ReadRequest(csr)
	if err != nil {
		b.Fatal(err)
	}
	out, err := s.issue(req, ^gpuai.Stamp(0))
	if err != nil {
		b.Fatal(err)
	}
	cred, err := identity.CredentialOf(key, &out)
	if err != nil {
		b.Fatal(err)
	}
	src := identity.NewSource(identity.SourceConfig{})
	src.Set(cred)
	return src
}

func benchClient(b *testing.B, s *Server, src *identity.Source) *client.Client {
	t := &http.Transport{TLSClientConfig: src.ClientConfig(), DisableKeepAlives: true}
	c, err := client.New(client.Config{Addrs: []string{"https://" + s.HTTPAddr()}, HTTP: &http.Client{Transport: t}})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// sessionOf opens a session and waits for its welcome, again where the server
// takes no more at the moment.
func sessionOf(b *testing.B, s *Server, src *identity.Source, name string) *client.Session {
	c := benchClient(b, s, src)
	for {
		x, err := c.DialSession(context.Background(), "https://"+s.HTTPAddr())
		if err == nil {
			h := helloOf(name, 1)
			if err = x.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameHello, Hello: &h}); err == nil {
				var f gpuai.Frame
				if f, err = x.Recv(context.Background()); err == nil && f.Kind == gpuai.FrameWelcome {
					return x
				}
			}
			x.Close()
		}
		if err != nil && !strings.Contains(err.Error(), "rate_limited") && !isCode(err, gpuai.RateLimited) {
			b.Errorf("%s: %v", name, err)
			return nil
		}
	}
}

func renewOf(b *testing.B, s *Server, src *identity.Source, name string) {
	key, csr, err := identity.NewKey(nodeNamed(name), nil)
	if err != nil {
		b.Error(err)
		return
	}
	out, err := benchClient(b, s, src).Renew(context.Background(), csr)
	if err != nil {
		b.Error(err)
		return
	}
	if cred, err := identity.CredentialOf(key, &out); err == nil {
		src.Set(cred)
	} else {
		b.Error(err)
	}
}
