package store

import (
	"bytes"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/gpuai/gpuai"
)

const (
	// maxArchiveScan bounds the rows that one page looks at.
	maxArchiveScan = 1_000
	// maxArchiveRead bounds the bytes of events that one page looks at.
	maxArchiveRead = 32 << 20
)

// Job returns a retired job with its spec.
func (a *Archive) Job(id gpuai.JobID) (job gpuai.Job, ok bool, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketJobs).Get(id[:])
		if raw == nil {
			return nil
		}
		r, err := openJobRow(id[:], raw)
		job, ok = r.Job, err == nil
		return err
	})
	return job, ok, err
}

// FindJob returns the retired job that ref names: by its ID, by its name, of
// which the newest counts, or by the beginning of an ID. ambiguous: several
// begin so.
func (a *Archive) FindJob(ref string) (id gpuai.JobID, ambiguous bool, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		if x, e := gpuai.ParseJobID(ref); e == nil && tx.Bucket(bucketJobs).Get(x[:]) != nil {
			id = x
			return nil
		}
		c := tx.Bucket(bucketNames).Cursor()
		prefix := append([]byte(ref), 0)
		k, _ := seekBefore(c, append([]byte(ref), 1))
		if len(k) == len(prefix)+len(id) && bytes.HasPrefix(k, prefix) {
			copy(id[:], k[len(prefix):])
			return nil
		}
		id, ambiguous = jobByPrefix(tx, ref)
		return nil
	})
	return id, ambiguous, err
}

// seekBefore moves to the last key below the given one.
func seekBefore(c *bbolt.Cursor, key []byte) (k, v []byte) {
	if k, _ = c.Seek(key); k == nil {
		return c.Last()
	}
	return c.Prev()
}

// minPrefix is how much of an ID its beginning has at least.
const minPrefix = 4

func jobByPrefix(tx *bbolt.Tx, ref string) (id gpuai.JobID, ambiguous bool) {
	if len(ref) < minPrefix || len(ref) >= gpuai.JobIDLen {
		return id, false
	}
	prefix := strings.ToUpper(ref)
	first, err := gpuai.ParseJobID(prefix + strings.Repeat("0", gpuai.JobIDLen-len(prefix)))
	if err != nil {
		return id, false
	}
	c := tx.Bucket(bucketJobs).Cursor()
	for k, _ := c.Seek(first[:]); len(k) == len(id); k, _ = c.Next() {
		if x := gpuai.JobID(k); !strings.HasPrefix(x.String(), prefix) {
			break
		} else if !id.IsZero() {
			return gpuai.JobID{}, true
		} else {
			id = x
		}
	}
	return id, false
}

// Jobs is JobsOf all tenants.
func (a *Archive) Jobs(after gpuai.JobID, limit int, status *gpuai.JobStatus) (page []gpuai.Job, last gpuai.JobID, err error) {
	return a.JobsOf("", after, limit, status)
}

// JobsOf returns retired jobs of a tenant, "" is all, without their specs by falling ID, which begins
// with the time of the submit: those behind the given one, or from the newest
// when it is zero. It looks at 1,000 jobs at most; last is the last one looked
// at, zero at the end.
func (a *Archive) JobsOf(tenant gpuai.TenantID, after gpuai.JobID, limit int, status *gpuai.JobStatus) (page []gpuai.Job, last gpuai.JobID, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		page, last = nil, gpuai.JobID{}
		c := tx.Bucket(bucketJobs).Cursor()
		k, v := c.Last()
		if !after.IsZero() {
			k, v = seekBefore(c, after[:])
		}
		for n := 0; k != nil; k, v = c.Prev() {
			if n == maxArchiveScan || len(page) == limit {
				return nil
			}
			r, err := openJobRow(k, v)
			if err != nil {
				return err
			}
			n++
			last = r.Job.ID
			if r.Job.Spec = nil; (status == nil || r.Job.Status == *status) && (tenant == "" || r.Job.Tenant == tenant) {
				page = append(page, r.Job)
			}
		}
		last = gpuai.JobID{}
		return nil
	})
	return page, last, err
}

// Tasks returns tasks of a retired job, by group and index, from the from-th on.
func (a *Archive) Tasks(id gpuai.JobID, from uint32, limit int) (tasks []gpuai.Task, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketJobs).Get(id[:])
		if raw == nil {
			return nil
		}
		j, err := openJobRow(id[:], raw)
		if err != nil {
			return err
		}
		skip := uint64(from)
		for g := range j.Job.Spec.Groups {
			count := uint64(j.Job.Spec.Groups[g].Count)
			for t := skip; t < count && len(tasks) < limit; t++ {
				x, err := taskOf(tx, gpuai.TaskRef{Job: id, Group: uint16(g), Task: uint32(t)})
				if err != nil {
					return err
				}
				tasks = append(tasks, x)
			}
			skip -= min(skip, count)
		}
		return nil
	})
	return tasks, err
}

// taskOf returns a task. One without a row was stopped before it had a lease.
func taskOf(tx *bbolt.Tx, ref gpuai.TaskRef) (gpuai.Task, error) {
	key := taskKey(ref)
	raw := tx.Bucket(bucketTasks).Get(key)
	if raw == nil {
		return gpuai.Task{TaskRef: ref, Status: gpuai.TaskStopped}, nil
	}
	r, err := openTaskRow(key, raw)
	return r.Task, err
}

// Leases returns the latest lease of each of a retired job's tasks, by group
// and task, those behind the given one.
func (a *Archive) Leases(id gpuai.JobID, after gpuai.Token, limit int) (leases []gpuai.Lease, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketTasks).Cursor()
		k, v := c.Seek(id[:])
		if at := tx.Bucket(bucketTokens).Get(indexKey(uint64(after))); after != 0 && bytes.HasPrefix(at, id[:]) {
			if k, v = c.Seek(at); bytes.Equal(k, at) {
				k, v = c.Next()
			}
		}
		for ; bytes.HasPrefix(k, id[:]) && len(leases) < limit; k, v = c.Next() {
			r, err := openTaskRow(k, v)
			if err != nil {
				return err
			}
			leases = append(leases, r.Lease)
		}
		return nil
	})
	return leases, err
}

// Lease returns the lease of a token, if it is the latest of a retired job's
// task.
func (a *Archive) Lease(t gpuai.Token) (l gpuai.Lease, ok bool, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		key := tx.Bucket(bucketTokens).Get(indexKey(uint64(t)))
		if key == nil {
			return nil
		}
		raw := tx.Bucket(bucketTasks).Get(key)
		if raw == nil {
			return nil
		}
		r, err := openTaskRow(key, raw)
		l, ok = r.Lease, err == nil && r.Lease.ID == t
		return err
	})
	return l, ok, err
}

// An EventPlace is the place of an event in the log.
type EventPlace struct {
	Index   uint64
	Ordinal uint32
}

// An EventQuery asks for events of a job, retired or not.
type EventQuery struct {
	Job       gpuai.JobID
	Submitted uint64     // index of its submit
	After     EventPlace // zero: from the first
	Limit     int
}

// JobEvents returns events of a job in their order. more says that there are
// others behind last.
func (a *Archive) JobEvents(q EventQuery) (events []gpuai.Event, last EventPlace, more bool, err error) {
	r := jobEventReader{q: q, last: q.After}
	err = a.view(func(tx *bbolt.Tx) error {
		r.tx = tx
		if q.Submitted >= q.After.Index {
			if err := r.entry(indexKey(q.Submitted)); err != nil || r.more {
				return err
			}
		}
		c := tx.Bucket(bucketJobEvents).Cursor()
		for k, _ := c.Seek(jobEventKey(q.Job, max(q.After.Index, q.Submitted+1))); bytes.HasPrefix(k, q.Job[:]); k, _ = c.Next() {
			if err := r.entry(k[len(q.Job):]); err != nil || r.more {
				return err
			}
		}
		return nil
	})
	return r.events, r.last, r.more, err
}

type jobEventReader struct {
	tx     *bbolt.Tx
	q      EventQuery
	read   int // bytes
	events []gpuai.Event
	last   EventPlace
	more   bool
}

// entry adds the job's events of one entry, if that was not dropped.
func (r *jobEventReader) entry(key []byte) error {
	row := r.tx.Bucket(bucketEntries).Get(key)
	if row == nil {
		return nil
	}
	if r.more = len(r.events) >= r.q.Limit || r.read >= maxArchiveRead; r.more {
		return nil
	}
	r.read += len(row)
	return openEvents(key, row, func(e *gpuai.Event) bool {
		if e.Job != r.q.Job || e.Index == r.q.After.Index && e.Ordinal <= r.q.After.Ordinal {
			return true
		}
		if r.more = len(r.events) >= r.q.Limit; !r.more {
			r.events = append(r.events, *e)
			r.last = EventPlace{Index: e.Index, Ordinal: e.Ordinal}
		}
		return !r.more
	})
}
