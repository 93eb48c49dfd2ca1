package fsm

import (
	"crypto/sha256"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// A resultRec remembers the answer to an idempotency key until expires. The
// answers form a queue by that time.
type resultRec struct {
	key     [16]byte // of (tenant, key): half a SHA-256
	body    uint64   // hash of what was asked, without server-minted fields
	job     gpuai.JobID
	inc     gpuai.Incarnation
	index   uint64
	expires gpuai.Instant
	tasks   uint32
	leased  uint32
	next    ref
	code    gpuai.Code
}

func (r *resultRec) put(b []byte) []byte {
	b = append(b, r.key[:]...)
	b = le.AppendUint64(b, r.body)
	b = append(b, r.job[:]...)
	b = le.AppendUint64(b, uint64(r.inc))
	b = le.AppendUint64(b, r.index)
	b = put64(b, int64(r.expires))
	b = le.AppendUint32(b, r.tasks)
	b = le.AppendUint32(b, r.leased)
	b = r.next.put(b)
	return append(b, uint8(r.code))
}

func (r *resultRec) get(rd *wire.Reader) {
	copy(r.key[:], rd.Bytes(16))
	r.body = rd.U64()
	copy(r.job[:], rd.Bytes(16))
	r.inc = gpuai.Incarnation(rd.U64())
	r.index = rd.U64()
	r.expires = gpuai.Instant(rd.I64())
	r.tasks = rd.U32()
	r.leased = rd.U32()
	r.next = ref(rd.U32())
	r.code = gpuai.Code(rd.U8())
}

// resultKey names an answer. SHA-256, so that no client can make two of its
// keys collide.
func resultKey(c *wire.Command) (key [16]byte) {
	var buf [512]byte
	b := append(buf[:0], c.Tenant...)
	b = append(b, 0, c.Type)
	b = append(b, c.Key...)
	sum := sha256.Sum256(b)
	copy(key[:], sum[:])
	return key
}

func hashResult(key *[16]byte) uint64 { return mem.Mix(le.Uint64(key[:]), le.Uint64(key[8:])) }

// remembered returns the answer to a key that is still kept.
func (m *Machine) remembered(key *[16]byte) (*resultRec, bool) {
	s, ok := m.resultByKey.Find(hashResult(key), func(s uint32) bool { return m.results.Get(s).key == *key })
	if !ok || m.results.Get(s).expires <= m.now.time {
		return nil, false
	}
	return m.results.Get(s), true
}

// remember stores the answer to a key.
func (m *Machine) remember(key *[16]byte, body uint64, res *Result) {
	if s, ok := m.resultByKey.Find(hashResult(key), func(s uint32) bool { return m.results.Get(s).key == *key }); ok {
		// An expired answer that was not dropped yet: it no longer answers.
		m.resultByKey.Delete(hashResult(key), s)
	}
	slot, ok := m.resultSlots.Alloc()
	if !ok {
		return // asked before: cannot be
	}
	meta := m.meta.Mut()
	expires := m.now.time.Add(m.policy.Get().ResultTTL)
	if meta.resultsEnd != 0 {
		last := m.results.Mut(meta.resultsEnd.slot())
		last.next = refTo(slot)
		expires = max(expires, last.expires) // the queue stays in order when policy shortens
	} else {
		meta.results = refTo(slot)
	}
	meta.resultsEnd = refTo(slot)
	m.results.Put(slot, resultRec{
		key: *key, body: body, job: res.Job, inc: res.Incarnation, index: res.Index,
		expires: expires, tasks: res.Tasks, leased: res.Leased, code: res.Code,
	})
	m.resultByKey.Insert(hashResult(key), slot)
}

// forgetResults drops answers whose time is over.
func (m *Machine) forgetResults() {
	for range expiriesPerEntry {
		head := m.meta.Get().results
		if head == 0 || m.results.Get(head.slot()).expires > m.now.time {
			return
		}
		r := *m.results.Get(head.slot())
		meta := m.meta.Mut()
		if meta.results = r.next; r.next == 0 {
			meta.resultsEnd = 0
		}
		m.resultByKey.Delete(hashResult(&r.key), head.slot())
		*m.results.Mut(head.slot()) = resultRec{}
		m.resultSlots.Free(head.slot())
	}
}
