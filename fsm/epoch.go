package fsm

import (
	"errors"
	"fmt"
	"math"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A NewEpoch says with what a region that is restored from a backup begins.
type NewEpoch struct {
	Epoch     uint8    // above every epoch that anybody may have known
	RestoreID [16]byte // random: tells two restores of one epoch apart
	// MaxTTL is the longest TTL that a lease of the region that was lost may
	// have; gpuai.MaxLeaseTTL when that is not known.
	MaxTTL gpuai.Duration
}

// ErrEpoch is returned, wrapped, by BeginEpoch for an epoch that cannot be.
var ErrEpoch = errors.New("the epoch cannot begin")

// BeginEpoch turns a machine that was restored from a backup into the first
// state of a new epoch, as if by an entry behind the backup's last. It is for
// the offline tool: no log holds it, so every server of the region must begin
// with the same image.
//
//   - Every lease ends, and its task waits again where its restart policy names
//     node_lost, without that an attempt is counted; else it is lost.
//   - Every incarnation is void and every node silent until it registers anew.
//   - Nothing is granted until MaxTTL and its grace have passed in region time,
//     which stands still until the first election.
//   - Join tokens are dropped, and certificates of servers void; authorities,
//     and certificates of nodes that were not revoked, are good as before.
//   - Tokens and incarnations carry the epoch from now on, so they grow on.
//
// The state is raised to LevelRestore at least. What it returns is what the
// entry did, for the history archive. After an error the machine must be thrown
// away.
func (m *Machine) BeginEpoch(e NewEpoch) (*Output, error) {
	switch {
	case e.Epoch <= m.Epoch():
		return nil, fmt.Errorf("%w: the backup is of epoch %d, and a restore must begin a later one than %d", ErrEpoch, m.Epoch(), e.Epoch)
	case e.RestoreID == [16]byte{}:
		return nil, fmt.Errorf("%w: it has no restore ID", ErrEpoch)
	case e.MaxTTL < gpuai.MinLeaseTTL || e.MaxTTL > gpuai.MaxLeaseTTL:
		return nil, fmt.Errorf("%w: the longest TTL of a lease is %s and must be %s to %s", ErrEpoch, e.MaxTTL, gpuai.MinLeaseTTL, gpuai.MaxLeaseTTL)
	case m.opts.maxLevel() < LevelRestore:
		return nil, fmt.Errorf("%w: a restore needs feature level %d", ErrEpoch, LevelRestore)
	}
	old := m.meta.Get()
	out := &Output{Prev: old.index, Index: old.index + 1, Time: old.time}
	m.out = out
	m.now = entryState{index: old.index + 1, term: old.term, time: old.time, wall: old.wall, work: math.MaxInt64}
	m.begin()
	m.guard(func(m *Machine) { m.beginEpoch(&e) })
	m.guard((*Machine).wakeQuotas)
	m.finish()
	if out.Panics > 0 {
		return nil, fmt.Errorf("%w: the backup's records contradict each other: %s", ErrEpoch, out.Panic)
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEpoch, err)
	}
	return out, nil
}

func (m *Machine) beginEpoch(e *NewEpoch) {
	p := m.policy.Get()
	meta := m.meta.Mut()
	meta.level = max(meta.level, LevelRestore)
	meta.epoch, meta.restore = e.Epoch, e.RestoreID
	meta.quietUntil = m.now.time.Add(e.MaxTTL + p.GraceFor(e.MaxTTL))
	meta.chain = mem.Mix(meta.chain, mem.HashBytes(uint64(e.Epoch), e.RestoreID[:]))
	for s := range m.nodes.Len() {
		n := m.nodes.Mut(s)
		m.timers.clear(&n.timer)
		n.flaps, n.until = 0, 0
		m.setNodeState(s, gpuai.NodeSilent)
	}
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		switch {
		case !l.live():
		case l.state == gpuai.LeaseRevoking && l.cause == gpuai.CauseRunTime:
			m.endLease(s, leaseEnd{cause: gpuai.CauseRunTime}) // it has had its time
		default:
			m.endLease(s, leaseEnd{cause: gpuai.CauseRestored})
		}
	}
	m.forgetServers()
	m.forgetJoins()
}

// void reports whether an incarnation is from before the region was restored.
func (m *Machine) void(i gpuai.Incarnation) bool { return i.Epoch() < m.Epoch() }
