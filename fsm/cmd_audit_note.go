package fsm

import (
	"unicode/utf8"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// AuditNote records in the audit what did not become a command: requests that a
// server refused, folded by who asked for what, and commands beside tasks.
//
// Rejected: PreconditionFailed below LevelTenants, InvalidSpec for no notes or
// more than gpuai.MaxAuditNotes, for texts that are longer than
// gpuai.MaxAuditText or no UTF-8, and for a count of 0.
type AuditNote struct{ Notes []gpuai.AuditNote }

// Append appends the encoded command to dst.
func (c *AuditNote) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeAuditNote, env, func(b []byte) []byte {
		b = le.AppendUint16(b, uint16(min(len(c.Notes), 1<<16-1)))
		for i := range c.Notes {
			n := &c.Notes[i]
			b = wire.AppendStr(b, n.Actor)
			b = wire.AppendStr(b, string(n.Tenant))
			b = append(b, n.Job[:]...)
			b = wire.AppendStr(b, n.Subject)
			b = wire.AppendStr(b, n.Request)
			b = append(b, uint8(n.Code))
			b = le.AppendUint32(b, n.Count)
		}
		return b
	})
}

// readAuditNotes reads an AuditNote's body; nil when it is none.
func readAuditNotes(r *wire.Reader) []trailLine {
	n := r.U16()
	if n == 0 || n > gpuai.MaxAuditNotes {
		return nil
	}
	lines := make([]trailLine, 0, n)
	for range n {
		l := trailLine{kind: typeAuditNote, actor: r.Blob(), tenant: r.Blob()}
		copy(l.job[:], r.Bytes(len(l.job)))
		l.subject, l.request = r.Blob(), r.Blob()
		l.code, l.count = gpuai.Code(r.U8()), r.U32()
		for _, text := range [...][]byte{l.actor, l.tenant, l.subject, l.request} {
			if len(text) > gpuai.MaxAuditText || !utf8.Valid(text) {
				return nil
			}
		}
		if r.Err() != nil || l.count == 0 {
			return nil
		}
		lines = append(lines, l)
	}
	if r.Done() != nil {
		return nil
	}
	return lines
}

func (m *Machine) applyAuditNote(r *wire.Reader) Result {
	if m.Level() < LevelTenants {
		return rejected(gpuai.PreconditionFailed, "the region is below feature level 4, which brings the audit: upgrade all its servers")
	}
	lines := readAuditNotes(r)
	if lines == nil {
		return malformed
	}
	for i := range lines {
		m.trail.add(&lines[i])
		m.now.work -= workLook
	}
	return Result{}
}
