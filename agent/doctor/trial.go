package doctor

import (
	"context"
	"fmt"

	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/sandbox"
)

// tryRuntime tries a sandbox, where all that it needs is there: what is not is a
// finding of its own.
func (f *Facts) tryRuntime(ctx context.Context, c *agent.Config) {
	r := f.Runtime
	if !f.Root || r == nil || f.Watchdog != nil || f.UserNS != nil {
		return
	}
	if r.Refusal() != nil && !f.Sandbox.AcceptFlaw {
		return // it is not used
	}
	f.Trial = tryHere(ctx, c, r)
}

// tryHere tries a runtime where the probes do, one at a time on a host.
func tryHere(ctx context.Context, c *agent.Config, r *sandbox.Runtime) (err error) {
	ctx, cancel := context.WithTimeout(ctx, agent.TrialTime)
	defer cancel()
	undecided := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w: %w", agent.ErrTrialUndecided, err)
	}
	p, err := openPlace(ctx, "") // nothing of the data directory is touched
	if err != nil {
		return undecided(err)
	}
	defer p.lock.Close()
	defer func() {
		if left := p.empty(); err == nil {
			err = undecided(left)
		}
	}()
	if err := p.make(); err != nil {
		return undecided(err)
	}
	ranges, err := sandbox.OpenRanges(rangesDir, owner)
	if err != nil {
		return undecided(err)
	}
	ids, err := ranges.Lend(probeLease.String())
	if err != nil {
		return undecided(err)
	}
	return agent.TrySandbox(ctx, &agent.SandboxTrial{Runtime: r, Watchdog: c.Watchdog, Dir: p.dir, Run: p.run(), IDs: ids})
}
