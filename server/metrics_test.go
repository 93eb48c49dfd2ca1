package server

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

func TestTallyCountsWhatWasHeldOverRegionTime(t *testing.T) {
	var c tally
	c.init()
	held := func() float64 { return testutil.ToFloat64(c.allocated) }
	c.count(&fsm.Output{Time: 1_000, GPUMilli: 1_500}, true)
	if held() != 0 {
		t.Errorf("%v s were held before anything was known", held())
	}
	c.count(&fsm.Output{Time: 3_000, GPUMilli: 4_000}, true) // 1.5 GPUs for 2 s
	c.count(&fsm.Output{Time: 4_000, GPUMilli: 2_000}, false)
	if held() != 3 {
		t.Errorf("%v s were held, not 3: what another server led counts there", held())
	}
	c.count(&fsm.Output{Time: 5_000}, true) // 2 GPUs for 1 s
	c.forget()
	c.count(&fsm.Output{Time: 9_000, GPUMilli: 1_000}, true)
	if held() != 5 {
		t.Errorf("%v s were held, not 5: nothing is known over a restore", held())
	}
}

func TestTallyCountsCommandsByKindAndResult(t *testing.T) {
	var c tally
	c.init()
	const submit = fsm.CommandKind(5)
	out := &fsm.Output{
		Results: []fsm.Result{{Kind: submit}, {Kind: submit}, {Kind: submit, Code: gpuai.Unschedulable}},
		Events:  []gpuai.Event{{Kind: gpuai.LeaseGrantedEvent}, {Kind: gpuai.LeaseEndedEvent, Cause: gpuai.CauseFenced}, {Kind: gpuai.LeaseEndedEvent, Cause: gpuai.CauseDone}, {Kind: gpuai.LeaseGrantedEvent}},
	}
	c.count(out, false)
	c.count(out, true)
	c.count(out, true)
	for want, labels := range map[float64][]string{4: {"submit_job", "ok"}, 2: {"submit_job", "unschedulable"}} {
		if got := testutil.ToFloat64(c.results.WithLabelValues(labels...)); got != want {
			t.Errorf("%v: %v, want %v", labels, got, want)
		}
	}
	if n := testutil.CollectAndCount(c.results); n != 2 {
		t.Errorf("%d series", n)
	}
	if n := testutil.ToFloat64(c.placements); n != 4 {
		t.Errorf("%v placements", n)
	}
	if n := testutil.ToFloat64(c.expired.WithLabelValues(gpuai.CauseFenced.String())); n != 2 || testutil.CollectAndCount(c.expired) != len(lostCauses) {
		t.Errorf("%v fenced leases of %d causes", n, testutil.CollectAndCount(c.expired))
	}
}

func TestCensusBoundsItsLabels(t *testing.T) {
	c := census{counts: map[deviceLabels]uint64{}, models: map[deviceLabels]bool{}, blocks: map[string]gpuai.FreeBlocks{}}
	for i := range 3 * maxModels {
		c.add(&fsm.DeviceCount{Vendor: "v", Model: fmt.Sprint(i), Free: 1, Unhealthy: [fsm.NumDeviceHealth]uint32{gpuai.DeviceLost: 2}, Blocks: gpuai.FreeBlocks{Free: 1, Largest: 1}})
	}
	if b := c.blocks["other"]; len(c.blocks) != maxModels+1 || b.Free != 2*maxModels || b.Ratio(0) != gpuai.WholeDevice {
		t.Errorf("%d kinds of free devices, %+v of other models", len(c.blocks), b)
	}
	if len(c.counts) != 2*(maxModels+1) {
		t.Errorf("%d series of %d models", len(c.counts), 3*maxModels)
	}
	if n := c.counts[deviceLabels{"other", "other", "lost"}]; n != 2*2*maxModels {
		t.Errorf("%d lost devices of other models", n)
	}
}

func TestRejectionsAreCountedByReason(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader()
	join(t, s.Server, helloOf("n1", 2))
	spec := jobSpec("big", 1)
	spec.Groups[0].Resources.GPU.Count = 3
	if _, err := s.Submit(t.Context(), httpd.SubmitRequest{Spec: spec}); !isCode(err, gpuai.Unschedulable) {
		t.Fatalf("a job that no node can run: %v", err)
	}
	if n := testutil.ToFloat64(s.metrics.rejections.WithLabelValues(gpuai.NoSuchDevice.String())); n != 1 {
		t.Errorf("%v rejections", n)
	}
}

// BenchmarkTally counts an entry of one command, and one of a thousand of which
// no two in a row are equal.
func BenchmarkTally(b *testing.B) {
	many := &fsm.Output{}
	for i := range 1_000 {
		many.Results = append(many.Results, fsm.Result{Kind: fsm.CommandKind(1 + i%2)})
		many.Events = append(many.Events, gpuai.Event{Kind: gpuai.LeaseGrantedEvent})
	}
	for _, out := range []*fsm.Output{{Results: many.Results[:1], Events: many.Events[:1]}, many} {
		b.Run(fmt.Sprint("commands=", len(out.Results)), func(b *testing.B) {
			var c tally
			c.init()
			b.ReportAllocs()
			for range b.N {
				c.count(out, true)
			}
		})
	}
}
