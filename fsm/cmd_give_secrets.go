package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// GiveSecrets is proposed by the server that holds an agent's session before it
// sends the agent the secrets of a lease's task. The machine judges it against
// the lease and notes the versions, so that nothing is sent without a trace, and
// nothing to who does not hold the lease, or of a secret that was deleted before.
//
// Rejected: Conflict when the lease does not wait to be started by this node and
// incarnation; NotFound when a secret is not there any more; InvalidSpec
// below LevelTenants; PreconditionFailed for a task that has none; RateLimited at
// MaxGivenSecrets. Giving again notes the versions of then.
type GiveSecrets struct {
	Node        gpuai.NodeID
	Lease       gpuai.Token
	Incarnation gpuai.Incarnation
}

// Append appends the encoded command to dst.
func (c *GiveSecrets) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeGiveSecrets, env, func(b []byte) []byte {
		b = le.AppendUint64(wire.AppendStr(b, string(c.Node)), uint64(c.Lease))
		return le.AppendUint64(b, uint64(c.Incarnation))
	})
}

func readGiveSecrets(r *wire.Reader) (c GiveSecrets, ok bool) {
	c.Node, c.Lease, c.Incarnation = gpuai.NodeID(r.Str()), gpuai.Token(r.U64()), gpuai.Incarnation(r.U64())
	return c, r.Done() == nil
}

func (m *Machine) applyGiveSecrets(r *wire.Reader) Result {
	c, ok := readGiveSecrets(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	}
	slot, ok := m.leaseSlot(c.Lease)
	if !ok {
		return rejected(gpuai.Conflict, "the lease has ended: its task runs elsewhere, or will")
	}
	l := m.leases.Get(slot)
	if l.state != gpuai.LeaseGranted || c.Lease.Epoch() < m.Epoch() || m.nodeName(l.node) != c.Node || l.incarnation != c.Incarnation {
		return rejected(gpuai.Conflict, "the lease does not wait to be started by this agent")
	}
	job := m.jobOfLease(slot)
	g := m.viewOfLease(slot, &m.view)
	if g == nil || g.Secrets == nil {
		return Result{Code: gpuai.PreconditionFailed, Job: job, Detail: "the lease's task has no secrets"}
	}
	var versions [gpuai.MaxTaskSecrets]uint32
	missing, i := "", 0
	wire.SecretNames(g.Secrets, func(name []byte) bool {
		at, there := m.secretSlot(m.tenantOfLease(l), name)
		if !there {
			missing = string(name)
			return false
		}
		versions[i] = m.secrets.recs.Get(at).version
		i++
		return true
	})
	switch {
	case missing != "":
		return Result{Code: gpuai.NotFound, Job: job, Detail: noSecret(missing)}
	case !m.setGiven(slot, &versions):
		return Result{Code: gpuai.RateLimited, Job: job, Detail: "the region keeps its maximum of what leases were given: retire jobs"}
	}
	m.now.work -= workEnd
	return Result{Job: job}
}

// jobOfLease returns the job that a lease is of.
func (m *Machine) jobOfLease(lease uint32) gpuai.JobID {
	return m.taskRef(m.leases.Get(lease).task.slot()).Job
}
