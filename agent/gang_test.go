package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// grantHeld gives the node a lease of a gang that is not ready.
func (f *fixture) grantHeld(change func(*gpuai.Assignment)) gpuai.Token {
	f.t.Helper()
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Gang = &gpuai.GangInfo{Size: 2, Hold: true}
		change(a)
	})
	eventually(f.t, "it to be ready", func() bool {
		return slices.ContainsFunc(f.reports(lease), func(r gpuai.Report) bool { return r.State == gpuai.ReportPrepared })
	})
	return lease
}

// lift tells the agent that a lease's gang is ready.
func (f *fixture) lift(t gpuai.Token) {
	f.set(func(r *region) {
		n := r.node[testNode]
		r.index++
		a := n.leases[t]
		a.Gang = &gpuai.GangInfo{Size: 2}
		n.leases[t] = a
		r.diff(n, gpuai.LeaseSet{Leases: []gpuai.Assignment{a}})
	})
}

// A gang's member is made ready, its image fetched and its devices reserved, and
// runs nothing before the gang is ready.
func TestMemberWaitsForItsGang(t *testing.T) {
	for _, runtime := range []string{gpuai.RuntimeProcess, gpuai.RuntimeOCI} {
		t.Run(runtime, func(t *testing.T) {
			dir := t.TempDir()
			change, task := (func(*Config))(nil), script("echo ran")
			if runtime == gpuai.RuntimeOCI {
				change, task = boxed(t, dir), inImage(archiveImage(t, dir))
			}
			f := newFixture(t)
			f.run(change)
			lease := f.grantHeld(task)
			if c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 100}); len(c.Data) > 0 || c.EOF {
				t.Fatalf("it has run before its gang is ready: %+v", c)
			}
			f.lift(lease)
			if r := f.last(lease); r.State != gpuai.ReportDone {
				t.Errorf("reported %+v", r)
			}
			if c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 100}); len(c.Data) == 0 {
				t.Error("it did not run")
			}
		})
	}
}

// A member that waits is given up with its gang, and its node takes the next.
func TestWaitingMemberIsStopped(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grantHeld(script("echo ran"))
	f.revoke(testNode, lease)
	if r := f.last(lease); r.State != gpuai.ReportStopped || r.Reason != errNotStarted {
		t.Errorf("reported %+v", r)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "tasks", lease.String(), "stdout")); err == nil {
		t.Error("it ran")
	}
	if r := f.last(f.grant(testNode, script("true"))); r.State != gpuai.ReportDone {
		t.Errorf("the next: reported %+v", r)
	}
}

// An agent that restarts has nothing ready any more, and says so.
func TestWaitingMemberIsLostWithItsAgent(t *testing.T) {
	f := newFixture(t)
	a := f.run(nil)
	lease := f.grantHeld(script("echo ran"))
	a.stop(t)
	f.run(nil)
	if r := f.last(lease); r.State != gpuai.ReportLost {
		t.Errorf("reported %+v", r)
	}
}
