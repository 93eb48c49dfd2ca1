package server

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A region of mixed versions stays at the level that all know, and is raised
// when the last server is upgraded; one that is too old is refused from then on.
func TestFeatureLevelIsRaisedOnceAllKnowIt(t *testing.T) {
	t.Parallel()
	r := &region{t: t}
	r.servers = startRegionOf(t, 3, func(i int, c *Config) {
		if i > 0 {
			c.MaxFeatureLevel = 1
		}
	}).servers
	a := join(t, r.servers[0].Server, helloOf("n1", 4))
	stop := a.keepBeating()
	defer stop()
	r.submit(jobSpec("before", 1), "")
	for i := 2; i > 0; i-- {
		for _, m := range r.servers {
			if m.level() != 1 {
				t.Fatalf("server %s is at level %d while %d servers are old", m.cfg.ID, m.level(), i)
			}
		}
		m := r.servers[i]
		r.halt(m)
		m.cfg.MaxFeatureLevel = 0
		r.restart(m)
	}
	for _, m := range r.servers {
		eventually(t, "the newest level on server "+string(m.cfg.ID), func() bool { return m.level() == fsm.MaxLevel })
	}
	r.equalDigests()
	m := r.followers()[0]
	r.halt(m)
	m.cfg.MaxFeatureLevel = 1
	m.cfg.HTTP, m.cfg.Raft, m.cfg.RaftAddr = listen(t), nil, m.RaftAddr()
	_, err := Open(m.cfg)
	if !errors.Is(err, fsm.ErrLevel) || !strings.Contains(err.Error(), "--max-feature-level") {
		t.Errorf("a downgrade: %v", err)
	}
}

// A server that is too old, and has nothing yet, is told by the leader, or by the
// log that it is sent, whichever comes first.
func TestOldServerIsRefusedAtJoin(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	for _, m := range r.servers {
		eventually(t, "the newest level", func() bool { return m.level() == fsm.MaxLevel })
	}
	m := r.followers()[0]
	r.halt(m)
	m.cfg.MaxFeatureLevel, m.cfg.DataDir, m.cfg.Bootstrap = 1, t.TempDir(), false
	m.cfg.HTTP, m.cfg.Raft, m.cfg.RaftAddr = listen(t), nil, m.RaftAddr()
	r.start(m)
	select {
	case err := <-m.done:
		m.stop = nil
		if !errors.Is(err, fsm.ErrLevel) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("it goes on")
	}
}

func TestLevelPeerRefusesGarbage(t *testing.T) {
	t.Parallel()
	s := startRegion(t, 1).servers[0].Server
	if _, err := s.levelPeer(t.Context(), nil); err == nil {
		t.Error("an empty question was answered")
	}
	if _, _, err := s.askLevel(t.Context(), gpuai.ServerID("nobody")); err == nil {
		t.Error("nobody answered")
	}
}

// A version that does not know the question forwards it to the leader, as any
// request of a client: the leader's own answer must not count for it.
func TestLevelWaitsForAServerThatDoesNotKnowTheQuestion(t *testing.T) {
	t.Parallel()
	r := startRegionOf(t, 3, func(_ int, c *Config) { c.MaxFeatureLevel = 1 })
	m := r.followers()[0]
	r.halt(m)
	m.cfg.HTTP, m.cfg.Raft, m.cfg.RaftAddr = listen(t), nil, m.RaftAddr()
	s, err := Open(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	knows := s.peers.Handler
	s.peers.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == pathLevel {
			s.public.Handler.ServeHTTP(w, req)
			return
		}
		knows.ServeHTTP(w, req)
	})
	r.run(m, s)
	eventually(t, "ready server again", func() bool { return m.Status().Ready })
	for _, other := range r.servers {
		if other != m {
			r.halt(other)
			other.cfg.MaxFeatureLevel = 0
			r.restart(other)
		}
	}
	var lead *reign
	eventually(t, "leader of a newer version", func() bool {
		for _, other := range r.servers {
			if lead = other.reign.Load(); lead != nil && other != m {
				return true
			}
		}
		_ = m.node.TransferLeadership(t.Context()) // it may not lead
		return false
	})
	if common, behind := lead.commonLevel(t.Context()); common != 0 || behind != string(m.cfg.ID) {
		t.Errorf("level %d is common, and %q is behind", common, behind)
	}
	if level := m.level(); level != 1 {
		t.Errorf("the level is %d", level)
	}
}
