package raft

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestVirtualTransferLoop hands leadership on again and again under load. There
// is no gap as long as an election time-out, and nothing that was acknowledged
// is lost.
func TestVirtualTransferLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		var all []*Node
		for _, n := range c.nodes {
			all = append(all, n)
		}
		s := submitUntilStopped(3, 5*time.Millisecond, func() []*Node { return all })
		handed := 0
		for range 30 {
			old := c.leader()
			began := time.Now()
			if err := old.TransferLeadership(t.Context()); err != nil {
				t.Logf("leadership of %s stays: %v", old.cfg.ID, err) // a transfer may fail; then it still leads
				continue
			}
			at := s.count()
			until(t, "something is acknowledged by another", func() bool { return c.leader() != old && s.count() > at })
			if d := time.Since(began); d > heartbeatTimeout {
				t.Errorf("a hand-over by %s left a gap of %v", old.cfg.ID, d)
			}
			handed++
			time.Sleep(20 * time.Millisecond) // virtual
		}
		acked, codes := s.finish()
		t.Logf("%d of 30 transfers, %d acknowledged, codes %s", handed, len(acked), codes)
		if handed < 25 {
			t.Errorf("only %d of 30 transfers happened", handed)
		}
		c.converged()
		for _, n := range c.nodes {
			for _, id := range acked {
				if !c.has(n, id) {
					t.Fatalf("server %s lost the acknowledged job %s", n.cfg.ID, id)
				}
			}
		}
		c.kill(c.ids...)
	})
}
