package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/internal/blobs"
)

// places are where a task finds its checkpoints, on the host; "" is nowhere.
type places struct {
	saver  *saver
	resume string
	step   uint64
}

// checkpoints prepares what a task publishes into, and gets what it goes on from.
// An error is as of a start: no.State says what to make of it.
func (w *worker) checkpoints(no *decide.TaskNotStarted) (p places, err error) {
	if p.saver, err = w.newSaver(); err != nil {
		no.State = gpuai.ReportLost
		return p, err
	}
	if len(w.assign.Resume) == 0 {
		return p, nil
	}
	from, err := w.fetchCheckpoint(w.ctx, no)
	if err != nil {
		return p, err
	}
	p.resume, p.step = filepath.Join(w.a.taskDir(w.lease.ID), resumeDir), from.Step
	return p, nil
}

// fetchCheckpoint gets the newest checkpoint that can be read. One that is not whole in the
// store is told, and passed over.
func (w *worker) fetchCheckpoint(ctx context.Context, no *decide.TaskNotStarted) (*gpuai.PublishedCheckpoint, error) {
	log := w.a.log.With("lease", w.lease.ID)
	no.State = gpuai.ReportLost
	if w.a.vault.at() == "" {
		return nil, errors.New("the task has a checkpoint to go on from, and this region's servers name no checkpoint store: start them with --store")
	}
	store, err := w.a.vault.open(ctx, w.lease.ID)
	if err != nil {
		return nil, fmt.Errorf("the checkpoint to go on from: %w", err)
	}
	dir := filepath.Join(w.a.taskDir(w.lease.ID), resumeDir)
	if err := w.a.trash.take(dir); err != nil {
		return nil, err
	}
	free, reserve, err := diskRoom(w.a.taskDir(w.lease.ID))
	if err != nil {
		return nil, err
	}
	var last error
	for i := range w.assign.Resume {
		c := &w.assign.Resume[i]
		if c.Seq > w.assign.ResumeSeq && w.assign.ResumeSeq > 0 {
			continue // the gang goes back behind it
		}
		log.Info("getting a checkpoint", "seq", c.Seq, "bytes", int64(c.Bytes))
		_, last = store.GetTree(ctx, c.Key, c.Digest, dir, max(0, free-reserve))
		if last == nil {
			log.Info("the task goes on from a checkpoint", "seq", c.Seq, "step", c.Step)
			return c, nil
		}
		if why := tooLarge(last, c, free, reserve); why != nil {
			no.State = gpuai.ReportFailed // on each node it would be so
			return nil, why
		}
		if !errors.Is(last, blobs.ErrNotFound) && !errors.Is(last, blobs.ErrCorrupt) {
			return nil, fmt.Errorf("the checkpoint %d to go on from: %w", c.Seq, last)
		}
		log.Error("a checkpoint cannot be used", "seq", c.Seq, "error", last)
		w.sayTask(fmt.Sprintf("checkpoint %d cannot be used, trying the one before it: %s", c.Seq, last))
	}
	if w.assign.Resume[0].TaskRef == w.lease.TaskRef {
		no.State = gpuai.ReportFailed // else rank 0 has published a newer one meanwhile
	}
	return nil, fmt.Errorf("none of the %d checkpoints that are kept can be read, and the task is not to begin anew unasked: %w", len(w.assign.Resume), last)
}

// tooLarge is why a checkpoint does not fit on the node; nil when that is not it.
func tooLarge(err error, c *gpuai.PublishedCheckpoint, free, reserve int64) error {
	var large *blobs.TooLargeError
	size := int64(c.Bytes)
	switch {
	case errors.As(err, &large):
		size = large.Bytes
	case !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) && !errors.Is(err, syscall.EFBIG):
		return nil
	}
	return fmt.Errorf("the checkpoint %d to go on from does not fit: it has %d MiB, and this node's disk had %d MiB free, of which %d MiB are its own: make room on the nodes, or write smaller checkpoints", c.Seq, size>>20, free>>20, reserve>>20)
}

// env adds what a task is told of its checkpoints, by where it sees them.
func (p *places) env(env map[string]string, checkpoint, resume string) {
	if p.saver != nil {
		env[gpuai.EnvCheckpointDir] = checkpoint
	}
	if p.resume == "" {
		return
	}
	if _, own := env[gpuai.EnvResumeFrom]; !own { // a user's value wins, as everywhere
		env[gpuai.EnvResumeFrom] = resume
	}
	env[gpuai.EnvResumeOwn] = resume
	if p.step > 0 {
		env[gpuai.EnvResumeStep] = strconv.FormatUint(p.step, 10)
	}
}

// sayTask tells a task's user something, at the end of what it wrote to stderr:
// when it is gone, since its output is the watchdog's until then.
func (w *worker) sayTask(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.notes) < maxNotes {
		w.notes = append(w.notes, what)
	}
}

// maxNotes bounds what is said of a task.
const maxNotes = 64

// sayNotes writes what was to be said. The task is gone.
func (w *worker) sayNotes() {
	w.mu.Lock()
	notes := w.notes
	w.notes = nil
	w.mu.Unlock()
	for _, what := range notes {
		w.appendStderr(what)
	}
}

func (w *worker) appendStderr(what string) {
	if err := watchdog.AppendLog(w.a.taskDir(w.lease.ID), "gpuai: "+what); err != nil {
		w.a.log.Warn("the task's log lacks a line", "lease", w.lease.ID, "line", what, "error", err)
	}
}

// A publishing waits for its answer.
type publishing struct {
	p      gpuai.Publish
	answer chan<- gpuai.Published
}

// publish has the region judge a checkpoint, and waits for its answer over as
// many sessions as it takes. answer has room for one.
func (a *Agent) publish(ctx context.Context, p gpuai.Publish, answer chan gpuai.Published) (gpuai.Published, error) {
	select {
	case <-answer: // to one that was given up
	default:
	}
	a.post(func() {
		a.publishing[p.Lease] = publishing{p, answer}
		a.sendPublish(p.Lease)
	})
	defer a.post(func() { delete(a.publishing, p.Lease) })
	select {
	case got := <-answer:
		return got, nil
	case <-ctx.Done():
		return gpuai.Published{}, ctx.Err()
	case <-a.ended:
		return gpuai.Published{}, context.Canceled
	}
}

// sendPublish sends a checkpoint to be judged, when a session stands. A lease that
// was adopted is of the agent's present incarnation.
func (a *Agent) sendPublish(t gpuai.Token) {
	w, ok := a.publishing[t]
	if !ok || a.line == nil || !a.core.Connected() {
		return
	}
	p := w.p
	p.Incarnation = a.identity.Incarnation
	a.send(a.line.id, gpuai.Frame{Kind: gpuai.FramePublish, Publish: &p})
}

// publishAgain sends what waits for its answer on a new session.
func (a *Agent) publishAgain() {
	for t := range a.publishing {
		a.sendPublish(t)
	}
}

// judged takes the region's answer.
func (a *Agent) judged(p gpuai.Published) {
	w, ok := a.publishing[p.Lease]
	if !ok || w.p.Digest != p.Digest || w.p.After != p.After {
		return // to one that was given up
	}
	delete(a.publishing, p.Lease)
	select {
	case w.answer <- p:
	default:
	}
}
