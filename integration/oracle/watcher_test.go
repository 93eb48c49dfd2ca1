package oracle

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// grantAndEnd are the events of two leases: the first starts and ends.
func grantAndEnd() []gpuai.Event {
	job := gpuai.JobID{1}
	return []gpuai.Event{
		{Index: 5, Ordinal: 0, Kind: gpuai.LeaseGrantedEvent, Job: job, Lease: 50, Node: "a"},
		{Index: 5, Ordinal: 1, Kind: gpuai.LeaseGrantedEvent, Job: job, Task: 1, Lease: 51, Node: "b"},
		{Index: 6, Ordinal: 0, Kind: gpuai.LeaseStarted, Job: job, Lease: 50},
		{Index: 6, Ordinal: 1, Kind: gpuai.LeaseEndedEvent, Job: job, Lease: 50, Cause: gpuai.CauseDone},
		{Index: 7, Ordinal: 0, Kind: gpuai.LeaseStarted, Job: job, Lease: 49}, // granted before the watch
	}
}

func TestWatcher(t *testing.T) {
	w := NewWatcher()
	events := grantAndEnd()
	for range 2 { // a resumed stream gives the last index whole again
		for i := range events {
			w.take(&events[i], int64(100*(i+1)))
		}
	}
	got := w.All(func(*Lease) bool { return true })
	if len(got) != 2 || got[0].Granted != 100 || got[0].Started != 300 || got[0].Ended != 400 || got[1].Granted != 200 {
		t.Errorf("%+v", got)
	}
	if live := w.Live(""); len(live) != 0 {
		t.Errorf("live: %+v", live)
	}
}
