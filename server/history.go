package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/server/hub"
	"github.com/gpuai/gpuai/store"
)

// What has left the machine is read here, from the history archive. Each read
// looks at the machine first; index is that of the state in which it found
// nothing.

// errHistoryLater is returned while this server fetches history that it misses:
// what was asked for may be in it.
func errHistoryLater(gap gpuai.IndexRange) error {
	return &gpuai.Error{
		Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
		Detail: fmt.Sprintf("this server is still fetching the history of indexes %d to %d from the others: retry, or ask another server", gap.From, gap.To),
	}
}

// archiveError gives the archive's errors their form at the API.
func archiveError(err error) error {
	if errors.Is(err, errNoArchive) || errors.Is(err, store.ErrArchiveDamaged) {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "this server's history archive is being rebuilt: retry, or ask another server",
		}
	}
	return err
}

// look calls f with the archive, once that has what a state at an index no
// longer has. found false becomes the error gone, unless what was asked for may
// yet be fetched.
func (a *archiver) look(index uint64, gone error, f func(db *store.Archive) (found bool, err error)) error {
	a.settle(a.s.ctx, index)
	found := false
	var st store.ArchiveState
	err := a.use(func(db *store.Archive) (err error) {
		found, err = f(db)
		st = db.State()
		return err
	})
	if err != nil || found {
		return archiveError(err)
	}
	gaps := st.Gaps()
	if len(gaps) > 0 && !a.hopeless.Load() {
		return errHistoryLater(gaps[0])
	}
	var e *gpuai.Error
	if !errors.As(gone, &e) || e.Code != gpuai.NotFound {
		return gone
	}
	told := *e
	switch {
	case len(gaps) > 0:
		told.Detail += fmt.Sprintf(" (the history of indexes %d to %d is on none of the servers that answer now)", gaps[0].From, gaps[0].To)
	case st.Dropped > 0:
		told.Detail += fmt.Sprintf(" (history up to index %d made way for newer)", st.Dropped)
	case len(st.Missing) > 0:
		told.Detail += fmt.Sprintf(" (the history of indexes %d to %d is lost)", st.Missing[0].From, st.Missing[0].To)
	}
	return &told
}

// A place is where a job was found.
type place struct {
	id       gpuai.JobID
	archived bool
}

// locate finds the job that ref names, in the machine or in the archive.
func (s *Server) locate(ref string) (p place, err error) { return s.locateOf(ref, "") }

// locateOf is locate among the jobs of a tenant; "" is all.
func (s *Server) locateOf(ref string, tenant gpuai.TenantID) (p place, err error) {
	var index uint64
	s.node.View(func(m *fsm.Machine) {
		p.id, err = m.FindJobOf(ref, tenant)
		index = m.Index()
	})
	if err == nil || !isCode(err, gpuai.NotFound) {
		return p, err
	}
	p.archived = true
	return p, s.archive.look(index, err, func(db *store.Archive) (bool, error) {
		find := db.FindJob
		if tenant != "" {
			find = func(ref string) (gpuai.JobID, bool, error) { return db.FindJobOf(ref, tenant) }
		}
		id, ambiguous, err := find(ref)
		if ambiguous {
			err = gpuai.NewError(gpuai.Conflict, "several jobs begin with "+strings.ToUpper(ref)+": give more of the ID")
		}
		p.id = id
		return !id.IsZero(), err
	})
}

// archivedJob returns a job of the archive.
func (s *Server) archivedJob(id gpuai.JobID, withSpec bool) (job gpuai.Job, err error) {
	err = s.archive.look(s.machineIndex(), notFound("no job "+id.String()+" is kept"), func(db *store.Archive) (ok bool, err error) {
		job, ok, err = db.Job(id)
		return ok, err
	})
	if !withSpec {
		job.Spec = nil
	}
	return job, err
}

func (s *Server) machineIndex() (index uint64) {
	s.node.View(func(m *fsm.Machine) { index = m.Index() })
	return index
}

// archivedPage calls f with the archive for a page of what a job there has.
func (s *Server) archivedPage(f func(db *store.Archive) error) error {
	return archiveError(s.archive.use(f))
}

// newestJobID is behind every job in the order of IDs.
var newestJobID = func() (id gpuai.JobID) {
	for i := range id {
		id[i] = 0xff
	}
	return id
}()

// archivedJobs is the part of a list of jobs that follows the machine's. A job
// that leaves the machine while the list is read may come in both parts.
func (s *Server) archivedJobs(q *httpd.JobQuery, after gpuai.JobID, limit int) (jobs []gpuai.Job, next string, err error) {
	s.archive.settle(s.ctx, s.machineIndex()) // nothing may fall between the two
	err = s.archivedPage(func(db *store.Archive) error {
		for hold := 0; hold < maxHolds; hold++ {
			page, last, err := db.JobsOf(q.Tenant, after, limit-len(jobs), q.Status)
			if jobs = append(jobs, page...); err != nil || last.IsZero() {
				next = ""
				return err
			}
			next = makeCursor("archive", placeOf(q.Tenant, last, after, jobs).String())
			after = last
			if len(jobs) == limit {
				break
			}
		}
		return nil
	})
	return jobs, next, err
}

// placeOf returns where a tenant's list goes on that has looked at jobs behind after,
// up to last: a place between two of its own, which does not name last when that is
// another's. For "" it is last.
func placeOf(tenant gpuai.TenantID, last, after gpuai.JobID, own []gpuai.Job) gpuai.JobID {
	if tenant == "" || len(own) > 0 && own[len(own)-1].ID == last {
		return last
	}
	place := last
	for i := ulidTime; i < len(place); i++ { // the others of its millisecond are looked at again
		place[i] = 0xff
	}
	if n := len(own); n > 0 && bytes.Compare(own[n-1].ID[:], place[:]) < 0 {
		place = own[n-1].ID
	}
	if !after.IsZero() && bytes.Compare(after[:], place[:]) <= 0 {
		return last // or it would not go on
	}
	return place
}

// ulidTime is how many bytes of a job's ID are the time of its submit.
const ulidTime = 6

// readArchiveCursor returns the job in a cursor of archivedJobs; ok is false
// for any other cursor.
func readArchiveCursor(cursor string) (id gpuai.JobID, ok bool, err error) {
	at, err := readCursor("archive", cursor)
	if err != nil || at == "" {
		return id, false, nil //nolint:nilerr // another list's cursor
	}
	if id, err = gpuai.ParseJobID(at); err != nil {
		return id, false, badCursor()
	}
	return id, true, nil
}

// archivedUpTo waits until the archive is durable up to an index.
func (s *Server) archivedUpTo(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, archiveWait)
	defer cancel()
	if err := s.archive.await(ctx, index); err != nil {
		return archiveError(fmt.Errorf("%w: %w", errNoArchive, err))
	}
	return nil
}

// JobEvents implements httpd.Reader.
func (s *Server) JobEvents(ctx context.Context, ref string, p httpd.Page) (events []gpuai.Event, next string, err error) {
	after, err := readEventCursor(p.Cursor)
	if err != nil {
		return nil, "", err
	}
	at, err := s.locate(ref)
	if err != nil {
		return nil, "", err
	}
	job, err := s.jobAt(at, false)
	if err != nil {
		return nil, "", err
	}
	if err := s.archivedUpTo(ctx, s.machineIndex()); err != nil {
		return nil, "", err
	}
	q := store.EventQuery{Job: job.ID, Submitted: job.SubmitIndex, After: after, Limit: pageSize(p)}
	err = s.archivedPage(func(db *store.Archive) error {
		page, last, more, err := db.JobEvents(q)
		if events = page; more {
			next = makeCursor("job-events", fmt.Sprintf("%d.%d", last.Index, last.Ordinal))
		}
		return err
	})
	if p.Tenant != "" {
		scrub(events, s.jobsOf(p.Tenant))
	}
	return events, next, err
}

func readEventCursor(cursor string) (p store.EventPlace, err error) {
	at, err := readCursor("job-events", cursor)
	if err != nil || at == "" {
		return p, err
	}
	index, ordinal, _ := strings.Cut(at, ".")
	p.Index, err = strconv.ParseUint(index, 10, 64)
	if n, e := strconv.ParseUint(ordinal, 10, 32); err == nil {
		p.Ordinal, err = uint32(n), e
	}
	if err != nil {
		return p, badCursor()
	}
	return p, nil
}

// archivedEvents gives events after an index, up to the state's, and returns
// that. It fails with hub.ErrCompacted when the archive does not have them all.
func (s *Server) archivedEvents(ctx context.Context, filter *hub.Filter, from uint64, f func([]gpuai.Event, uint64) error) (uint64, error) {
	to := s.machineIndex()
	if from >= to || s.archivedUpTo(ctx, to) != nil {
		return 0, hub.ErrCompacted
	}
	at := store.ArchivePlace{Index: from + 1}
	for done := false; !done; {
		var rows []store.ArchiveRow
		err := s.archive.use(func(db *store.Archive) (err error) {
			st := db.State()
			if !slices.ContainsFunc(st.Has(), func(r gpuai.IndexRange) bool { return r.From <= from+1 && to <= r.To }) {
				return hub.ErrCompacted
			}
			rows, at, done, err = db.Rows(at, to, exportPage)
			return err
		})
		if err != nil {
			return 0, archiveError(err)
		}
		for i := range rows {
			if err := giveEvents(&rows[i], filter, f); err != nil {
				return 0, err
			}
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return to, nil
}

// giveEvents gives those of a row that a watcher wants.
func giveEvents(r *store.ArchiveRow, filter *hub.Filter, f func([]gpuai.Event, uint64) error) error {
	if r.Kind != store.ArchiveEvents {
		return nil
	}
	var events []gpuai.Event
	err := r.Events(func(e *gpuai.Event) bool {
		if (filter.Node == "" || filter.Node == e.Node) && (filter.Job.IsZero() || filter.Job == e.Job) {
			events = append(events, *e)
		}
		return true
	})
	if err != nil || len(events) == 0 {
		return err
	}
	return f(events, r.Index)
}

// archivedTasks is Tasks of a job in the archive.
func (s *Server) archivedTasks(id gpuai.JobID, from uint64, limit int) (tasks []gpuai.Task, err error) {
	err = s.archivedPage(func(db *store.Archive) (err error) {
		tasks, err = db.Tasks(id, uint32(min(from, gpuai.MaxTasks*gpuai.MaxGroups)), limit)
		return err
	})
	return tasks, err
}

// archivedLeases is leasesOfJob of a job in the archive.
func (s *Server) archivedLeases(id gpuai.JobID, after gpuai.Token, limit int) (leases []gpuai.Lease, err error) {
	err = s.archivedPage(func(db *store.Archive) (err error) {
		leases, err = db.Leases(id, after, limit)
		return err
	})
	return leases, err
}

// archivedLease is Lease of a lease in the archive.
func (s *Server) archivedLease(t gpuai.Token, tenant gpuai.TenantID, index uint64) (l gpuai.Lease, err error) {
	gone := notFound("no lease " + t.String() + " is kept: of each task only the latest is")
	err = s.archive.look(index, gone, func(db *store.Archive) (ok bool, err error) {
		l, ok, err = db.Lease(t)
		return ok && (tenant == "" || l.Tenant == tenant), err
	})
	return l, err
}

// explainArchived says what there is to say of a job that is over.
func (s *Server) explainArchived(id gpuai.JobID) (x gpuai.Explanation, err error) {
	job, err := s.archivedJob(id, false)
	if err != nil {
		return x, err
	}
	x = gpuai.Explanation{Job: id, Name: job.Name, Status: job.Status, Index: s.machineIndex()}
	x.Tasks, err = s.archivedTasks(id, 0, defaultPage)
	return x, err
}

// errOver is returned for a command about a job that has left the machine.
func (s *Server) errOver(id gpuai.JobID) error {
	job, err := s.archivedJob(id, false)
	if err != nil {
		return err
	}
	return gpuai.NewError(gpuai.Conflict, fmt.Sprintf(
		"job %s ended as %s and is in the history archive: there is nothing to stop; see it with 'gpuai job history %s'", id, job.Status, id))
}

// keepLive cuts leases that a query does not want.
func keepLive(leases []gpuai.Lease, q *httpd.LeaseQuery) []gpuai.Lease {
	return slices.DeleteFunc(leases, func(l gpuai.Lease) bool {
		return q.Live && l.State == gpuai.LeaseEnded || q.Node != "" && l.Node != q.Node
	})
}
