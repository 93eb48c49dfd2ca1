package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
	"github.com/gpuai/gpuai/plugins"
)

const (
	// uploadsDir has a file for each attempt whose output the store does not have.
	uploadsDir = "uploads"
	// uploaders bounds the uploads at a time, uploadTime one try, and uploadFor the
	// time for which one is tried again.
	uploaders  = 4
	uploadTime = 10 * time.Minute
	uploadFor  = 24 * time.Hour
)

// Uploads keep the output of attempts that have ended in the region's store, beside
// all else: nothing waits for them. Each attempt has a mark from its start on, which
// goes when its output is stored or given up, so what an earlier life of the agent
// did not store is found again.
type uploads struct {
	a       *Agent
	dir     string
	more    chan struct{} // there may be something to do
	giveUp  time.Duration // uploadFor, but in tests
	waiting sync.Map      // of gpuai.Token: queued, or under way

	mu    sync.Mutex // guards below
	queue []gpuai.Token
}

func newUploads(a *Agent) (*uploads, error) {
	u := &uploads{a: a, dir: a.path(uploadsDir), more: make(chan struct{}, 1), giveUp: cmp.Or(a.cfg.testGiveUp, uploadFor)}
	return u, os.MkdirAll(u.dir, 0o700)
}

func (u *uploads) mark(t gpuai.Token) string { return filepath.Join(u.dir, t.String()) }

// expect marks an attempt that begins.
func (u *uploads) expect(of gpuai.TaskRef, t gpuai.Token) {
	if u.a.vault.at() == "" {
		return // the region has no store
	}
	data, err := json.Marshal(&of)
	if err == nil {
		err = plugins.ReplaceFile(u.mark(t), data)
	}
	if err != nil {
		u.a.log.Warn("the output of an attempt will stay on its node", "lease", t, "error", err)
	}
}

// add queues the output of an attempt that has ended, of which nothing more is
// written. It does not block.
func (u *uploads) add(t gpuai.Token) {
	now := time.Now()
	if os.Chtimes(u.mark(t), now, now) == nil { // else there is no store
		u.enqueue(t)
	}
}

func (u *uploads) enqueue(t gpuai.Token) {
	if _, twice := u.waiting.LoadOrStore(t, nil); twice {
		return
	}
	u.mu.Lock()
	u.queue = append(u.queue, t)
	u.mu.Unlock()
	u.rouse()
}

func (u *uploads) rouse() {
	select {
	case u.more <- struct{}{}:
	default:
	}
}

// recover queues what earlier lives left of attempts that have ended, the oldest
// first.
func (u *uploads) recover(live func(gpuai.Token) bool) {
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		u.a.log.Warn("the output of earlier attempts is not looked for", "error", err)
	}
	var left []gpuai.Token
	for _, e := range entries {
		var t gpuai.Token
		if t.UnmarshalText([]byte(e.Name())) != nil {
			_ = os.Remove(filepath.Join(u.dir, e.Name())) // a draft of a mark
		} else if !live(t) {
			left = append(left, t)
		}
	}
	slices.SortFunc(left, func(x, y gpuai.Token) int { return cmp.Compare(x, y) })
	for _, t := range left {
		u.enqueue(t)
	}
}

// run uploads what is queued until ctx ends.
func (u *uploads) run(ctx context.Context) {
	for {
		t, ok := u.take()
		if !ok {
			select {
			case <-u.more:
			case <-ctx.Done():
				return
			}
			continue
		}
		u.upload(ctx, t)
		u.waiting.Delete(t)
		if ctx.Err() != nil {
			return
		}
	}
}

func (u *uploads) take() (t gpuai.Token, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.queue) == 0 {
		return 0, false
	}
	t, u.queue = u.queue[0], u.queue[1:]
	if len(u.queue) > 0 {
		u.rouse() // another uploader
	}
	return t, true
}

// An upload is that of one attempt's output.
type upload struct {
	u     *uploads
	lease gpuai.Token
	task  gpuai.TaskRef
	store opened
	log   *blobs.LogWriter // of what is stored so far
}

// upload stores an attempt's output, however often that takes. What ends ctx
// leaves its mark.
func (u *uploads) upload(ctx context.Context, t gpuai.Token) {
	log := u.a.log.With("lease", t)
	up := upload{u: u, lease: t}
	ended, err := up.read()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // else it made way, which was told
			log.Warn("the output of an attempt stays on its node: its mark cannot be read", "error", err)
			u.forget(t)
		}
		return
	}
	for retry := storeRetryMin; ; retry = min(storeRetryMax, 2*retry) {
		began := time.Now()
		bytes, err := up.try(ctx)
		switch {
		case err == nil:
			log.Info("output uploaded", "bytes", bytes, "took", time.Since(began).Round(time.Millisecond))
			u.forget(t)
			return
		case refusedAs(err, gpuai.PreconditionFailed): // it was answered to nobody
			log.Info("output is in the store already")
			u.forget(t)
			return
		case refusedAs(err, gpuai.Forbidden):
			log.Warn("the output of an attempt stays on its node: the region does not know it as this node's", "error", err)
			u.forget(t)
			return
		case errors.Is(err, errNoOutput):
			u.dropped(t)
			return
		case errors.Is(err, errNoStore):
			log.Info("output is not uploaded any more", "why", err)
			u.forget(t)
			return
		case ctx.Err() != nil:
			return
		case time.Since(ended) > u.giveUp:
			log.Warn("the output of an attempt is given up, and stays on its node: the store could not take it", "for", u.giveUp, "error", err)
			u.forget(t)
			return
		}
		if retry < storeRetryMax {
			log.Warn("the output of an attempt is not uploaded yet", "error", err, "again_in", retry)
		}
		if !pause(ctx, retry) {
			return
		}
	}
}

func refusedAs(err error, c gpuai.Code) bool {
	var e *gpuai.Error
	return errors.As(err, &e) && e.Code == c
}

// maxMark bounds a mark.
const maxMark = 4 << 10

// read reads the attempt's mark, and says when it ended.
func (up *upload) read() (ended time.Time, err error) {
	path := up.u.mark(up.lease)
	fi, err := os.Stat(path)
	if err != nil {
		return ended, err
	}
	if fi.Size() > maxMark {
		return ended, errors.New("it is no mark")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return ended, err
	}
	return fi.ModTime(), json.Unmarshal(data, &up.task)
}

// errNoOutput is returned when what was to be uploaded is not there any more.
var errNoOutput = errors.New("the attempt's output is not there any more")

// try goes on with the upload, and says how much there is of the output.
func (up *upload) try(ctx context.Context) (bytes int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, uploadTime)
	defer cancel()
	store, err := up.u.a.vault.open(ctx, up.lease)
	if err != nil {
		return 0, err
	}
	if up.log == nil || up.store.url != store.url {
		up.store, up.log = store, store.NewLog(gpuai.LogPrefix(up.task, up.lease))
	}
	dir := up.u.a.taskDir(up.lease)
	for _, stream := range []string{"stdout", "stderr"} {
		for more := true; more; {
			if more, err = up.piece(ctx, dir, stream); err != nil {
				return 0, err
			}
		}
		bytes += up.log.Next(stream)
	}
	if _, err := os.Stat(dir); err != nil { // it may have gone meanwhile
		return 0, errNoOutput
	}
	return bytes, up.log.Close(ctx)
}

// piece stores what comes next of a stream.
func (up *upload) piece(ctx context.Context, dir, stream string) (more bool, err error) {
	var c gpuai.LogChunk
	q := gpuai.LogRequest{Stream: stream, Offset: up.log.Next(stream), Times: true}
	if err := readChunk(&c, dir, &q, blobs.MaxLogPiece); err != nil {
		if _, gone := os.Stat(dir); gone != nil {
			return false, errNoOutput
		}
		return false, err
	}
	if len(c.Data) == 0 {
		return false, nil
	}
	return !c.EOF, up.log.Add(ctx, stream, &c)
}

// forget takes an attempt's mark away.
func (u *uploads) forget(t gpuai.Token) bool {
	err := os.Remove(u.mark(t))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.a.log.Warn("the mark of an attempt stays: its output may be uploaded again", "lease", t, "error", err)
	}
	return err == nil
}

// dropped tells of output that made way before it was stored, if it was to be.
func (u *uploads) dropped(t gpuai.Token) {
	if u.forget(t) {
		u.a.log.Warn("the output of an attempt is lost: it made way on the node before the store could take it; see --log-space", "lease", t)
	}
}
