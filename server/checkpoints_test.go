package server

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// An agent that names another checkpoint as its task's newest is told which ones
// the region keeps.
func TestRefusedPublishSaysWhatIsKept(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.followers()[0].Server, helloOf("n1", 1))
	r.submit(jobSpec("j", 1), "")
	l := a.awaitLeases(1)[0].Lease
	publish := func(after uint64, digest byte) (got gpuai.Published) {
		t.Helper()
		a.mu.Lock()
		before := len(a.judged)
		a.mu.Unlock()
		a.send(gpuai.Frame{Kind: gpuai.FramePublish, Publish: &gpuai.Publish{
			Lease: l.ID, Incarnation: l.Incarnation, Task: l.TaskRef, After: after, Digest: gpuai.BlobDigest{digest}, Keep: 2,
		}})
		eventually(t, "answer to a publish", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			if len(a.judged) > before {
				got = a.judged[before]
			}
			return len(a.judged) > before
		})
		return got
	}
	for seq := range uint64(2) {
		if got := publish(seq, byte(seq+1)); got.Code != gpuai.OK || got.Kept != nil {
			t.Fatalf("%+v", got)
		}
	}
	got := publish(0, 3)
	if got.Code != gpuai.PreconditionFailed || len(got.Kept) != 2 || got.Kept[0].Seq != 2 || got.Kept[0].Lease != l.ID || got.Kept[0].Key == "" || got.Kept[1].Seq != 1 {
		t.Errorf("%+v", got)
	}
	if got := publish(2, 3); got.Code != gpuai.OK {
		t.Errorf("behind the newest that it was told: %+v", got)
	}
}
