package server

import (
	"context"
	"math"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

const (
	// exportPage is about how many bytes of the archive are read at once,
	// exportJobs how many jobs of the machine at one hold of its lock.
	exportPage = 1 << 20
	exportJobs = 64
)

// An exporter writes one export.
type exporter struct {
	s     *Server
	ctx   context.Context
	write func(*gpuai.ExportLine) error
}

// Export implements httpd.Operator. The archive is read up to now, then the
// machine, then what was archived meanwhile: whatever left the machine before
// it was read is in the last part.
func (s *Server) Export(ctx context.Context, since uint64, f func(*gpuai.ExportLine) error) error {
	x := exporter{s: s, ctx: ctx, write: f}
	index := s.machineIndex()
	if err := s.archivedUpTo(ctx, index); err != nil {
		return err
	}
	begin := gpuai.ExportLine{Kind: gpuai.ExportBegin, Index: since}
	err := s.archive.use(func(db *store.Archive) error {
		st := db.State()
		if gaps := st.Gaps(); len(gaps) > 0 && !s.archive.hopeless.Load() {
			return errHistoryLater(gaps[0])
		}
		begin.Dropped, begin.Missing = st.Dropped, append(st.Missing, st.Gaps()...)
		return nil
	})
	if err != nil {
		return archiveError(err)
	}
	if err := f(&begin); err != nil {
		return err
	}
	if err := x.archive(since, index); err != nil {
		return err
	}
	if err := x.machine(); err != nil {
		return err
	}
	now := s.machineIndex()
	if err := s.archivedUpTo(ctx, now); err != nil {
		return err
	}
	if err := x.archive(max(since, index), now); err != nil {
		return err
	}
	return f(&gpuai.ExportLine{Kind: gpuai.ExportEnd, Index: max(since, now)})
}

// archive writes what the archive has after an index, up to another.
func (x *exporter) archive(since, to uint64) error {
	at := store.ArchivePlace{Index: min(since, math.MaxInt64) + 1}
	for done := since >= to; !done; {
		var rows []store.ArchiveRow
		err := x.s.archive.use(func(db *store.Archive) (err error) {
			rows, at, done, err = db.Rows(at, to, exportPage)
			return err
		})
		if err != nil {
			return archiveError(err)
		}
		for i := range rows {
			if err := x.row(&rows[i]); err != nil {
				return err
			}
		}
		if err := x.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// row writes a row of the archive.
func (x *exporter) row(r *store.ArchiveRow) error {
	line := gpuai.ExportLine{Index: r.Index, Archived: true}
	switch r.Kind {
	case store.ArchiveEvents:
		line.Kind = gpuai.ExportEvent
		var failed error
		err := r.Events(func(e *gpuai.Event) bool {
			line.Event = e
			failed = x.write(&line)
			return failed == nil
		})
		if failed != nil {
			return failed
		}
		return err
	case store.ArchiveJob:
		job, err := r.Job()
		if err != nil {
			return err
		}
		line.Kind, line.Job = gpuai.ExportJob, &job
		return x.write(&line)
	default:
		task, lease, err := r.Task()
		if err != nil {
			return err
		}
		return x.task(line, &task, &lease)
	}
}

// task writes a task and its lease.
func (x *exporter) task(line gpuai.ExportLine, t *gpuai.Task, l *gpuai.Lease) error {
	line.Kind, line.Task = gpuai.ExportTask, t
	if err := x.write(&line); err != nil || l == nil {
		return err
	}
	line.Kind, line.Task, line.Lease = gpuai.ExportLease, nil, l
	return x.write(&line)
}

// machine writes the jobs that the machine has, each with its tasks and leases.
func (x *exporter) machine() error {
	var at fsm.JobCursor
	for first := true; first || at != (fsm.JobCursor{}); first = false {
		var jobs []gpuai.Job
		var index uint64
		x.s.node.View(func(m *fsm.Machine) {
			jobs, at = m.Jobs(at, exportJobs, nil)
			index = m.Index()
			for i := range jobs {
				jobs[i], _ = m.Job(jobs[i].ID, true)
			}
		})
		for i := range jobs {
			line := gpuai.ExportLine{Kind: gpuai.ExportJob, Index: index, Job: &jobs[i]}
			if err := x.write(&line); err != nil {
				return err
			}
			if err := x.tasks(jobs[i].ID); err != nil {
				return err
			}
		}
		if err := x.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// tasks writes the tasks of a job in the machine. One that leaves meanwhile
// comes again, whole, with the archive's last part.
func (x *exporter) tasks(id gpuai.JobID) error {
	for from := uint32(0); ; from += maxPage {
		var tasks []gpuai.Task
		var line gpuai.ExportLine
		leases := make(map[gpuai.Token]gpuai.Lease)
		x.s.node.View(func(m *fsm.Machine) {
			line.Index = m.Index()
			tasks = m.Tasks(id, from, maxPage)
			for i := range tasks {
				if l, ok := m.Lease(tasks[i].Lease); ok {
					leases[l.ID] = l
				}
			}
		})
		for i := range tasks {
			var lease *gpuai.Lease
			if l, ok := leases[tasks[i].Lease]; ok {
				lease = &l
			}
			if err := x.task(line, &tasks[i], lease); err != nil {
				return err
			}
		}
		if len(tasks) < maxPage {
			return nil
		}
	}
}
