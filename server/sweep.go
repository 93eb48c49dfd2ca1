package server

import (
	"context"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/blobs"
	"github.com/gpuai/gpuai/store"
)

const (
	// The store is swept when jobs were retired, and every sweepEvery; but not for
	// more than a sweepShare-th of the time, and after an error not for sweepRetry.
	sweepEvery = time.Hour
	sweepLeast = time.Second
	sweepShare = 20
	sweepRetry = time.Minute
	// sweepBatch is how many jobs are looked up at once.
	sweepBatch = 256
)

// sweepSoon says that jobs were retired.
func (r *reign) sweepSoon() {
	select {
	case r.retired <- struct{}{}:
	default:
	}
}

// sweeps deletes, while the reign lasts, what jobs have in the region's store that
// it does not keep any more: also what former leaders left, and what came late.
func (r *reign) sweeps(ctx context.Context) {
	if r.s.blobs.url == "" {
		return
	}
	r.sweepSoon()
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	for {
		select {
		case <-r.retired:
		case <-every.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		n, err := r.s.sweep(ctx)
		rest := max(sweepLeast, sweepShare*time.Since(began))
		if err != nil && ctx.Err() == nil {
			rest = max(rest, sweepRetry)
			r.s.log.Warn("what retired jobs have left stays in the store for now", "error", err, "again_in", rest)
			r.sweepSoon()
		} else if n > 0 {
			r.s.log.Info("the store was swept of what retired jobs had left", "blobs", n)
		}
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			return
		}
	}
}

// sweep goes over the jobs that the store has something of. It returns how many
// blobs were deleted.
func (s *Server) sweep(ctx context.Context) (deleted int, err error) {
	wait, cancel := context.WithTimeout(ctx, archiveWait)
	defer cancel()
	if err := s.archive.await(wait, s.machineIndex()); err != nil { // which tells what was retired
		return 0, err
	}
	store, err := s.blobs.open(ctx)
	if err != nil {
		return 0, err
	}
	for _, top := range []string{"checkpoints/", "logs/"} {
		var batch []gpuai.JobID
		for name, err := range store.Below(ctx, top) {
			if err != nil {
				return deleted, err
			}
			id, err := gpuai.ParseJobID(name)
			if err != nil || id.String() != name {
				continue // not ours
			}
			if batch = append(batch, id); len(batch) < sweepBatch {
				continue
			}
			n, err := s.sweepJobs(ctx, store, top, batch)
			if deleted += n; err != nil {
				return deleted, err
			}
			batch = batch[:0]
		}
		n, err := s.sweepJobs(ctx, store, top, batch)
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

func (s *Server) sweepJobs(ctx context.Context, store *blobs.Store, top string, jobs []gpuai.JobID) (deleted int, err error) {
	retired, err := s.retiredOf(jobs)
	if err != nil {
		return 0, err
	}
	for _, id := range retired {
		n, err := store.DeletePrefix(ctx, top+id.String()+"/")
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// retiredOf returns which jobs the machine has no more and the archive has: whatever
// neither knows may be another region's.
func (s *Server) retiredOf(jobs []gpuai.JobID) (retired []gpuai.JobID, err error) {
	var gone []gpuai.JobID
	s.node.View(func(m *fsm.Machine) {
		for _, id := range jobs {
			if !m.HasJob(id) {
				gone = append(gone, id)
			}
		}
	})
	if len(gone) == 0 {
		return nil, nil
	}
	err = s.archivedPage(func(db *store.Archive) error {
		for _, id := range gone {
			_, ok, err := db.Job(id)
			if err != nil {
				return err
			}
			if ok {
				retired = append(retired, id)
			}
		}
		return nil
	})
	return retired, err
}
