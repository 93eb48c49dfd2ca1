package store

import (
	"encoding/binary"
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
)

// Every field of an event is in its row: one that is new is, or this fails.
func TestEventsAreArchivedWhole(t *testing.T) {
	e := gpuai.Event{
		Index: 7, Ordinal: 3, Kind: gpuai.CheckpointPublished, At: 9, Job: gpuai.JobID{1}, Group: 2, Task: 5, Lease: 11, Node: "n1",
		Incarnation: 13, JobStatus: gpuai.JobFailed, NodeState: gpuai.NodeSilent, By: gpuai.JobID{2}, Drained: true,
		Cause: gpuai.CausePreempted, ExitCode: -4, Checkpoint: 21,
		EndCode: gpuai.EndImagePull, Reason: "no such image", Image: "sha256:x", Tenant: "acme",
	}
	if v := reflect.ValueOf(e); v.NumField() > 0 {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("this test says nothing of %s", v.Type().Field(i).Name)
			}
		}
	}
	key := binary.BigEndian.AppendUint64(nil, e.Index)
	n := 0
	err := openEvents(key, sealEvents(key, []gpuai.Event{e}), func(got *gpuai.Event) bool {
		if n++; *got != e {
			t.Errorf("%+v, want %+v", *got, e)
		}
		return true
	})
	if err != nil || n != 1 {
		t.Errorf("%d events, %v", n, err)
	}
}
