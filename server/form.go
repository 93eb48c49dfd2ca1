package server

import (
	"context"
	"fmt"
	"time"

	"github.com/gpuai/gpuai"
)

// formEvery is how often it is looked whether a server that was started is ready.
const formEvery = 10 * time.Millisecond

// Form opens the servers of a new region with authentication in this process,
// in the way in which they are started on hosts of their own: the first forms
// the region and makes its CA, each other joins with a token. run is called with
// each as soon as it is open, and must have it Run beside. Where the directories
// hold a region already its servers are opened as they are, with Peers for where
// they are now. When Form returns
// every server votes, or ctx has ended. After an error those that were opened are
// the caller's to close, too.
func Form(ctx context.Context, cfgs []Config, run func(*Server)) (all []*Server, err error) {
	for i := range cfgs {
		cfg := cfgs[i]
		cfg.Secure = true
		switch known := IsSecure(cfg.DataDir); {
		case known:
		case i == 0:
			cfg.Bootstrap, cfg.Peers = true, nil
		default:
			cfg.Peers = nil
			token, err := all[0].joinToken(ctx)
			if err != nil {
				return all, err
			}
			cfg.Join, cfg.JoinToken = []string{all[0].HTTPAddr()}, token
		}
		s, err := Open(cfg)
		if err != nil {
			return all, fmt.Errorf("server %s: %w", cfg.ID, err)
		}
		all = append(all, s)
		run(s)
		if cfg.Bootstrap || cfg.JoinToken != "" {
			if err := s.awaitVote(ctx); err != nil {
				return all, fmt.Errorf("server %s: %w", cfg.ID, err)
			}
		}
	}
	return all, nil
}

// joinToken makes a token for a server.
func (s *Server) joinToken(ctx context.Context) (string, error) {
	t, err := s.CreateJoinToken(ctx, &gpuai.JoinTokenRequest{Join: gpuai.IdentityServer})
	return t.Token, err
}

// awaitVote returns once this server is ready and votes.
func (s *Server) awaitVote(ctx context.Context) error {
	every := time.NewTicker(formEvery)
	defer every.Stop()
	for {
		ready, why := s.readiness.get()
		if me, ok := s.node.Member(s.cfg.ID); ready && ok && me.Voter {
			return nil
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return fmt.Errorf("it does not vote yet: %s (%w)", why, ctx.Err())
		}
	}
}
