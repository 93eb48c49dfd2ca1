package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/gpuai/gpuai"
)

// An ArchivePlace is a place in an archive read by log index: at each index
// first the entry's events, then each job that left with it, followed by its
// tasks.
type ArchivePlace struct {
	Index uint64 `json:"index"`
	Job   uint32 `json:"job,omitzero"`  // 0: the events; else the ordinal of a job, + 1
	Task  uint64 `json:"task,omitzero"` // 0: the job itself; else group << 32 | task, + 1
}

// An ArchiveKind says what a row holds.
type ArchiveKind byte

// The kinds.
const (
	ArchiveEvents ArchiveKind = 'e' // of one entry
	ArchiveJob    ArchiveKind = 'j'
	ArchiveTask   ArchiveKind = 't' // with its latest lease
	ArchiveAudit  ArchiveKind = 'a' // of one entry; see Audits
)

// bucket returns where rows of a kind are; nil for no kind.
func (k ArchiveKind) bucket() []byte {
	switch k {
	case ArchiveEvents:
		return bucketEntries
	case ArchiveJob:
		return bucketJobs
	case ArchiveTask:
		return bucketTasks
	case ArchiveAudit:
		return bucketAudit
	default:
		return nil
	}
}

// An ArchiveRow is a row as it is stored, under the index at which it is found.
type ArchiveRow struct {
	Kind       ArchiveKind
	Index      uint64
	Key, Value []byte
}

// Events calls f for each event of a row of events.
func (r *ArchiveRow) Events(f func(*gpuai.Event) bool) error { return openEvents(r.Key, r.Value, f) }

// Job returns the job of a row of that kind.
func (r *ArchiveRow) Job() (gpuai.Job, error) {
	j, err := openJobRow(r.Key, r.Value)
	return j.Job, err
}

// Task returns the task of a row of that kind, and its lease.
func (r *ArchiveRow) Task() (gpuai.Task, gpuai.Lease, error) {
	t, err := openTaskRow(r.Key, r.Value)
	return t.Task, t.Lease, err
}

// Rows returns copies of rows from a place on up to an index, until they have
// maxBytes. done: there are no more; else next is where to go on.
func (a *Archive) Rows(from ArchivePlace, to uint64, maxBytes int) (rows []ArchiveRow, next ArchivePlace, done bool, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		r := rowReader{tx: tx, left: maxBytes, place: from}
		done = r.read(to)
		rows, next = r.rows, r.place
		return r.err
	})
	return rows, next, done, err
}

// A rowReader collects rows by index. place is that of the next one.
type rowReader struct {
	tx    *bbolt.Tx
	rows  []ArchiveRow
	left  int
	place ArchivePlace
	err   error
}

// read reads up to an index and reports whether there was room for all.
func (r *rowReader) read(to uint64) bool {
	entries, retired := r.tx.Bucket(bucketEntries).Cursor(), r.tx.Bucket(bucketRetired).Cursor()
	ek, ev := entries.Seek(indexKey(r.place.Index))
	if r.place.Job > 0 && ek != nil && binary.BigEndian.Uint64(ek) == r.place.Index {
		ek, ev = entries.Next()
	}
	rk, rv := retired.Seek(retiredKey(r.place.Index, max(r.place.Job, 1)-1))
	for ek != nil || rk != nil {
		if rk == nil || ek != nil && bytes.Compare(ek, rk[:8]) <= 0 {
			index := binary.BigEndian.Uint64(ek)
			if index > to {
				return true
			}
			if !r.row(ArchivePlace{Index: index}, ArchiveEvents, ek, ev) {
				return false
			}
			ek, ev = entries.Next()
			continue
		}
		index, ordinal := binary.BigEndian.Uint64(rk), binary.BigEndian.Uint32(rk[8:])
		if index > to {
			return true
		}
		if !r.job(ArchivePlace{Index: index, Job: ordinal + 1}, rv) {
			return false
		}
		rk, rv = retired.Next()
	}
	return true
}

// row adds one row, or says that there is no room for it.
func (r *rowReader) row(at ArchivePlace, kind ArchiveKind, k, v []byte) bool {
	if r.place = at; r.left <= 0 || r.err != nil {
		return false
	}
	r.left -= len(k) + len(v)
	r.rows = append(r.rows, ArchiveRow{Kind: kind, Index: at.Index, Key: slices.Clone(k), Value: slices.Clone(v)})
	return true
}

// job adds a retired job and its tasks, from the reader's place on.
func (r *rowReader) job(at ArchivePlace, id []byte) bool {
	task := uint64(0)
	if r.place.Index == at.Index && r.place.Job == at.Job {
		task = r.place.Task
	}
	if task == 0 {
		v := r.tx.Bucket(bucketJobs).Get(id)
		if v == nil {
			r.err = fmt.Errorf("the job that left at index %d is missing", at.Index)
			return false
		}
		if !r.row(at, ArchiveJob, id, v) {
			return false
		}
	}
	c := r.tx.Bucket(bucketTasks).Cursor()
	from := id
	if task > 0 {
		from = taskKey(gpuai.TaskRef{Job: gpuai.JobID(id), Group: uint16((task - 1) >> 32), Task: uint32(task - 1)})
	}
	for k, v := c.Seek(from); bytes.HasPrefix(k, id); k, v = c.Next() {
		at.Task = 1 + uint64(binary.BigEndian.Uint16(k[16:]))<<32 + uint64(binary.BigEndian.Uint32(k[18:]))
		if !r.row(at, ArchiveTask, k, v) {
			return false
		}
	}
	return true
}

// Fill stores rows of another server's archive, and that the indexes r are
// covered with them; an empty range covers nothing. Rows may come again.
func (a *Archive) Fill(rows []ArchiveRow, r gpuai.IndexRange) error {
	for i := range rows { // before the file is touched: they came over the network
		if err := rows[i].check(); err != nil {
			return fmt.Errorf("a row of another server's history archive: %w", err)
		}
	}
	return a.update(func(tx *bbolt.Tx, s *ArchiveState) error {
		w := rowWriter{tx: tx}
		for i := range rows {
			w.row(&rows[i])
		}
		s.Covered = addRange(s.Covered, r)
		return w.finish()
	})
}

// Lack notes that rows up to an index are gone from the archive that they were
// to come from.
func (a *Archive) Lack(upto uint64) error {
	return a.update(func(_ *bbolt.Tx, s *ArchiveState) error {
		s.Dropped = max(s.Dropped, upto)
		s.Covered = addRange(s.Covered, gpuai.IndexRange{From: 1, To: upto})
		return nil
	})
}

func (r *ArchiveRow) check() error {
	switch r.Kind {
	case ArchiveEvents:
		return r.Events(func(*gpuai.Event) bool { return true })
	case ArchiveJob:
		_, err := r.Job()
		return err
	case ArchiveTask:
		_, _, err := r.Task()
		return err
	case ArchiveAudit:
		_, err := r.Audit()
		return err
	default:
		return fmt.Errorf("it has the unknown kind %q", byte(r.Kind))
	}
}

// row stores a checked row.
func (w *rowWriter) row(r *ArchiveRow) {
	switch r.Kind {
	case ArchiveEvents:
		w.submitted = gpuai.JobID{}
		w.put(bucketEntries, r.Key, r.Value)
		w.fail(r.Events(func(e *gpuai.Event) bool { w.jobEvent(e); return true }))
	case ArchiveJob:
		j, err := openJobRow(r.Key, r.Value)
		w.fail(err)
		w.job(&j, r.Value)
	case ArchiveTask:
		t, err := openTaskRow(r.Key, r.Value)
		w.fail(err)
		w.task(&t, r.Value)
	case ArchiveAudit:
		w.put(bucketAudit, r.Key, r.Value)
	}
}

// AppendRows appends rows in the form in which servers send them to each other.
func AppendRows(dst []byte, rows []ArchiveRow) []byte {
	for i := range rows {
		r := &rows[i]
		dst = append(dst, byte(r.Kind))
		dst = append(binary.AppendUvarint(dst, uint64(len(r.Key))), r.Key...)
		dst = append(binary.AppendUvarint(dst, uint64(len(r.Value))), r.Value...)
	}
	return dst
}

// ReadRows reads what AppendRows wrote; Index is left out. The rows share b,
// and are not checked: Fill does that.
func ReadRows(b []byte) (rows []ArchiveRow, err error) {
	r := eventReader{b: b}
	for len(r.b) > 0 {
		row := ArchiveRow{Kind: ArchiveKind(r.byte())}
		row.Key = r.bytes(r.uvarint(uint64(len(b))))
		row.Value = r.bytes(r.uvarint(uint64(len(b))))
		rows = append(rows, row)
	}
	if r.err != nil {
		return nil, errors.New("rows of a history archive are cut short")
	}
	return rows, nil
}

// trimRows bounds the rows that one transaction of Trim drops, but for the
// tasks of one job.
const trimRows = 1_024

// Trim drops the oldest entries, jobs and links of the audit, by log index, until what is left
// takes at most maxBytes of the file. It returns how many jobs were dropped.
func (a *Archive) Trim(maxBytes int64) (jobs int, err error) {
	for {
		used, _ := a.Size()
		if used <= maxBytes {
			return jobs, nil
		}
		t := trimmer{}
		err := a.update(func(tx *bbolt.Tx, s *ArchiveState) error {
			t = trimmer{tx: tx, dropped: s.Dropped}
			for t.err == nil && t.rows < trimRows && t.bytes < used-maxBytes && t.oldest() {
				t.rows++
			}
			s.Dropped = t.dropped
			return t.err
		})
		jobs += t.jobs
		if err != nil || t.rows == 0 { // an empty archive is as small as it gets
			return jobs, err
		}
	}
}

type trimmer struct {
	tx         *bbolt.Tx
	rows, jobs int
	bytes      int64 // of the rows, without what is derived from them
	dropped    uint64
	err        error
}

// oldest drops the oldest entry, job or link of the audit; false when there is none.
func (t *trimmer) oldest() bool {
	ek, ev := t.tx.Bucket(bucketEntries).Cursor().First()
	rk, id := t.tx.Bucket(bucketRetired).Cursor().First()
	ak, av := t.tx.Bucket(bucketAudit).Cursor().First()
	switch {
	case ak != nil && (ek == nil || bytes.Compare(ak, ek) <= 0) && (rk == nil || bytes.Compare(ak, rk[:8]) <= 0):
		t.bytes += int64(len(ak) + len(av))
		t.dropped = max(t.dropped, binary.BigEndian.Uint64(ak))
		t.delete(bucketAudit, slices.Clone(ak))
	case ek == nil && rk == nil:
		return false
	case rk == nil || ek != nil && bytes.Compare(ek, rk[:8]) <= 0:
		t.entry(slices.Clone(ek), ev)
	default:
		t.job(slices.Clone(rk), slices.Clone(id))
	}
	return true
}

func (t *trimmer) delete(bucket, key []byte) {
	if t.err == nil {
		t.err = t.tx.Bucket(bucket).Delete(key)
	}
}

func (t *trimmer) entry(key, row []byte) {
	index := binary.BigEndian.Uint64(key)
	var jobs []gpuai.JobID
	t.err = openEvents(key, row, func(e *gpuai.Event) bool {
		if n := len(jobs); !e.Job.IsZero() && (n == 0 || jobs[n-1] != e.Job) {
			jobs = append(jobs, e.Job)
		}
		return true
	})
	for _, id := range jobs {
		t.delete(bucketJobEvents, jobEventKey(id, index))
	}
	t.bytes += int64(len(key) + len(row))
	t.delete(bucketEntries, key)
	t.dropped = max(t.dropped, index)
}

func (t *trimmer) job(key, id []byte) {
	t.jobs++
	if raw := t.tx.Bucket(bucketJobs).Get(id); raw != nil {
		t.bytes += int64(len(id) + len(raw))
		j, err := openJobRow(id, raw)
		if t.err == nil {
			t.err = err
		}
		t.delete(bucketNames, nameKey(j.Job.Name, j.Job.ID))
	}
	var tasks, tokens [][]byte
	c := t.tx.Bucket(bucketTasks).Cursor()
	for k, v := c.Seek(id); bytes.HasPrefix(k, id) && t.err == nil; k, v = c.Next() {
		r, err := openTaskRow(k, v)
		t.err = err
		t.bytes += int64(len(k) + len(v))
		tasks, tokens = append(tasks, slices.Clone(k)), append(tokens, indexKey(uint64(r.Lease.ID)))
	}
	for i := range tasks {
		t.delete(bucketTasks, tasks[i])
		t.delete(bucketTokens, tokens[i])
	}
	t.delete(bucketJobs, id)
	t.delete(bucketRetired, key)
	t.dropped = max(t.dropped, binary.BigEndian.Uint64(key))
}

// Scrub reads every row once and checks it, some at a time with pause between,
// until ctx ends. The error matches ErrArchiveDamaged.
func (a *Archive) Scrub(ctx context.Context, pause func()) error {
	for _, kind := range [...]ArchiveKind{ArchiveEvents, ArchiveJob, ArchiveTask, ArchiveAudit} {
		var at []byte
		for more := true; more && ctx.Err() == nil; pause() {
			err := a.view(func(tx *bbolt.Tx) (err error) {
				at, more, err = scrubSome(tx, kind, at)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// scrubSome checks rows behind a key.
func scrubSome(tx *bbolt.Tx, kind ArchiveKind, after []byte) (last []byte, more bool, err error) {
	c := tx.Bucket(kind.bucket()).Cursor()
	k, v := c.Seek(after)
	for n := 0; k != nil; k, v = c.Next() {
		if bytes.Equal(k, after) {
			continue
		}
		if n++; n > maxArchiveScan {
			return last, true, nil
		}
		r := ArchiveRow{Kind: kind, Key: k, Value: v}
		if err := r.check(); err != nil {
			return nil, false, fmt.Errorf("row %x: %w", k, err)
		}
		last = append(last[:0], k...)
	}
	return last, false, nil
}
