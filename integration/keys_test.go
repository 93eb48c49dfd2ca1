package integration

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// TestCase32OneKeyOneJob sends one idempotency key from many clients to all
// servers at once, again after the leader's death, with another body, and
// again after all servers were killed.
func TestCase32OneKeyOneJob(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.register("n1")
	const key = "the-key"
	first := r.submitEverywhere(key, 12)

	old := r.leader()
	old.kill()
	c := r.client()
	r.sameAnswer(c, key, first, "after the leader's death")
	r.otherBody(c, key)
	r.start(old)
	r.awaitReady()
	for _, m := range r.servers {
		r.sameAnswer(m.client, key, first, "from server "+m.id)
	}
	for _, m := range r.servers {
		m.kill()
	}
	for _, m := range r.servers {
		r.start(m)
	}
	r.awaitReady()
	r.sameAnswer(c, key, first, "after all servers were killed")
	r.otherBody(c, key)

	jobs, _, err := c.Jobs(t.Context(), client.JobQuery{})
	if err != nil || len(jobs) != 1 {
		t.Errorf("there are %d jobs, %v", len(jobs), err)
	}
}

// submitEverywhere submits one job n times at once, spread over the servers.
func (r *region) submitEverywhere(key string, n int) gpuai.Submitted {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	answers := make([]gpuai.Submitted, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			answers[i], errs[i] = r.servers[i%members].client.Submit(ctx, client.SubmitRequest{Spec: smallJob(key), Key: key})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		r.t.Fatalf("submitting one key %d times at once: %v", n, err)
	}
	for i, a := range answers {
		if msg := differs(answers[0], a); msg != "" {
			r.t.Errorf("concurrent submit %d under one key: %s", i, msg)
		}
	}
	return answers[0]
}

// sameAnswer submits the job again and compares the answer with the first.
func (r *region) sameAnswer(c *client.Client, key string, first gpuai.Submitted, when string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	again, err := c.Submit(ctx, client.SubmitRequest{Spec: smallJob(key), Key: key})
	if err != nil {
		r.t.Errorf("%s: %v", when, err)
	} else if msg := differs(first, again); msg != "" {
		r.t.Errorf("%s: %s", when, msg)
	}
}

// otherBody submits another job under the key.
func (r *region) otherBody(c *client.Client, key string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	_, err := c.Submit(ctx, client.SubmitRequest{Spec: smallJob("another"), Key: key})
	if !errors.Is(err, &gpuai.Error{Code: gpuai.IdempotencyMismatch}) {
		r.t.Errorf("another body under the key: %v", err)
	}
}

// differs says in what two answers under one key differ, if at all.
func differs(a, b gpuai.Submitted) string {
	switch {
	case a.Job.ID != b.Job.ID:
		return fmt.Sprintf("job %s, then %s", a.Job.ID, b.Job.ID)
	case a.Index != b.Index:
		return fmt.Sprintf("index %d, then %d", a.Index, b.Index)
	case len(a.Leases) != 1 || len(b.Leases) != 1 || a.Leases[0].ID != b.Leases[0].ID:
		return fmt.Sprintf("leases %+v, then %+v", a.Leases, b.Leases)
	}
	return ""
}
