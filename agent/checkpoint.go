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
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
	"github.com/gpuai/gpuai/plugins"
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
	// finishBound is how long what stores a checkpoint may take to give up.
	finishBound = 5 * time.Second
	// publishEvery is the least between a task's checkpoints; refusals double it,
	// to refusedMax.
	publishEvery, refusedMax = time.Second, time.Minute
)

// A saver stores and publishes what a task puts into its checkpoint directory. A
// directory there whose name fits checkpointName is ready: tasks write under
// another name and rename. It runs beside the loop, from the task's start until it
// is told to finish.
type saver struct {
	w       *worker
	dir     string   // on the host
	root    *os.Root // the same, whatever its task puts in its place
	ctx     context.Context
	cancel  context.CancelFunc
	last    chan struct{} // closed when nothing is written any more
	ending  sync.Once
	done    chan struct{} // closed when it has finished
	watched chan struct{} // closed when watchRoom has ended
	answers chan gpuai.Published

	maxBytes int64        // that the directory may take
	used     atomic.Int64 // of it, when it was last looked at

	// What follows is run's own.
	kept    []gpuai.PublishedCheckpoint // of the task, the newest first
	refused map[string]bool             // that cannot be stored, and are there
	results []string
	retry   time.Duration
	pace    time.Duration // between the last that was judged and the next
	judged  time.Time

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
	return w.saverOf(dir)
}

func (w *worker) saverOf(dir string) (*saver, error) {
	root, err := openTaskRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the task's checkpoint directory: %w", err)
	}
	s := &saver{
		w: w, dir: dir, root: root, last: make(chan struct{}), done: make(chan struct{}), watched: make(chan struct{}),
		answers: make(chan gpuai.Published, 1), refused: map[string]bool{}, maxBytes: w.roomOf(dir),
	}
	s.ctx, s.cancel = context.WithCancel(w.a.life)
	for _, c := range w.assign.Resume {
		if c.TaskRef == w.lease.TaskRef { // else of the gang's rank 0
			s.kept = append(s.kept, c)
		}
	}
	s.remember()
	return s, nil
}

// startSaver has a task's checkpoints stored from now on.
func (w *worker) startSaver(s *saver) {
	if s == nil {
		return
	}
	w.saver.Store(s)
	w.a.savers.Store(s, nil)
	w.a.saving.Go(s.run)
	w.a.saving.Go(s.watchRoom)
}

// reviveSaver is startSaver for a task that an earlier life of the agent started.
func (w *worker) reviveSaver() {
	dir := filepath.Join(w.a.taskDir(w.lease.ID), checkpointDir)
	switch s, err := w.saverOf(dir); {
	case err == nil:
		w.startSaver(s)
	case !errors.Is(err, fs.ErrNotExist):
		w.a.log.Error("a task's checkpoints are not stored any more", "lease", w.lease.ID, "error", err)
	}
}

// finishSaver waits until the last checkpoint of a task that is gone is published,
// for as long as there is time, and gives the room back. It reports false when the
// agent ends first: all is left to its next life then, which finds the task's exit
// with the watchdog.
func (w *worker) finishSaver() bool {
	if s := w.saver.Load(); s != nil {
		s.finish()
		if w.a.over() || w.a.life.Err() != nil {
			return false
		}
	}
	w.sayNotes()
	w.a.discard(w.lease.ID)
	return true
}

// discard removes what a task that is gone leaves, but for its output.
func (a *Agent) discard(t gpuai.Token) {
	for _, dir := range []string{checkpointDir, resumeDir} {
		if err := a.trash.take(filepath.Join(a.taskDir(t), dir)); err != nil {
			a.log.Warn("a task's checkpoint directory stays", "lease", t, "error", err)
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
		return
	case <-time.After(left):
	}
	s.cancel()
	select {
	case <-s.done:
	case <-time.After(finishBound): // the devices are not kept for it
		s.w.a.log.Error("what stores a task's checkpoints does not end", "lease", s.w.lease.ID)
	}
}

// run stores one checkpoint after the other, the newest that is ready.
func (s *saver) run() {
	s.storeAll()
	s.cancel()
	close(s.done)
	<-s.watched
	s.w.a.savers.Delete(s)
	_ = s.root.Close() // was only read
}

func (s *saver) storeAll() {
	for s.ctx.Err() == nil {
		over := s.isLast()
		name, older := s.ready()
		if name == "" && over {
			return
		}
		if name == "" {
			s.sleep(checkpointPoll)
			continue
		}
		if wait := time.Until(s.judged.Add(s.pace)); wait > 0 && !over {
			s.sleep(wait)
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
	if s.w.a.life.Err() != nil {
		return // its next life goes on
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
	type found struct {
		name string
		at   unix.Timespec // of its rename
	}
	d, err := openListing(s.root, ".")
	if err != nil {
		return "", nil
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	defer cancel()
	var all []found
	refused, n := map[string]bool{}, 0
	err = eachName(ctx, d, func(name string) {
		var st unix.Stat_t
		if n++; n > maxTop {
			cancel()
		}
		if !checkpointName.MatchString(name) || strings.HasSuffix(name, ".tmp") || unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		if s.refused[name] {
			refused[name] = true
			return
		}
		all = append(all, found{name, st.Ctim})
	})
	if n > maxTop {
		s.overrun(fmt.Sprintf("its checkpoint directory has more than %d entries: publish fewer checkpoints at a time, and delete what is not one", maxTop))
		return "", nil
	}
	if err == nil {
		s.refused = refused
	}
	if len(all) == 0 {
		return "", nil
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.at.Nano(), b.at.Nano()), cmp.Compare(stepOf(a.name), stepOf(b.name)))
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
	defer func() { s.judged = time.Now() }()
	if err == nil {
		err = s.publish(&p)
	}
	var unfit *blobs.UnfitError
	var refused *gpuai.Error
	switch {
	case err == nil:
		s.retry, s.pace = 0, publishEvery
		log.Info("checkpoint published", "seq", p.After+1, "bytes", tree.Bytes, "sent", tree.Sent, "took", time.Since(began).Round(time.Millisecond))
		s.published(name, p, tree)
		return 0
	case errors.As(err, &unfit):
		log.Warn("a checkpoint cannot be stored", "error", err)
		s.refuse(name)
		s.tell(result{Name: name, Code: gpuai.InvalidSpec, Detail: err.Error()})
		s.w.sayTask("the checkpoint " + name + " was not published: " + err.Error())
		return 0
	case errors.As(err, &refused) && refused.Code != gpuai.RateLimited:
		log.Error("the region refuses a checkpoint", "code", refused.Code, "error", err)
		s.refuse(name)
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

// publish has the region judge a checkpoint. Where this node does not know what the
// lease published before, the region's answer says it, and p goes behind that.
func (s *saver) publish(p *gpuai.Publish) error {
	for tries := 0; ; tries++ {
		answer, err := s.w.a.publish(s.ctx, *p, s.answers)
		if err != nil || answer.Code == gpuai.OK {
			return err
		}
		if answer.Code != gpuai.PreconditionFailed || tries > 0 || !s.recall(answer.Kept) {
			return gpuai.NewError(answer.Code, answer.Detail)
		}
		s.w.a.log.Warn("this node did not know the task's newest checkpoint, and goes on behind it", "lease", p.Lease, "seq", s.kept[0].Seq)
		p.After = s.follows(p)
	}
}

// recall takes over what the region keeps of the task, if the newest is this lease's
// own: another's the task did not go on from.
func (s *saver) recall(kept []gpuai.PublishedCheckpoint) bool {
	l := &s.w.lease
	if len(kept) == 0 || kept[0].Lease != l.ID || kept[0].TaskRef != l.TaskRef {
		return false
	}
	s.kept = kept
	return true
}

// follows is the number of the checkpoint that p follows.
func (s *saver) follows(p *gpuai.Publish) uint64 {
	if len(s.kept) == 0 {
		return 0
	}
	if last := s.kept[0]; last.Lease == p.Lease && last.Digest == p.Digest { // published already
		return last.Seq - 1
	}
	return s.kept[0].Seq
}

// refuse has a checkpoint not tried again, and the next wait longer.
func (s *saver) refuse(name string) {
	s.refused[name] = true
	s.pace = min(refusedMax, max(publishEvery, 2*s.pace))
}

// store puts a checkpoint into the store.
func (s *saver) store(name string) (p gpuai.Publish, t blobs.Tree, err error) {
	store, err := s.w.a.vault.open(s.ctx, s.w.lease.ID)
	if err != nil {
		return p, t, err
	}
	l := &s.w.lease
	t, err = store.PutTree(s.ctx, blobs.Upload{
		Root: s.root, Dir: name, Prefix: gpuai.CheckpointLeasePrefix(l.TaskRef, l.ID), MaxBytes: min(s.maxBytes, int64(gpuai.MaxCheckpointBytes)),
	})
	p = gpuai.Publish{
		Lease: l.ID, Task: l.TaskRef, Digest: t.Digest, Bytes: gpuai.Bytes(t.Bytes), Step: stepOf(name), Keep: s.keep(),
	}
	p.After = s.follows(&p)
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

// prune deletes what this lease has stored and the region does not keep. What earlier
// leases of the task have left the servers delete, once nothing of a lease is kept.
func (s *saver) prune() error {
	store, err := s.w.a.vault.open(s.ctx, s.w.lease.ID)
	if err != nil {
		return err
	}
	prefix := gpuai.CheckpointLeasePrefix(s.w.lease.TaskRef, s.w.lease.ID)
	var keep []string
	for i := range s.kept {
		if strings.HasPrefix(s.kept[i].Key, prefix) {
			keep = append(keep, s.kept[i].Key)
		}
	}
	_, err = store.Prune(s.ctx, prefix, keep)
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
// is followed out of it, and nothing in it waited for.
func (s *saver) tell(r result) {
	data, err := json.Marshal(r)
	if err == nil {
		err = s.draft(append(data, '\n'))
	}
	if err == nil {
		err = s.root.Rename(draftFile, r.Name+".json")
	}
	if err != nil {
		s.w.a.log.Warn("a task is not told of its checkpoint", "lease", s.w.lease.ID, "error", err)
	}
	s.results = append(slices.DeleteFunc(s.results, func(n string) bool { return n == r.Name }), r.Name)
	for len(s.results) > keptResults {
		_ = s.root.Remove(s.results[0] + ".json") // the task may have taken it away, or put something else there
		s.results = s.results[1:]
	}
}

// draftFile is a result that is being written.
const draftFile = ".gpuai.tmp"

func (s *saver) draft(data []byte) error {
	if err := s.w.a.trash.takeFrom(s.root, draftFile); err != nil { // whatever it is
		return err
	}
	f, err := s.root.OpenFile(draftFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// drop removes a checkpoint from the node.
func (s *saver) drop(name string) {
	if err := s.w.a.trash.takeFrom(s.root, name); err != nil {
		s.refused[name] = true // else it would be stored again and again
		s.w.a.log.Warn("a stored checkpoint stays on the node", "lease", s.w.lease.ID, "checkpoint", name, "error", err)
	}
}

// write keeps what was published for the agent's next life.
func (s *saver) write() {
	data, err := json.Marshal(s.kept)
	if err == nil {
		err = plugins.ReplaceFile(s.file(), data)
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
