package store

import (
	"bytes"
	"encoding/binary"
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

// Jobs returns retired jobs without their specs by falling ID, which begins
// with the time of the submit: those behind the given one, or from the newest
// when it is zero. It looks at 1,000 jobs at most; last is the last one looked
// at, zero at the end.
func (a *Archive) Jobs(after gpuai.JobID, limit int, status *gpuai.JobStatus) (page []gpuai.Job, last gpuai.JobID, err error) {
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
			if r.Job.Spec = nil; status == nil || r.Job.Status == *status {
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

// JobEvents returns events of a job, retired or not, in their order: those
// behind a place, from the first when it is zero. more says that there are
// others behind last.
func (a *Archive) JobEvents(id gpuai.JobID, after EventPlace, limit int) (events []gpuai.Event, last EventPlace, more bool, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		events, last, more = nil, after, false
		read := 0
		c := tx.Bucket(bucketJobEvents).Cursor()
		for k, _ := c.Seek(jobEventKey(id, after.Index)); bytes.HasPrefix(k, id[:]); k, _ = c.Next() {
			key := k[len(id):]
			row := tx.Bucket(bucketEntries).Get(key)
			if row == nil {
				continue // dropped
			}
			if more = len(events) >= limit || read >= maxArchiveRead; more {
				return nil
			}
			read += len(row)
			index := binary.BigEndian.Uint64(key)
			err := openEvents(key, row, func(e *gpuai.Event) bool {
				if e.Job != id || index == after.Index && e.Ordinal <= after.Ordinal {
					return true
				}
				if more = len(events) >= limit; !more {
					events = append(events, *e)
					last = EventPlace{Index: index, Ordinal: e.Ordinal}
				}
				return !more
			})
			if err != nil || more {
				return err
			}
		}
		return nil
	})
	return events, last, more, err
}
