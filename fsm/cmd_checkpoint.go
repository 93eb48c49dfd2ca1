package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// Checkpoint lets every replica compare the leader's digest of an earlier index
// with its own. It changes nothing. A replica that remembers another digest
// sets Output.Diverged; the result is the same everywhere.
type Checkpoint struct {
	Index  uint64
	Digest Digest
}

// Append appends the encoded command to dst.
func (c *Checkpoint) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeCheckpoint, env, func(b []byte) []byte {
		return append(le.AppendUint64(b, c.Index), c.Digest[:]...)
	})
}

func (m *Machine) applyCheckpoint(r *wire.Reader) Result {
	index := r.U64()
	b := r.Bytes(len(Digest{}))
	if r.Done() != nil {
		return malformed
	}
	if index < m.now.index && index+DigestsKept > m.now.index && m.digests != nil {
		mine := m.digests[index%DigestsKept]
		if mine != (Digest{}) && mine != Digest(b) {
			m.out.Diverged, m.out.DivergedAt, m.out.Theirs = true, index, Digest(b)
		}
	}
	return Result{Code: gpuai.OK}
}
