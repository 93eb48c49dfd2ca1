package main

import (
	"strings"
	"testing"
	"time"
)

func TestAllocations(t *testing.T) {
	got := allocations([]byte(strings.Join([]string{
		"[2026-11-28T14:53:36.417] _slurm_rpc_submit_batch_job: JobId=2 InitPrio=4294901758 usec=20624",
		"[2026-11-28T14:53:36.956] sched: Allocate JobId=2 NodeList=n0001 #CPUs=1 Partition=main",
		"[2026-11-28T14:53:37.148] sched: Allocate JobId=5_0(6) NodeList=n0001 #CPUs=1 Partition=main",
		"[2026-11-28T14:53:37.398] sched: Allocate JobId=5_4(5) NodeList=n0002 #CPUs=1 Partition=main",
		"[2026-11-28T14:53:38.000] sched/backfill: _start_job: Started JobId=7 in main on n0003",
		"[nonsense] sched: Allocate JobId=9 NodeList=n0001",
	}, "\n")))
	if len(got) != 3 || len(got[2]) != 1 || len(got[5]) != 2 || len(got[7]) != 1 {
		t.Fatalf("%v", got)
	}
	if d := got[5][1].Sub(got[2][0]); d != 442*time.Millisecond {
		t.Errorf("between two allocations: %v", d)
	}
}

func TestSummary(t *testing.T) {
	at := time.Unix(1000, 0)
	ms := func(n int) time.Time { return at.Add(time.Duration(n) * time.Millisecond) }
	r := summary(&slurm{name: "slurm", nodes: 10}, map[int]time.Time{1: ms(0), 2: ms(100)},
		map[int][]time.Time{1: {ms(10)}, 2: {ms(130), ms(200)}, 3: {ms(1)}}, 30*time.Millisecond)
	if r.Jobs != 3 || r.P50 != 30 || r.P99 != 100 || r.Rate != 15 || r.CPU != 10 {
		t.Errorf("%+v", r)
	}
}

func TestParse(t *testing.T) {
	for _, args := range []string{"--nodes x", "--nodes 0", "--burst 0", "--nodes 10 --burst 81", "-o xml", "--nodes 100,-1"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s: taken", args)
		}
	}
}
