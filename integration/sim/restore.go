package main

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A backup is what an operator saved of the region, and when.
type backup struct {
	image []byte
	index uint64 // that the machine had applied
	// acked and stops are what clients had been told of it by then.
	acked, stops []ackedJob
	ledger       ledger
}

// maxTTL is the longest TTL that a lease of a simulated region may have, also
// one that was granted before the profile's policy was set.
func (w *world) maxTTL() gpuai.Duration {
	p, d := w.prof.policy, gpuai.DefaultPolicy()
	return max(p.TTLBatch, p.TTLTraining, d.TTLBatch, d.TTLTraining)
}

// saveAndRestore saves a backup and puts it back some time later.
func (w *world) saveAndRestore() {
	for _, s := range w.servers {
		if !s.up || s.m.Index() == 0 {
			continue
		}
		var b bytes.Buffer
		if err := s.m.Fork().WriteSnapshot(&b); err != nil {
			w.check.fail("snapshot", err.Error())
			return
		}
		saved := w.check.saved(b.Bytes(), s.m.Index())
		w.tracef("a backup of index %d is saved", saved.index)
		w.after(w.between(w.prof.restoreAfter/4, w.prof.restoreAfter), func() {
			if !w.healed {
				w.restore(saved)
			}
		})
		return
	}
}

// restore is what an operator does with a lost region: every server begins anew
// with the same image, which the offline tool has made of the backup.
func (w *world) restore(saved *backup) {
	m, err := fsm.Restore(bytes.NewReader(saved.image), fsm.Options{Region: "sim"})
	if err != nil {
		w.check.fail("snapshot", "the backup cannot be restored: "+err.Error())
		return
	}
	epoch := m.Epoch()
	for _, s := range w.servers { // every identity file at hand
		epoch = max(epoch, s.m.Epoch())
	}
	if w.weak != restoreSameEpoch {
		e := fsm.NewEpoch{Epoch: epoch + 1, MaxTTL: w.maxTTL()}
		binary.BigEndian.PutUint64(e.RestoreID[:], w.rnd.Uint64()|1)
		if _, err := m.BeginEpoch(e); err != nil {
			w.check.fail("restore", err.Error())
			return
		}
	}
	var b bytes.Buffer
	if err := m.WriteSnapshot(&b); err != nil {
		w.check.fail("snapshot", err.Error())
		return
	}
	w.count(backupRestored)
	w.restores++
	w.tracef("the backup of index %d is restored as epoch %d", saved.index, m.Epoch())
	for _, s := range w.servers {
		for s.stops > 0 {
			s.cont()
		}
		if s.up {
			s.die()
		}
	}
	w.check.rewound(saved, m)
	for _, s := range w.servers {
		at, term := m.Index(), m.Term()
		s.raft = raft{
			s: s, voted: -1, term: term, base: at, baseTerm: term,
			snap: b.Bytes(), snapAt: at, snapTerm: term, synced: at,
		}
		s.kept = nil
		s.boot()
	}
}

// saved notes what clients have been told of a backup's state.
func (c *checker) saved(image []byte, index uint64) *backup {
	later := func(a ackedJob) bool { return a.index > index }
	return &backup{
		ledger: c.books.clone(),
		image:  image, index: index,
		acked: slices.DeleteFunc(slices.Clone(c.acked), later),
		stops: slices.DeleteFunc(slices.Clone(c.stops), later),
	}
}

// rewound takes note that what came after a backup is lost, as is known to
// whoever restores one: it is the only way in which an acknowledgement may be.
func (c *checker) rewound(saved *backup, m *fsm.Machine) {
	c.digests, c.leaders = map[uint64]fsm.Digest{m.Index(): m.Digest()}, map[uint64]int{}
	c.seen = m.Index()
	c.books.rewound(saved, m)
	c.acked, c.stops = slices.Clone(saved.acked), slices.Clone(saved.stops)
	clear(c.byKey)
	for _, a := range c.acked {
		c.byKey[a.key] = a.job
	}
}

// holds reports whether a job was acknowledged and not lost with a restore.
func (c *checker) holds(job gpuai.JobID) bool {
	return slices.ContainsFunc(c.acked, func(a ackedJob) bool { return a.job == job })
}

// skipQuiet is by how much a restored region's clock is put forward, so that
// its quiet period is over.
func (w *world) skipQuiet(m *fsm.Machine) gpuai.Duration {
	if q := m.QuietUntil(); q > 0 {
		return gpuai.Duration(q - m.Time())
	}
	return 0
}
