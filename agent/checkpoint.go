package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/internal/blobs"
)

const (
	checkpointDir  = "checkpoint"       // of a task's directory: GPUAI_CHECKPOINT_DIR
	resumeDir      = "resume"           // RESUME_FROM
	publishedFile  = "checkpoints.json" // what was published, for the agent's next life
	checkpointPoll = 250 * time.Millisecond
	// Back-off between attempts to reach the store.
	storeRetryMin, storeRetryMax = time.Second, 30 * time.Second
	// saveTimeMin is the least of what a task that ended by itself has to have its
	// last checkpoint stored; the region's bound on a grace is the rest.
	saveTimeMin = 10 * gpuai.Second
	// keptResults is how many results of a task are kept beside its checkpoints.
	keptResults = 16
	// usageEvery is how often the room that a task takes is looked at.
	usageEvery = 5 * time.Second
)

// A saver stores and publishes what a task puts into its checkpoint directory. A
// directory there whose name fits checkpointName is ready: tasks write under
// another name and rename. It runs beside the loop, from the task's start until it
// is told to finish.
type saver struct {
	w       *worker
	dir     string // on the host
	ctx     context.Context
	cancel  context.CancelFunc
	last    chan struct{} // closed when nothing is written any more
	ending  sync.Once
	done    chan struct{} // closed when it has finished
	answers chan gpuai.Published

	// What follows is run's own.
	kept     []gpuai.PublishedCheckpoint // of the task, the newest first
	refused  map[string]bool             // that cannot be stored
	results  []string
	maxBytes int64 // that the directory may take
	looked   time.Time
	retry    time.Duration

	mu    sync.Mutex // guards below
	until time.Time  // when it must have finished; zero: saveTime after the task's end
}

// checkpointName is a name that makes a directory a checkpoint. What ends in .tmp
// is being written.
var checkpointName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// newSaver prepares a task's checkpoint directory; nil without an error when the
// region has no store.
func (w *worker) newSaver() (*saver, error) {
	if w.a.vault.at() == "" {
		return nil, nil
	}
	dir := filepath.Join(w.a.taskDir(w.lease.ID), checkpointDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the task's checkpoint directory: %w", err)
	}
	return w.saverOf(dir), nil
}

func (w *worker) saverOf(dir string) *saver {
	s := &saver{
		w: w, dir: dir, last: make(chan struct{}), done: make(chan struct{}),
		answers: make(chan gpuai.Published, 1), refused: map[string]bool{}, maxBytes: halfFree(dir),
	}
	s.ctx, s.cancel = context.WithCancel(w.a.life)
	for _, c := range w.assign.Resume {
		if c.TaskRef == w.lease.TaskRef { // else of the gang's rank 0
			s.kept = append(s.kept, c)
		}
	}
	s.remember()
	return s
}

// halfFree is half of the room on a directory's disk: what one task may take.
func halfFree(dir string) int64 {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return 1 << 40
	}
	return int64(st.Bavail) * st.Bsize / 2
}

// startSaver has a task's checkpoints stored from now on.
func (w *worker) startSaver(s *saver) {
	if s == nil {
		return
	}
	w.saver.Store(s)
	w.a.saving.Go(s.run)
}

// reviveSaver is startSaver for a task that an earlier life of the agent started.
func (w *worker) reviveSaver() {
	dir := filepath.Join(w.a.taskDir(w.lease.ID), checkpointDir)
	if _, err := os.Stat(dir); err == nil {
		w.startSaver(w.saverOf(dir))
	}
}

// finishSaver waits until the last checkpoint of a task that is gone is published,
// for as long as there is time, and gives the room back.
func (w *worker) finishSaver() {
	if s := w.saver.Load(); s != nil {
		s.finish()
	}
	w.sayNotes()
	for _, dir := range []string{checkpointDir, resumeDir} {
		if err := os.RemoveAll(filepath.Join(w.a.taskDir(w.lease.ID), dir)); err != nil {
			w.a.log.Warn("a task's checkpoint directory stays", "lease", w.lease.ID, "error", err)
		}
	}
}

// saveBy says until when a task's last checkpoint must be stored.
func (w *worker) saveBy(d gpuai.Duration) {
	if s := w.saver.Load(); s != nil {
		s.mu.Lock()
		s.until = time.Now().Add(time.Duration(d) * time.Millisecond)
		s.mu.Unlock()
	}
}

// saveNoMore gives up what is not published: the lease is lost.
func (w *worker) saveNoMore() {
	if s := w.saver.Load(); s != nil {
		s.cancel()
	}
}

func (s *saver) finish() {
	s.ending.Do(func() { close(s.last) })
	s.mu.Lock()
	if s.until.IsZero() {
		s.until = time.Now().Add(time.Duration(s.w.saveTime) * time.Millisecond)
	}
	left := time.Until(s.until)
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-time.After(left):
	}
	s.cancel()
	<-s.done
}

// run stores one checkpoint after the other, the newest that is ready.
func (s *saver) run() {
	defer close(s.done)
	defer s.cancel()
	for s.ctx.Err() == nil {
		over := s.isLast()
		name, older := s.ready()
		if name == "" && over {
			return
		}
		if name == "" {
			s.watchRoom()
			s.sleep(checkpointPoll)
			continue
		}
		for _, o := range older {
			s.tell(result{Name: o, Code: gpuai.Conflict, Detail: "a newer checkpoint was ready before this one was stored: " + name})
			s.drop(o)
		}
		if wait := s.save(name); wait > 0 && over {
			pause(s.ctx, storeRetryMin)
		} else if wait > 0 {
			s.sleep(wait)
		}
	}
	if name, _ := s.ready(); name != "" {
		s.w.sayTask("the checkpoint " + name + " was not published: there was no time left, or the lease was lost")
	}
}

// sleep waits a moment, or until the task is gone.
func (s *saver) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.last:
	case <-s.ctx.Done():
	}
}

func (s *saver) isLast() bool {
	select {
	case <-s.last:
		return true
	default:
		return false
	}
}

// ready returns the checkpoint that became ready last, and the others.
func (s *saver) ready() (newest string, older []string) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return "", nil
	}
	type found struct {
		name string
		at   syscall.Timespec // of its rename
	}
	var all []found
	for _, e := range entries {
		if !e.IsDir() || !checkpointName.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".tmp") || s.refused[e.Name()] {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			continue
		}
		all = append(all, found{e.Name(), fi.Sys().(*syscall.Stat_t).Ctim})
	}
	if len(all) == 0 {
		return "", nil
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.at.Sec, b.at.Sec), cmp.Compare(a.at.Nsec, b.at.Nsec), cmp.Compare(stepOf(a.name), stepOf(b.name)))
	})
	for _, f := range all[:len(all)-1] {
		older = append(older, f.name)
	}
	return all[len(all)-1].name, older
}

// stepOf is the number that a checkpoint's name ends in; 0 when there is none.
func stepOf(name string) uint64 {
	digits := name[len(strings.TrimRight(name, "0123456789")):]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// save stores and publishes a checkpoint. It says how long to wait before what
// is next, or the same again.
func (s *saver) save(name string) time.Duration {
	log := s.w.a.log.With("lease", s.w.lease.ID, "checkpoint", name)
	began := time.Now()
	p, tree, err := s.store(name)
	if err == nil {
		var answer gpuai.Published
		if answer, err = s.w.a.publish(s.ctx, p, s.answers); err == nil && answer.Code != gpuai.OK {
			err = gpuai.NewError(answer.Code, answer.Detail)
		}
	}
	var unfit *blobs.UnfitError
	var refused *gpuai.Error
	switch {
	case err == nil:
		s.retry = 0
		log.Info("checkpoint published", "seq", p.After+1, "bytes", tree.Bytes, "sent", tree.Sent, "took", time.Since(began).Round(time.Millisecond))
		s.published(name, p, tree)
		return 0
	case errors.As(err, &unfit):
		log.Warn("a checkpoint cannot be stored", "error", err)
		s.refused[name] = true
		s.tell(result{Name: name, Code: gpuai.InvalidSpec, Detail: err.Error()})
		s.w.sayTask("the checkpoint " + name + " was not published: " + err.Error())
		return 0
	case errors.As(err, &refused) && refused.Code != gpuai.RateLimited:
		log.Error("the region refuses a checkpoint", "code", refused.Code, "error", err)
		s.refused[name] = true
		s.tell(result{Name: name, Code: refused.Code, Detail: refused.Detail})
		s.w.sayTask("the checkpoint " + name + " was refused: " + err.Error())
		return 0
	case s.ctx.Err() != nil:
		return 0
	}
	s.retry = min(storeRetryMax, max(storeRetryMin, 2*s.retry))
	log.Warn("a checkpoint is not stored yet", "error", err, "again_in", s.retry)
	return s.retry
}

// store puts a checkpoint into the store.
func (s *saver) store(name string) (p gpuai.Publish, t blobs.Tree, err error) {
	store, err := s.w.a.vault.open(s.ctx)
	if err != nil {
		return p, t, err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return p, t, err
	}
	defer root.Close()
	l := &s.w.lease
	t, err = store.PutTree(s.ctx, blobs.Upload{
		Root: root, Dir: name, Prefix: gpuai.CheckpointLeasePrefix(l.TaskRef, l.ID), MaxBytes: int64(gpuai.MaxCheckpointBytes),
	})
	p = gpuai.Publish{
		Lease: l.ID, Task: l.TaskRef, Digest: t.Digest, Bytes: gpuai.Bytes(t.Bytes), Step: stepOf(name), Keep: s.keep(),
	}
	if len(s.kept) > 0 {
		p.After = s.kept[0].Seq
		if last := s.kept[0]; last.Lease == p.Lease && last.Digest == p.Digest { // published already
			p.After--
		}
	}
	return p, t, err
}

func (s *saver) keep() uint32 { return s.w.assign.Task.Checkpoint.Kept() }

// published notes a checkpoint, tells the task, and deletes what is not kept.
func (s *saver) published(name string, p gpuai.Publish, t blobs.Tree) {
	c := gpuai.PublishedCheckpoint{
		TaskRef: p.Task, Seq: p.After + 1, Digest: p.Digest, Bytes: p.Bytes, Step: p.Step, Lease: p.Lease, Key: t.Key,
	}
	if len(s.kept) == 0 || s.kept[0].Seq != c.Seq {
		s.kept = slices.Insert(s.kept, 0, c)
	}
	s.kept = s.kept[:min(len(s.kept), int(s.keep()))]
	s.write()
	s.tell(result{Name: name, Code: gpuai.OK, Seq: c.Seq, Digest: &c.Digest, Bytes: c.Bytes, Step: c.Step})
	s.drop(name)
	if s.isLast() {
		return // somebody waits for the devices; the next attempt deletes it
	}
	if err := s.prune(); err != nil && s.ctx.Err() == nil {
		s.w.a.log.Warn("old checkpoints stay in the store for now", "lease", s.w.lease.ID, "error", err)
	}
}

// prune deletes what this lease and earlier ones of its task have stored and the
// region does not keep. What a later lease stores is not this one's to judge.
func (s *saver) prune() error {
	store, err := s.w.a.vault.open(s.ctx)
	if err != nil {
		return err
	}
	var keep []string
	for i := range s.kept {
		keep = append(keep, s.kept[i].Key)
	}
	prefix := gpuai.CheckpointTaskPrefix(s.w.lease.TaskRef)
	_, err = store.Prune(s.ctx, prefix, keep, func(key string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		var t gpuai.Token
		return t.UnmarshalText([]byte(name)) == nil && t <= s.w.lease.ID
	})
	return err
}

// A result is what a task is told of a checkpoint, in NAME.json beside it.
type result struct {
	Name   string            `json:"name"`
	Code   gpuai.Code        `json:"code"`
	Detail string            `json:"detail,omitzero"`
	Seq    uint64            `json:"seq,omitzero"`
	Digest *gpuai.BlobDigest `json:"digest,omitzero"`
	Bytes  gpuai.Bytes       `json:"size_bytes,omitzero"`
	Step   uint64            `json:"step,omitzero"`
}

// tell writes a result; the oldest make way. The directory is the task's: nothing
// is followed out of it.
func (s *saver) tell(r result) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return
	}
	defer root.Close()
	data, err := json.Marshal(r)
	if err == nil {
		const draft = ".gpuai.tmp"
		_ = root.RemoveAll(draft)
		if err = root.WriteFile(draft, append(data, '\n'), 0o644); err == nil {
			err = root.Rename(draft, r.Name+".json")
		}
	}
	if err != nil {
		s.w.a.log.Warn("a task is not told of its checkpoint", "lease", s.w.lease.ID, "error", err)
	}
	s.results = append(slices.DeleteFunc(s.results, func(n string) bool { return n == r.Name }), r.Name)
	for len(s.results) > keptResults {
		_ = root.Remove(s.results[0] + ".json")
		s.results = s.results[1:]
	}
}

// drop removes a checkpoint from the node.
func (s *saver) drop(name string) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return
	}
	defer root.Close()
	if err := root.RemoveAll(name); err != nil {
		s.refused[name] = true // else it would be stored again and again
		s.w.a.log.Warn("a stored checkpoint stays on the node", "lease", s.w.lease.ID, "checkpoint", name, "error", err)
	}
}

// write keeps what was published for the agent's next life.
func (s *saver) write() {
	data, err := json.Marshal(s.kept)
	if err == nil {
		err = os.WriteFile(s.file(), data, 0o600)
	}
	if err != nil {
		s.w.a.log.Warn("what was published is not noted", "lease", s.w.lease.ID, "error", err)
	}
}

func (s *saver) file() string { return filepath.Join(s.w.a.taskDir(s.w.lease.ID), publishedFile) }

// remember reads what an earlier life published.
func (s *saver) remember() {
	var kept []gpuai.PublishedCheckpoint
	data, err := os.ReadFile(s.file())
	if err == nil && json.Unmarshal(data, &kept) == nil && len(kept) > 0 {
		s.kept = kept
	}
}

// watchRoom ends a task that takes more of the node's disk than it may.
func (s *saver) watchRoom() {
	if time.Since(s.looked) < usageEvery {
		return
	}
	s.looked = time.Now()
	n := int64(0)
	_ = filepath.WalkDir(s.dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it goes while it is looked at
		}
		if fi, err := d.Info(); err == nil {
			n += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if n > s.maxBytes {
		s.w.tell(decide.DiskOverrun{Lease: s.w.lease.ID, Reason: fmt.Sprintf(
			"its checkpoint directory takes %d MiB, half of what the node had free is %d MiB: publish smaller or fewer checkpoints at a time", n>>20, s.maxBytes>>20)})
	}
}
