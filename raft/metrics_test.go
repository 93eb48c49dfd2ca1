package raft

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func counterValue(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	return testutil.ToFloat64(c)
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	c := newCluster(t, 3) // of one process and one registry, as in a development region
	c.tweak = func(cfg *Config) { cfg.Metrics = reg }
	c.start(c.ids...)
	leader := c.leader()
	for range 10 {
		c.submit(leader)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if got := counterValue(t, leader.metrics.commands); got < 10 {
		t.Errorf("%v commands were applied", got)
	}
	n, err := testutil.GatherAndCount(reg, "gpuai_raft_applied_index", "gpuai_proposer_queue_commands")
	if err != nil || n != 6 {
		t.Errorf("%d series, %v", n, err)
	}
	if n, err := testutil.GatherAndCount(reg, "gpuai_fsm_apply_duration_seconds"); err != nil || n < 6 { // three of mixed, three of a kind
		t.Errorf("%d series of times to apply, %v", n, err)
	}
	c.kill(c.ids...)
	if n, err := testutil.GatherAndCount(reg); n != 0 || err != nil {
		t.Errorf("%d series are left, %v", n, err)
	}
}
