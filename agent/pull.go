package agent

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/image"
)

// pulling is a task's image on its way.
type pulling struct {
	// agreed gets the digest that the region has for the task's image.
	agreed chan string

	mu sync.Mutex // guards below
	at image.Progress
}

// tell notes how far it is.
func (p *pulling) tell(at image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = at
}

// String says how far it is: "pulling 40 %"; "" when nothing is under way.
func (p *pulling) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	verb := map[image.Phase]string{image.Resolve: "resolving the image", image.Download: "pulling", image.Unpack: "unpacking"}[p.at.Phase]
	if verb == "" || p.at.Total <= 0 || p.at.Phase == image.Resolve {
		return verb
	}
	return fmt.Sprintf("%s %d %% of %s in %d layers", verb, p.at.Done*100/p.at.Total, size(gpuai.Bytes(p.at.Total)), p.at.Layers)
}

// pullNews is how often the agent's log tells of a download.
const pullNews = 10 * time.Second

// pull gets the task's image, and holds it until the task is gone: that of the
// region's digest, once any task of the group has told one.
func (w *worker) pull() (*image.Image, error) {
	img, err := w.fetch(w.assign.Image)
	if err != nil || w.assign.Image != "" || image.Pinned(w.assign.Task.Image) {
		return img, err
	}
	mine := img.Digest()
	digest, err := w.agreement(mine)
	if err != nil {
		return nil, err
	}
	if digest == mine {
		return img, nil
	}
	w.a.log.Info("the job's other tasks run another image of that name", "lease", w.lease.ID, "found", mine, "digest", digest)
	return w.fetch(digest)
}

// agreeRetryMin and agreeRetryMax are how long it takes until a digest is told
// again that the region could not keep: twice as long each time.
const agreeRetryMin, agreeRetryMax = time.Second, 30 * time.Second

// agreement tells the region the digest that was found, and returns the one that
// the group's tasks run. It is never "": while the region can keep none nothing is
// run, since each task would run what its node found.
func (w *worker) agreement(mine string) (string, error) {
	w.tell(decide.ImageResolved{Lease: w.lease.ID, Digest: mine})
	var again <-chan time.Time
	for wait := agreeRetryMin; ; {
		select {
		case digest := <-w.pulling.agreed:
			if digest != "" {
				return digest, nil
			}
			w.a.log.Warn("the region cannot keep the digest of a task's image yet", "lease", w.lease.ID, "digest", mine, "again_in", wait)
			again, wait = time.After(wait), min(2*wait, agreeRetryMax)
		case <-again:
			w.tell(decide.ImageResolved{Lease: w.lease.ID, Digest: mine})
		case <-w.ctx.Done():
			return "", w.ctx.Err()
		case <-w.a.ended:
			return "", errors.New("the agent is ending")
		}
	}
}

// agree takes the region's answer to what the task's image was found to be.
func (w *worker) agree(digest string) {
	select {
	case w.pulling.agreed <- digest:
	default: // a second answer
	}
}

// fetch gets the task's image of a digest, or with "" the one that its name
// stands for now.
func (w *worker) fetch(digest string) (*image.Image, error) {
	log := w.a.log.With("lease", w.lease.ID, "image", w.assign.Task.Image)
	var told time.Time
	defer w.pulling.tell(image.Progress{})
	img, err := w.a.boxes.images.Prepare(w.ctx, image.Request{
		Image: w.assign.Task.Image, Digest: digest, Hold: w.lease.ID.String(),
		Progress: func(p image.Progress) {
			w.pulling.tell(p)
			if p.Phase != image.Ready && time.Since(told) >= pullNews {
				told = time.Now()
				log.Info("getting an image", "phase", string(p.Phase), "bytes", p.Done, "of", p.Total, "layers", p.Layers)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	log.Info("the image is there", "digest", img.Resolved)
	return img, nil
}

// imageFault says what an image that cannot be had means for its task: one
// that no node can get fails it, a network or disk of this node does not.
func imageFault(err error) gpuai.ReportState {
	var refused *image.RefusedError
	var not *image.UnavailableError
	if errors.As(err, &refused) || errors.As(err, &not) && not.Permanent {
		return gpuai.ReportFailed
	}
	return gpuai.ReportLost
}

// progressOf says how far the start of a lease's task is; "" when it is not
// being started here.
func (a *Agent) progressOf(t gpuai.Token) string {
	ch := make(chan *worker, 1)
	a.post(func() { ch <- a.workers[t] })
	select {
	case w := <-ch:
		if w == nil {
			return ""
		}
		return w.pulling.String()
	case <-a.ended:
		return ""
	}
}
