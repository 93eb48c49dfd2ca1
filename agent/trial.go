package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// A SandboxTrial says with what a sandbox is tried.
type SandboxTrial struct {
	Runtime  *sandbox.Runtime
	Watchdog string // path of gpuai-watchdog
	// Dir is a directory of the trial alone, Run one that everybody may pass
	// through. The caller makes and removes them.
	Dir, Run string
	IDs      sandbox.Range // that nobody else has
}

// TrialTime bounds a trial of a sandbox, which takes well below a second.
const TrialTime = 30 * time.Second

// ErrTrialUndecided is returned when a trial came to no end within its time, or
// could not be made: the runtime may be well.
var ErrTrialUndecided = errors.New("the runtime could not be tried")

const (
	trialLease  = gpuai.Token(1)
	trialMemory = 64 << 20
	trialPIDs   = 32
	// trialCode is what the watchdog's program ends with when it is told nothing.
	trialCode = 2
)

// TrySandbox runs a program that ends at once in a sandbox such as tasks have, under
// a watchdog of its own: that a runtime is there and says its version does not say
// that it starts anything on this host. An error that is not ErrTrialUndecided is
// what the runtime says.
func TrySandbox(ctx context.Context, c *SandboxTrial) (err error) {
	ctx, cancel := context.WithTimeout(ctx, TrialTime)
	defer cancel()
	undecided := func(err error) error { return fmt.Errorf("%w: %w", ErrTrialUndecided, err) }
	wd, err := watchdog.Launch(ctx, c.Watchdog, c.Dir)
	if err != nil {
		return undecided(err)
	}
	defer endTrial(wd)
	if _, _, err := wd.Hello(1); err != nil {
		return undecided(err)
	}
	bundle, err := c.write()
	if err != nil {
		return undecided(err)
	}
	if _, err := wd.Start(c.spec(bundle)); err != nil {
		return undecided(err)
	}
	end, err := awaitTrial(ctx, wd)
	if err != nil {
		return undecided(err)
	}
	why := sandbox.Failure(bundle)
	if why == "" && end.Code == trialCode {
		return nil
	}
	if said, _, _, err := watchdog.ReadLog(c.Dir, "stderr", 0, gpuai.MaxReasonLen); why == "" && err == nil {
		why = strings.TrimSpace(string(said))
	}
	return fmt.Errorf("%s %s starts no sandbox on this host: it ended with exit code %d: %s", c.Runtime.Path, c.Runtime.Version, end.Code, why)
}

// write writes the trial's bundle, and the sandbox's root, which is empty but for
// what the runtime mounts: the program is the watchdog's.
func (c *SandboxTrial) write() (bundle string, err error) {
	root := filepath.Join(c.Run, watchdog.RootDir)
	if err := errors.Join(os.Mkdir(root, 0o755), os.Chmod(root, 0o755), os.Chown(root, int(c.IDs.First), int(c.IDs.First))); err != nil {
		return "", err
	}
	s, err := sandbox.Spec(&sandbox.Task{
		Root: root, Args: []string{sandbox.InitPath}, Env: []string{"PATH=/bin"}, Hostname: "trial-0",
		IDs: c.IDs, Memory: trialMemory, PIDs: trialPIDs, NoFile: 1024, Init: c.Watchdog, InitArgs: []string{watchdog.InitArg},
	})
	if err != nil {
		return "", err
	}
	bundle = filepath.Join(c.Dir, bundleDir)
	return bundle, sandbox.WriteBundle(bundle, s)
}

func (c *SandboxTrial) spec(bundle string) *watchdog.Spec {
	return &watchdog.Spec{
		Lease: trialLease, Incarnation: 1, Deadline: watchdog.Boottime() + int64(TrialTime), KillBudget: int64(5 * time.Second),
		Argv: c.Runtime.Argv(bundle, filepath.Join(c.Run, stateDir), trialLease.String()), Env: []string{"PATH=" + os.Getenv("PATH")},
		Cwd: c.Dir, LogDir: c.Dir, LogBytes: 1 << 20, CPU: 1000, Memory: trialMemory + 32<<20, PIDs: trialPIDs + 64,
	}
}

// awaitTrial waits for the end of the trial's sandbox.
func awaitTrial(ctx context.Context, wd *watchdog.Client) (watchdog.Task, error) {
	for {
		select {
		case t := <-wd.News():
			if t.Lease != trialLease || t.State != watchdog.Exited {
				continue
			}
			if t.By != watchdog.ByItself {
				return t, fmt.Errorf("it was ended: %s", t.Reason)
			}
			return t, nil
		case <-wd.Done():
			return watchdog.Task{}, watchdog.ErrGone
		case <-ctx.Done():
			return watchdog.Task{}, ctx.Err()
		}
	}
}

// endTrial ends the trial's watchdog, and what it still runs, within a moment; at
// the latest they end at the trial's deadline.
func endTrial(wd *watchdog.Client) {
	defer wd.Close()
	wd.End(trialLease, 10*time.Second)
}

const (
	trialDir = "trial"
	// testedRuntime is what this project's tests run, on each kind of control groups
	// that they meet: an agent does not wait for a trial of it.
	testedRuntime = "runc"
)

// tryRuntime tries a runtime that the tests do not run before the node takes tasks
// with images, once for each version of it and each boot of the host.
func (a *Agent) tryRuntime(ctx context.Context, b *boxes) error {
	if b.runtime.Name == testedRuntime {
		return nil
	}
	mark, known := a.path("runtime.tried"), b.runtime.Identity()
	if before, err := os.ReadFile(mark); err == nil && known != "" && string(before) == known {
		return nil
	}
	c := &SandboxTrial{Runtime: b.runtime, Watchdog: a.cfg.Watchdog, Dir: a.path(trialDir), Run: b.path(trialDir)}
	if old, err := watchdog.Dial(c.Dir); err == nil { // of an agent that was killed meanwhile
		_, _, _ = old.Hello(1)
		endTrial(old)
	}
	clear := func() error { return errors.Join(os.RemoveAll(c.Dir), os.RemoveAll(c.Run)) }
	err := clear()
	if err == nil {
		err = errors.Join(os.Mkdir(c.Dir, 0o700), os.Mkdir(c.Run, 0o711), os.Chmod(c.Run, 0o711))
	}
	if err == nil {
		c.IDs, err = b.ranges.Lend(trialDir) // until the journal is read: keepBoxes
	}
	if err != nil {
		return fmt.Errorf("try the OCI runtime: %w", err)
	}
	err = errors.Join(TrySandbox(ctx, c), clear())
	switch {
	case errors.Is(err, ErrTrialUndecided):
		a.log.Warn("whether the OCI runtime starts sandboxes is not known", "runtime", b.runtime.Path, "why", err)
		return nil
	case err != nil:
		return fmt.Errorf("%w; use runc (--oci-runtime runc, apt-get install runc), or mend what it says: gpuai agent doctor tries it again", err)
	}
	a.log.Info("the OCI runtime was tried, and starts sandboxes", "runtime", b.runtime.Path, "version", b.runtime.Version)
	return os.WriteFile(mark, []byte(known), 0o600)
}
