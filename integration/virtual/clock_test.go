package virtual

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/server"
	"github.com/oklog/ulid/v2"
)

// wrongClocks gives each server a wall clock of its own.
func wrongClocks(off []time.Duration) func(*server.Config) {
	return func(cfg *server.Config) {
		d := off[int(cfg.ID[0]-'a')]
		cfg.Wall = func() time.Time { return time.Now().Add(d) }
	}
}

// seesItsOwnClock requires that a leader's wall clock is where it shows: in the
// ID of a job that it takes.
func (r *region) seesItsOwnClock(leader *member, off time.Duration) {
	r.t.Helper()
	r.clients++
	key := fmt.Sprintf("clock-%d", r.clients)
	out, err := r.client(10*time.Second, leader).Submit(context.Background(), client.SubmitRequest{Spec: jobSpec(key), Key: key})
	if err != nil {
		r.t.Fatal(err)
	}
	if d := ulid.Time(ulid.ULID(out.Job.ID).Time()).Sub(time.Now()); (d - off).Abs() > time.Minute {
		r.t.Errorf("the leader's clock is %v off and job %s says %v", off, out.Job.ID, d)
	}
}

// expiresInTime cuts an agent off and requires that its lease ends TTL + G
// after its last beat, and no later than a window or two.
func (f *fleet) expiresInTime(a *agent) {
	f.r.t.Helper()
	var token gpuai.Token
	for t, id := range f.held() {
		if id == a.id {
			token = t
		}
	}
	c := f.r.client(10*time.Second, f.r.servers...)
	before, err := c.Lease(context.Background(), token)
	if err != nil {
		f.r.t.Fatal(err)
	}
	a.stop()
	a.mu.Lock()
	silent := a.lastBeat
	a.mu.Unlock()
	least := time.Duration(before.TTL+before.Grace) * time.Millisecond
	f.r.within(least+10*time.Second, "end of the silent agent's lease", func() bool {
		l, err := c.Lease(context.Background(), token)
		return isCode(err, gpuai.NotFound) || err == nil && l.State == gpuai.LeaseEnded
	})
	if d := time.Since(silent); d < least || d > least+2*time.Second {
		f.r.t.Errorf("its lease ended %v after its last beat; TTL and grace are %v", d, least)
	}
	if slices.ContainsFunc(f.agents, func(b *agent) bool { return b != a && len(b.gone) > 0 }) {
		f.r.t.Error("another agent lost a lease")
	}
}
