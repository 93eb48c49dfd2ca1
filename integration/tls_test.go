package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/server"
)

// secureRegion is a region with authentication in this process.
type secureRegion struct {
	t       *testing.T
	servers []*server.Server
	stop    map[gpuai.ServerID]func()
}

func formRegion(t *testing.T) *secureRegion {
	r := &secureRegion{t: t, stop: map[gpuai.ServerID]func(){}}
	var cfgs []server.Config
	for _, id := range []gpuai.ServerID{"a", "b", "c"} {
		cfg := server.Config{ID: id, DataDir: filepath.Join(t.TempDir(), string(id))}
		for _, l := range []*net.Listener{&cfg.HTTP, &cfg.Raft} {
			var err error
			if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
		}
		cfgs = append(cfgs, cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all, err := server.Form(ctx, cfgs, func(s *server.Server) {
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		end := func() {
			stop()
			if err := <-done; err != nil {
				t.Errorf("server %s: %v", s.Status().Server, err)
			}
			done <- nil
		}
		r.stop[s.Status().Server] = end
		t.Cleanup(end)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.servers = all
	return r
}

// leader returns the server that leads.
func (r *secureRegion) leader() *server.Server {
	r.t.Helper()
	var found *server.Server
	waitFor(r.t, 30*time.Second, "a leader", func() bool {
		for _, s := range r.servers {
			if st := s.Status(); st.IsLeader && st.Ready {
				found = s
				return true
			}
		}
		return false
	})
	return found
}

func waitFor(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(d)
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("after %s: no %s", d, what)
		}
	}
}

// An agent that has joined with a token goes on over TLS when its region's leader
// is gone, and so does its task.
func TestSecureRegionKeepsItsAgents(t *testing.T) {
	r := formRegion(t)
	ctx := t.Context()
	lead := r.leader()
	token, err := lead.CreateJoinToken(ctx, &gpuai.JoinTokenRequest{Join: gpuai.IdentityNode})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lead.CreateTenant(ctx, gpuai.TenantRequest{ID: gpuai.DefaultTenant}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "sim.json")
	src := fmt.Sprintf(`{"seed":"n1","devices":[{"vendor":"nvidia","model":"H100-SXM5-80GB","memory_bytes":%d,"count":1}]}`, 80<<30)
	if err := os.WriteFile(config, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	var addrs []string
	for _, s := range r.servers {
		addrs = append(addrs, s.HTTPAddr())
	}
	args := []string{
		"agent", "run", "--id", "n1", "--data", filepath.Join(dir, "n1"), "--servers", strings.Join(addrs, ","), "--join-token", token.Token,
		"--driver", "sim=" + program("gpuai-driver-sim") + "," + config, "--watchdog", program("gpuai-watchdog"),
		"--cpu", "4", "--memory", "4GiB", "--allow-process-runtime",
	}
	start(t, "agent", "gpuai", args...)
	spec := &gpuai.JobSpec{Name: "sleeper", Groups: []gpuai.Group{{
		Name: "g", Count: 1,
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 100, Memory: 1 << 20},
		Task:      gpuai.TaskSpec{Command: []string{"sleep", "600"}, Runtime: gpuai.RuntimeProcess},
	}}}
	spec.Defaults()
	waitFor(t, time.Minute, "ready node", func() bool {
		n, err := r.leader().Node("n1", "")
		return err == nil && n.State == gpuai.NodeReady
	})
	job, err := r.leader().Submit(ctx, httpd.SubmitRequest{Spec: spec, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	running := func(s *server.Server) bool {
		leases, _, err := s.Leases(httpd.LeaseQuery{Page: httpd.Page{Limit: 10}, Live: true, Node: "n1"})
		return err == nil && len(leases) == 1 && leases[0].Job == job.Job.ID && leases[0].State == gpuai.LeaseRunning
	}
	waitFor(t, time.Minute, "running task", func() bool { return running(r.leader()) })

	old := r.leader()
	r.stop[old.Status().Server]()
	var left []*server.Server
	for _, s := range r.servers {
		if s != old {
			left = append(left, s)
		}
	}
	r.servers = left
	index := r.leader().Status().Index
	waitFor(t, time.Minute, "beats that the new leader confirms, with the task still running", func() bool {
		n, err := r.leader().Node("n1", "")
		return err == nil && n.State == gpuai.NodeReady && running(r.leader()) && r.leader().Status().Index > index+3
	})
	if err := r.leader().RevokeIdentity(ctx, gpuai.Identity{Kind: gpuai.IdentityNode, Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, time.Minute, "node that is silent, since it was revoked", func() bool {
		n, err := r.leader().Node("n1", "")
		return err == nil && n.State != gpuai.NodeReady
	})
}
