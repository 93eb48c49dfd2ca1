package server

import (
	"errors"
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/store"
)

// attemptPage is how many events of a job are looked through at once.
const attemptPage = 4096

// A run is one attempt of a task: its lease, and where that was.
type run struct {
	lease gpuai.Token
	node  gpuai.NodeID
	task  gpuai.TaskRef
}

// runOfQuery finds the attempt whose output is asked for: under the lease that
// is named, of the number that is named, or the latest of the task.
func (s *Server) runOfQuery(q *httpd.LogQuery) (run, error) {
	if q.Lease != 0 {
		return s.runOfLease(q.Lease, q.Tenant)
	}
	job, err := s.Job(q.Job, true)
	if err != nil {
		return run{}, err
	}
	t, err := s.taskOf(&job, q)
	if err != nil {
		return run{}, err
	}
	if t.Lease == 0 {
		return run{}, notFound(fmt.Sprintf("task %d of job %s has not started yet, so it has no logs", q.Task, job.ID))
	}
	if q.Attempt > 0 {
		return s.attempt(&job, q)
	}
	l, err := s.Lease(t.Lease, q.Tenant)
	return run{l.ID, l.Node, l.TaskRef}, err
}

// taskOf returns the task of a job that is asked for, with its latest lease if
// it has had one.
func (s *Server) taskOf(job *gpuai.Job, q *httpd.LogQuery) (t gpuai.Task, err error) {
	if job.Spec == nil || int(q.Group) >= len(job.Spec.Groups) || q.Task >= job.Spec.Groups[q.Group].Count {
		return t, notFound(fmt.Sprintf("job %s has no task %d in group %d", job.ID, q.Task, q.Group))
	}
	at := q.Task
	for i := range job.Spec.Groups[:q.Group] {
		at += job.Spec.Groups[i].Count
	}
	var tasks []gpuai.Task
	if job.Archived {
		tasks, err = s.archivedTasks(job.ID, uint64(at), 1)
	} else {
		s.node.View(func(m *fsm.Machine) { tasks = m.Tasks(job.ID, at, 1) })
	}
	if err != nil || len(tasks) == 0 {
		return t, err
	}
	return tasks[0], nil
}

// attempt returns a task's run by its number. Of earlier ones only the history
// tells.
func (s *Server) attempt(job *gpuai.Job, q *httpd.LogQuery) (r run, err error) {
	if err := s.archivedUpTo(s.ctx, s.machineIndex()); err != nil {
		return r, err
	}
	n := uint32(0)
	events := store.EventQuery{Job: job.ID, Submitted: job.SubmitIndex, Limit: attemptPage}
	for more := true; more && err == nil; {
		err = s.archivedPage(func(db *store.Archive) (err error) {
			var page []gpuai.Event
			page, events.After, more, err = db.JobEvents(events)
			more = more && len(page) > 0
			for i := range page {
				if e := &page[i]; e.Kind == gpuai.LeaseGrantedEvent && e.Group == q.Group && e.Task == q.Task {
					if n++; n == q.Attempt {
						r, more = grantOf(e), false
						return nil
					}
				}
			}
			return err
		})
	}
	if err == nil && r.lease == 0 {
		err = notFound(fmt.Sprintf("task %d of job %s has had %d attempts that the history knows of, not %d", q.Task, job.ID, n, q.Attempt))
	}
	return r, err
}

// runOfLease returns where a lease was. The machine and the archive keep the
// latest of each task; of an earlier one the event of its grant tells. Another
// tenant's lease is as unknown as none; "" is any.
func (s *Server) runOfLease(t gpuai.Token, tenant gpuai.TenantID) (r run, err error) {
	l, gone := s.Lease(t, tenant)
	if gone == nil {
		return run{l.ID, l.Node, l.TaskRef}, nil
	}
	if !errors.Is(gone, &gpuai.Error{Code: gpuai.NotFound}) {
		return r, gone
	}
	var job gpuai.JobID
	err = s.archivedPage(func(db *store.Archive) error {
		rows, _, _, err := db.Rows(store.ArchivePlace{Index: t.Index()}, t.Index(), 1)
		if err != nil || len(rows) == 0 || rows[0].Kind != store.ArchiveEvents {
			return err
		}
		return rows[0].Events(func(e *gpuai.Event) bool {
			if e.Kind == gpuai.LeaseGrantedEvent && e.Lease == t {
				r, job = grantOf(e), e.Job
			}
			return r.lease == 0
		})
	})
	if err == nil && r.lease != 0 && tenant != "" {
		if _, foreign := s.FindJob(job.String(), tenant); foreign != nil {
			r = run{}
		}
	}
	if err == nil && r.lease == 0 {
		err = gone
	}
	return r, err
}

// grantOf is the run that an event of a grant began.
func grantOf(e *gpuai.Event) run {
	return run{e.Lease, e.Node, gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}}
}
