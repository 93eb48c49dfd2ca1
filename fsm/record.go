package fsm

import (
	"encoding/binary"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A ref is a slot + 1; 0 is none. Slots are handed out lowest first, so they
// are a function of the state, are written in snapshots, and are equal on all
// replicas (docs/adr/0001-slots-are-state.md).
type ref uint32

func refTo(slot uint32) ref       { return ref(slot + 1) }
func (r ref) slot() uint32        { return uint32(r) - 1 }
func (r ref) put(b []byte) []byte { return le.AppendUint32(b, uint32(r)) }

var le = binary.LittleEndian

func put64(b []byte, v int64) []byte { return le.AppendUint64(b, uint64(v)) }

// A metaRec is what the machine knows of itself.
type metaRec struct {
	index, term uint64
	time        gpuai.Instant
	wall        gpuai.WallTime
	chain       uint64 // over all commands and results; not hashed again
	seq         uint64 // of the newest job
	level       uint32
	epoch       uint8
	restore     [16]byte // names the restore that began the epoch
	newest      ref      // job
	results     ref      // oldest remembered answer
	resultsEnd  ref      // newest
	pending     uint64   // tasks that wait or back off, of open jobs
	milliUsed   uint64   // of devices, by live leases
	liveLeases  uint32
	revoking    uint32
	jobStates   [5]uint32
	quietUntil  gpuai.Instant // before it nothing is granted; from LevelRestore on
	countedFrom gpuai.Token   // leases from it on count in their tenants' held; from LevelPlacement on
	reserve     reservation   // the same
}

func (r *metaRec) put(b []byte) []byte {
	b = le.AppendUint64(b, r.index)
	b = le.AppendUint64(b, r.term)
	b = put64(b, int64(r.time))
	b = put64(b, int64(r.wall))
	b = le.AppendUint64(b, r.seq)
	b = le.AppendUint32(b, r.level)
	b = append(b, r.epoch)
	b = append(b, r.restore[:]...)
	b = r.newest.put(b)
	b = r.results.put(b)
	b = r.resultsEnd.put(b)
	b = le.AppendUint64(b, r.pending)
	b = le.AppendUint64(b, r.milliUsed)
	b = le.AppendUint32(b, r.liveLeases)
	b = le.AppendUint32(b, r.revoking)
	for _, n := range r.jobStates {
		b = le.AppendUint32(b, n)
	}
	if r.level >= LevelRestore {
		b = put64(b, int64(r.quietUntil))
	}
	if r.level >= LevelPlacement {
		b = le.AppendUint64(b, uint64(r.countedFrom))
		b = r.reserve.group.put(b)
		b = put64(b, int64(r.reserve.shadow))
		b = append(b, bool8(r.reserve.wanted))
	}
	return b
}

// flagTail is set in the last flag of a record that has fields of a later
// feature level behind it.
const flagTail = 2

// Seeds keep equal records of different tables apart in the hash.
const (
	seedMeta = iota + 1
	seedPolicy
	seedNode
	seedJob
	seedGroup
	seedTask
	seedLease
	seedResult
	seedBucket
	seedChain
	seedServer
	seedWait
	seedEdge
	seedTenant
	seedHold
	seedCheckpoint
)

const (
	seedNote      = 32
	seedAccount   = 37
	seedToken     = 38
	seedRole      = 39
	seedAccess    = 40
	seedAuthority = 33
	seedJoinToken = 34
	seedIdentity  = 35
	seedRegionKey = 58
	seedPoint     = 41
	seedQuota     = 45
	seedPurse     = 46
	seedBill      = 47
	seedMoney     = 48
)

// A putter is a record's codec: it appends every field that replicas agree on,
// in a fixed order and width.
type putter[T any] interface {
	*T
	put(b []byte) []byte
}

// hasher returns the record hash of a table: 0 for the zero record.
func hasher[T comparable, P putter[T]](seed uint64) func([]byte, uint32, *T) uint64 {
	var zero T
	return func(buf []byte, i uint32, r *T) uint64 {
		if *r == zero {
			return 0
		}
		return mem.HashBytes(seed<<32|uint64(i), P(r).put(buf))
	}
}
