package server

import (
	"context"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/blobs"
)

// Checkpoints implements httpd.Reader. A job that has left the machine has none.
func (s *Server) Checkpoints(ref string, p httpd.Page) (page []gpuai.PublishedCheckpoint, next string, err error) {
	from, err := readOffset("checkpoints", p.Cursor)
	if err != nil {
		return nil, "", err
	}
	at, err := s.locate(ref)
	if err != nil {
		return nil, "", err
	}
	more := uint32(0)
	s.node.View(func(m *fsm.Machine) {
		// The cursor counts tasks, so a page may be a few longer than asked for.
		page, more = m.Checkpoints(at.id, uint32(min(from, gpuai.MaxTasks*gpuai.MaxGroups)), max(1, pageSize(p)-gpuai.MaxCheckpointKeep+1))
	})
	if more != 0 {
		next = makeCursor("checkpoints", strconv.FormatUint(uint64(more), 10))
	}
	return page, next, nil
}

// forgetWait bounds how long the retirement of jobs waits for the checkpoint
// store.
const forgetWait = 10 * time.Second

// forgetCheckpoints deletes what jobs have in the checkpoint store that are about
// to be retired: afterwards nobody would know of it. A store that cannot be reached
// holds nothing up.
func (r *reign) forgetCheckpoints(ctx context.Context, jobs []fsm.EndedJob) {
	if r.s.cfg.CheckpointStore == "" {
		return
	}
	var have []gpuai.JobID
	r.s.node.View(func(m *fsm.Machine) {
		for i := range jobs {
			if m.HasCheckpoints(jobs[i].ID) {
				have = append(have, jobs[i].ID)
			}
		}
	})
	if len(have) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, forgetWait)
	defer cancel()
	if err := deleteCheckpoints(ctx, r.s.cfg.CheckpointStore, have); err != nil {
		r.s.log.Warn("checkpoints of jobs that are retired stay in the store: delete what is below checkpoints/JOB/ there", "jobs", len(have), "first", have[0], "error", err)
	}
}

func deleteCheckpoints(ctx context.Context, url string, jobs []gpuai.JobID) error {
	store, err := blobs.Open(ctx, url)
	if err != nil {
		return err
	}
	defer store.Close()
	for _, id := range jobs {
		if _, err := store.DeletePrefix(ctx, gpuai.CheckpointPrefix(id)); err != nil {
			return err
		}
	}
	return nil
}
