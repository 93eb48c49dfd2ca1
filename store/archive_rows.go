package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/gpuai/gpuai"
)

// A row of the archive is a version byte, the CRC32C of its key and of what
// follows, and the body: JSON for what a person may want to look up, and a
// compact form for events, of which there are many.

const archiveVersion = 1

const rowHeader = 5

var errRowShort = errors.New("a row is cut short")

// sealRow completes a row whose body stands behind rowHeader bytes.
func sealRow(key, b []byte) []byte {
	b[0] = archiveVersion
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, b[rowHeader:])
	binary.BigEndian.PutUint32(b[1:rowHeader], sum)
	return b
}

// openRow checks a row and returns its body.
func openRow(key, b []byte) ([]byte, error) {
	switch {
	case len(b) < rowHeader:
		return nil, errRowShort
	case b[0] != archiveVersion:
		return nil, fmt.Errorf("a row has version %d, this build knows %d", b[0], archiveVersion)
	case binary.BigEndian.Uint32(b[1:]) != crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, b[rowHeader:]):
		return nil, errors.New("a row fails its checksum")
	}
	return b[rowHeader:], nil
}

func sealJSON(key []byte, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a row of the history archive: %w", err)
	}
	return sealRow(key, append(make([]byte, rowHeader, rowHeader+len(body)), body...)), nil
}

func openJSON(key, b []byte, into any) error {
	body, err := openRow(key, b)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("decode a row: %w", err)
	}
	return nil
}

// A jobRow is a retired job without its tasks.
type jobRow struct {
	Index   uint64    `json:"index"`   // at which it left the machine
	Ordinal uint32    `json:"ordinal"` // among those that left with it
	Job     gpuai.Job `json:"job"`
}

func openJobRow(key, b []byte) (r jobRow, err error) {
	if err = openJSON(key, b, &r); err == nil && string(r.Job.ID[:]) != string(key) {
		err = errors.New("a job is filed under another ID")
	}
	if err == nil && r.Job.Spec == nil {
		err = errors.New("a job has no spec")
	}
	r.Job.Archived = true
	return r, err
}

// A taskRow is a task of a retired job with its latest lease.
type taskRow struct {
	Task  gpuai.Task  `json:"task"`
	Lease gpuai.Lease `json:"lease"`
}

func openTaskRow(key, b []byte) (r taskRow, err error) {
	if err = openJSON(key, b, &r); err == nil && string(taskKey(r.Task.TaskRef)) != string(key) {
		err = errors.New("a task is filed under another name")
	}
	return r, err
}

// Keys sort as what they name: big-endian throughout.

func indexKey(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i) }

func retiredKey(i uint64, ordinal uint32) []byte {
	return binary.BigEndian.AppendUint32(indexKey(i), ordinal)
}

func taskKey(t gpuai.TaskRef) []byte {
	b := binary.BigEndian.AppendUint16(append(make([]byte, 0, 22), t.Job[:]...), t.Group)
	return binary.BigEndian.AppendUint32(b, t.Task)
}

func jobEventKey(j gpuai.JobID, i uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 24), j[:]...), i)
}

func nameKey(name string, j gpuai.JobID) []byte {
	return append(append([]byte(name), 0), j[:]...)
}

// Bits of an event that say what follows its kind.
const (
	eventHasJob = 1 << iota
	eventHasLease
	eventHasNode
	eventDrained
	eventHasBy
	eventHasCheckpoint
	eventHasTold   // what an agent said: end code, reason, image
	eventHasTenant // the last: a further bit makes this two bytes, in rows of another kind
)

// sealEvents encodes the events of one entry, which share index and time.
func sealEvents(key []byte, events []gpuai.Event) []byte {
	b := make([]byte, rowHeader, rowHeader+16+64*len(events))
	b = binary.AppendVarint(b, int64(events[0].At))
	b = binary.AppendUvarint(b, uint64(len(events)))
	for i := range events {
		b = appendEvent(b, &events[i])
	}
	return sealRow(key, b)
}

func appendEvent(b []byte, e *gpuai.Event) []byte {
	has := eventBits(e)
	b = append(b, byte(e.Kind), has)
	b = binary.AppendUvarint(b, uint64(e.Ordinal))
	if has&eventHasJob != 0 {
		b = append(b, e.Job[:]...)
		b = binary.AppendUvarint(b, uint64(e.Group))
		b = binary.AppendUvarint(b, uint64(e.Task))
	}
	if has&eventHasLease != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(e.Lease))
	}
	if has&eventHasNode != 0 {
		b = append(binary.AppendUvarint(b, uint64(len(e.Node))), e.Node...)
	}
	b = binary.AppendUvarint(b, uint64(e.Incarnation))
	b = append(b, byte(e.JobStatus), byte(e.NodeState), byte(e.Cause))
	b = binary.AppendVarint(b, int64(e.ExitCode))
	if has&eventHasBy != 0 {
		b = append(b, e.By[:]...)
	}
	if has&eventHasCheckpoint != 0 {
		b = binary.AppendUvarint(b, e.Checkpoint)
	}
	if has&eventHasTold != 0 {
		b = append(b, byte(e.EndCode))
		b = append(binary.AppendUvarint(b, uint64(len(e.Reason))), e.Reason...)
		b = append(binary.AppendUvarint(b, uint64(len(e.Image))), e.Image...)
	}
	if has&eventHasTenant != 0 {
		b = append(binary.AppendUvarint(b, uint64(len(e.Tenant))), e.Tenant...)
	}
	return b
}

func eventBits(e *gpuai.Event) (has byte) {
	if !e.Job.IsZero() {
		has |= eventHasJob
	}
	if e.Lease != 0 {
		has |= eventHasLease
	}
	if e.Node != "" {
		has |= eventHasNode
	}
	if e.Drained {
		has |= eventDrained
	}
	if !e.By.IsZero() {
		has |= eventHasBy
	}
	if e.Checkpoint != 0 {
		has |= eventHasCheckpoint
	}
	if e.EndCode != 0 || e.Reason != "" || e.Image != "" {
		has |= eventHasTold
	}
	if e.Tenant != "" {
		has |= eventHasTenant
	}
	return has
}

// openEvents calls f with each event of an entry's row until it says false.
// The event is valid during the call.
func openEvents(key, row []byte, f func(e *gpuai.Event) bool) error {
	body, err := openRow(key, row)
	if err != nil {
		return err
	}
	if len(key) != 8 {
		return errors.New("an entry is filed under no index")
	}
	r := eventReader{b: body}
	at, n := r.varint(), r.uvarint(uint64(len(body)))
	for ; n > 0 && r.err == nil; n-- {
		e := gpuai.Event{Index: binary.BigEndian.Uint64(key), At: gpuai.Instant(at)}
		if r.event(&e); r.err == nil && !f(&e) {
			return nil
		}
	}
	if r.err == nil && len(r.b) > 0 {
		r.err = errors.New("a row has bytes behind its events")
	}
	return r.err
}

// An eventReader reads from the front of b. After an error it reads zeros.
type eventReader struct {
	b   []byte
	err error
}

func (r *eventReader) event(e *gpuai.Event) {
	e.Kind = gpuai.EventKind(r.byte())
	has := r.byte()
	e.Ordinal, e.Drained = uint32(r.uvarint(1<<32-1)), has&eventDrained != 0
	if has&eventHasJob != 0 {
		copy(e.Job[:], r.bytes(16))
		e.Group, e.Task = uint16(r.uvarint(1<<16-1)), uint32(r.uvarint(1<<32-1))
	}
	if has&eventHasLease != 0 {
		if b := r.bytes(8); b != nil {
			e.Lease = gpuai.Token(binary.BigEndian.Uint64(b))
		}
	}
	if has&eventHasNode != 0 {
		e.Node = gpuai.NodeID(r.bytes(r.uvarint(uint64(len(r.b)))))
	}
	e.Incarnation = gpuai.Incarnation(r.uvarint(1<<64 - 1))
	e.JobStatus, e.NodeState, e.Cause = gpuai.JobStatus(r.byte()), gpuai.NodeState(r.byte()), gpuai.LeaseCause(r.byte())
	e.ExitCode = int32(r.varint())
	if has&eventHasBy != 0 {
		copy(e.By[:], r.bytes(16))
	}
	if has&eventHasCheckpoint != 0 {
		e.Checkpoint = r.uvarint(1<<64 - 1)
	}
	if has&eventHasTold != 0 {
		e.EndCode = gpuai.EndCode(r.byte())
		e.Reason = string(r.bytes(r.uvarint(uint64(len(r.b)))))
		e.Image = string(r.bytes(r.uvarint(uint64(len(r.b)))))
	}
	if has&eventHasTenant != 0 {
		e.Tenant = gpuai.TenantID(r.bytes(r.uvarint(uint64(len(r.b)))))
	}
}

func (r *eventReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *eventReader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *eventReader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail(errRowShort)
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *eventReader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.fail(errRowShort)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *eventReader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail(errRowShort)
		return 0
	}
	r.b = r.b[n:]
	return v
}
