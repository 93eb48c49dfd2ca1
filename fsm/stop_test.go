package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// A job that is stopped leaves its bucket as others count it: a task in its
// back-off never waited there. Found by the simulation, seed 370; a state with
// this fault could be neither snapshotted nor restored.
func TestStopWithATaskInItsBackOff(t *testing.T) {
	for name, gang := range map[string]bool{"array": false, "gangs beside": true} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t)
			r.node("a", 2)
			spec := jobSpec("stopped", 4, 1)
			spec.Groups[0].Restart = gpuai.Restart{Attempts: 3, Backoff: gpuai.Minute, On: []gpuai.RestartCause{gpuai.CauseFailure}}
			id := r.submit(spec)
			r.submit(jobSpec("waits", 1, 1))
			if gang {
				s := jobSpec("gang", 2, 1)
				s.Groups[0].Gang = true
				r.submit(s)
			}
			for _, l := range r.leases(id)[:2] {
				r.report(l, gpuai.ReportRunning, 0)
			}
			r.report(r.leases(id)[0], gpuai.ReportFailed, 1) // into its back-off; another task takes the device
			r.do(&StopJob{Job: id})
			for _, l := range r.leases(id) {
				if l.State == gpuai.LeaseRevoking {
					r.report(l, gpuai.ReportStopped, 0)
				}
			}
			r.status(id, gpuai.JobStopped)
			restored(t, r.m)
		})
	}
}
