package main

import (
	"cmp"
	"context"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/integration/access"
)

// certificateTTL is how long certificates of regions with authentication are good: so
// short that all of them are renewed while faults last.
const certificateTTL = "30s"

// form starts the servers of a region with authentication for the first time: the
// first makes its CA, the others join with a token each. All speak TLS only.
func (r *region) form() error {
	ctx, cancel := context.WithTimeout(r, 2*patience)
	defer cancel()
	first := r.members[0]
	if err := r.launch(first, nil, "--bootstrap"); err != nil {
		return err
	}
	reached, err := access.Bootstrap(ctx, first.dir, r.urlsOf([]string{first.http})[0])
	if err != nil {
		return err
	}
	r.access = reached
	if err := r.connect(); err != nil {
		return err
	}
	for _, m := range r.members[1:] {
		env, err := r.joinEnv(ctx, first, gpuai.IdentityServer)
		if err != nil {
			return err
		}
		if err := r.launch(m, env, "--join", cmp.Or(first.joins, first.listen)); err != nil {
			return err
		}
	}
	return access.AwaitVoters(ctx, first.api, len(r.members))
}

// joinEnv makes a token with which one server or node joins.
func (r *region) joinEnv(ctx context.Context, m *member, kind gpuai.IdentityKind) ([]string, error) {
	c, err := r.client(patience, patience, m.http)
	if err != nil {
		return nil, err
	}
	return access.JoinEnv(ctx, c, kind)
}

// nodeEnv is the environment in which a node's agent is started: with a join token,
// in a region with authentication.
func (r *region) nodeEnv() ([]string, error) {
	if r.access == nil {
		return nil, nil
	}
	return access.JoinEnv(r, r.api, gpuai.IdentityNode)
}
