package fsm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// The audit is a chain of what people, operators and joiners asked for, in the
// order of the log. The machine keeps its end only; what leads there leaves in
// Output.Audit, one link for each entry that has something to record, and a link
// holds the hash of the one before. So whoever has the state can tell whether a
// record was changed, left out or put in, wherever the records lie.
//
// A link is hashed once, when its entry is finished, over records that say an
// actor only where it is another than the last one's: a thousand submits of one
// user take some 20 bytes each.

// seedAudit and secAudit are of the chain's end.
const (
	seedAudit       = 44
	secAudit  uint8 = 44
)

// An auditRec is the end of the chain.
type auditRec struct {
	hash    gpuai.AuditHash
	records uint64
	index   uint64
}

func (r *auditRec) put(b []byte) []byte {
	b = append(b, r.hash[:]...)
	b = le.AppendUint64(b, r.records)
	return le.AppendUint64(b, r.index)
}

func (r *auditRec) get(rd *wire.Reader) {
	copy(r.hash[:], rd.Bytes(len(r.hash)))
	r.records, r.index = rd.U64(), rd.U64()
}

// AuditHead returns the end of the audit's chain.
func (m *Machine) AuditHead() gpuai.AuditHead {
	r := m.audit.Get()
	return gpuai.AuditHead{Hash: r.hash, Records: r.records, Index: r.index}
}

// A trail gathers the records of the entry that is being applied.
type trail struct {
	buf           []byte // room for the head of a link, and records
	n             uint32
	actor, tenant []byte // of the last record: views of the entry
}

const (
	auditVersion = 1
	auditHeader  = 1 + len(gpuai.AuditHash{}) + 8 + 8 + 8 + 8 + 4
)

// Bits of a record that say what follows.
const (
	auditActor = 1 << iota
	auditTenant
	auditJob
	auditSubject
	auditRequest // and a count
	auditRepeated
	auditChange
	auditBits // the first that means nothing
)

// A trailLine is a record whose texts are views.
type trailLine struct {
	kind                            uint8
	code                            gpuai.Code
	repeated                        bool
	actor, tenant, subject, request []byte
	change                          []byte
	job                             gpuai.JobID
	count                           uint32
}

func (t *trail) reset() {
	t.buf, t.n, t.actor, t.tenant = t.buf[:0], 0, nil, nil
}

func (t *trail) add(l *trailLine) {
	if t.n++; len(t.buf) == 0 {
		t.buf = append(t.buf, make([]byte, auditHeader)...)
	}
	at := len(t.buf) + 2
	b := append(t.buf, l.kind, uint8(l.code), 0)
	if string(l.actor) != string(t.actor) {
		b[at] |= auditActor
		b, t.actor = wire.AppendBytes(b, l.actor), l.actor
	}
	if string(l.tenant) != string(t.tenant) {
		b[at] |= auditTenant
		b, t.tenant = wire.AppendBytes(b, l.tenant), l.tenant
	}
	if l.job != (gpuai.JobID{}) {
		b[at] |= auditJob
		b = append(b, l.job[:]...)
	}
	if len(l.subject) > 0 {
		b[at] |= auditSubject
		b = wire.AppendBytes(b, l.subject)
	}
	if len(l.request) > 0 || l.count > 0 {
		b[at] |= auditRequest
		b = le.AppendUint32(wire.AppendBytes(b, l.request), l.count)
	}
	if l.repeated {
		b[at] |= auditRepeated
	}
	if len(l.change) > 0 {
		b[at] |= auditChange
		b = wire.AppendBytes(b, l.change)
	}
	t.buf = b
}

// head completes a link; e's records are in the trail.
func (t *trail) head(e *gpuai.AuditEntry) {
	b := append(t.buf[:0], auditVersion)
	b = append(b, e.Prev[:]...)
	b = le.AppendUint64(b, e.First)
	b = le.AppendUint64(b, e.Index)
	b = put64(b, int64(e.At))
	b = put64(b, int64(e.Wall))
	_ = le.AppendUint32(b, t.n) // into the room that add has left
}

// record puts a command and its result into the trail, if they belong there.
// before is what auditBefore returned.
func (m *Machine) record(c *wire.Command, res *Result, before []auditValue) {
	k := auditKinds[min(c.Type, numTypes-1)]
	if k.silent || m.Level() < LevelTenants {
		return
	}
	if c.Type == typeRegisterNode {
		joined := m.now.joined != 0
		if m.now.joined = 0; !joined && res.Code == gpuai.OK {
			return // it has only come back
		}
	}
	l := trailLine{
		kind: c.Type, code: res.Code, repeated: res.Repeated, job: res.Job,
		actor: auditText(c.Actor, m.trail.actor), tenant: auditText(c.Tenant, m.trail.tenant),
	}
	if k.about == nil {
		if l.job == (gpuai.JobID{}) && len(c.Body) >= len(l.job) {
			copy(l.job[:], c.Body)
		}
	} else {
		l.subject, l.change = m.auditOf(k, c, res.Code == gpuai.OK, before)
	}
	m.trail.add(&l)
}

// auditOf returns what a command is about, and what it has made of that.
func (m *Machine) auditOf(k auditKind, c *wire.Command, ok bool, before []auditValue) (subject, change []byte) {
	about, said := k.about(m, c.Body, ok)
	if ok && k.state != nil {
		said = changes(said, before, k.state(m, c.Body))
	}
	return auditPart(about), auditPart(said)
}

// auditText is a text of an envelope as the audit has it. last is that of the record
// before: most are of whoever came before, and to look for what is no UTF-8 would be
// a third of what the audit costs.
func auditText(b, last []byte) []byte {
	if string(b) == string(last) || len(b) <= gpuai.MaxAuditText && utf8.Valid(b) {
		return b
	}
	s := strings.ToValidUTF8(string(b[:min(len(b), gpuai.MaxAuditText)]), "?")
	return []byte(s)
}

// sealTrail makes the entry's records a link of the chain.
func (m *Machine) sealTrail() {
	if m.trail.n == 0 {
		return
	}
	r := m.audit.Mut()
	m.trail.head(&gpuai.AuditEntry{
		Prev: r.hash, First: r.records + 1, Index: m.now.index, At: m.now.time, Wall: m.now.wall,
	})
	r.hash = sha256.Sum256(m.trail.buf)
	r.records, r.index = r.records+uint64(m.trail.n), m.now.index
	m.out.Audit = append([]byte(nil), m.trail.buf...)
	m.trail.reset()
}

// checkAudit verifies the end of the chain.
func (m *Machine) checkAudit() error {
	r := m.audit.Get()
	if (r.records == 0) != (r.hash == gpuai.AuditHash{}) || r.index > m.Index() {
		return fmt.Errorf("the audit ends with record %d at index %d, hash %s", r.records, r.index, r.hash)
	}
	return nil
}

func (m *Machine) writeAudit(f *frameWriter) {
	if m.audit.Get().records == 0 {
		return
	}
	f.begin(secAudit)
	f.buf = m.audit.Get().put(f.buf)
	f.added()
	f.end()
}

var errAudit = errors.New("a link of the audit is malformed")

// ReadAudit reads what Output.Audit holds.
func ReadAudit(b []byte) (e gpuai.AuditEntry, err error) {
	r := wire.NewReader(b)
	version := r.U8()
	copy(e.Prev[:], r.Bytes(len(e.Prev)))
	e.First, e.Index = r.U64(), r.U64()
	e.At, e.Wall = gpuai.Instant(r.I64()), gpuai.WallTime(r.I64())
	n := r.U32()
	if r.Err() != nil || version != auditVersion || uint64(n) > uint64(len(b)) {
		return e, errAudit
	}
	var last gpuai.AuditRecord
	for range n {
		var x gpuai.AuditRecord
		if x, err = readAuditRecord(r, &last); err != nil {
			return e, err
		}
		last = x
		e.Records = append(e.Records, x)
	}
	if r.Done() != nil {
		return e, errAudit
	}
	return e, nil
}

func readAuditRecord(r *wire.Reader, last *gpuai.AuditRecord) (x gpuai.AuditRecord, err error) {
	x.Command, x.Code = CommandKind(r.U8()).String(), gpuai.Code(r.U8())
	has := r.U8()
	x.Actor, x.Tenant, x.Repeated = last.Actor, last.Tenant, has&auditRepeated != 0
	if has&auditActor != 0 {
		x.Actor = r.Str()
	}
	if has&auditTenant != 0 {
		x.Tenant = gpuai.TenantID(r.Str())
	}
	if has&auditJob != 0 {
		copy(x.Job[:], r.Bytes(len(x.Job)))
	}
	if has&auditSubject != 0 {
		x.Subject = r.Str()
	}
	if has&auditRequest != 0 {
		x.Request, x.Count = r.Str(), r.U32()
	}
	if has&auditChange != 0 {
		x.Change = r.Str()
	}
	if r.Err() != nil || has >= auditBits {
		return x, errAudit
	}
	return x, nil
}

// HashAudit returns the hash of an entry of the audit: what the next one must
// have as its Prev, and the state at the end.
func HashAudit(e *gpuai.AuditEntry) (gpuai.AuditHash, error) {
	var t trail
	for i := range e.Records {
		x := &e.Records[i]
		kind, ok := kindOf(x.Command)
		if !ok {
			return gpuai.AuditHash{}, fmt.Errorf("the audit at index %d has a command %q, which this version does not know", e.Index, x.Command)
		}
		t.add(&trailLine{
			kind: kind, code: x.Code, repeated: x.Repeated, job: x.Job, count: x.Count,
			actor: []byte(x.Actor), tenant: []byte(x.Tenant), subject: []byte(x.Subject), request: []byte(x.Request),
			change: []byte(x.Change),
		})
	}
	if t.n == 0 {
		return gpuai.AuditHash{}, fmt.Errorf("the audit at index %d has no records", e.Index)
	}
	t.head(e)
	return sha256.Sum256(t.buf), nil
}

// kindOf returns the number of a kind by its name.
func kindOf(name string) (uint8, bool) {
	for k := range 256 {
		if CommandKind(k).String() == name {
			return uint8(k), true
		}
	}
	return 0, false
}
