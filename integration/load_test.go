package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// loadWorkers is how many submits are under way at once.
const loadWorkers = 6

// An answered submit is one that a server acknowledged.
type answered struct {
	name string // of the job, and its idempotency key
	sub  gpuai.Submitted
	at   time.Time
}

// A load submits jobs, each under a key of its own, and remembers what was
// acknowledged.
type load struct {
	t      *testing.T
	r      *region
	judge  *judge
	client *client.Client
	wg     sync.WaitGroup
	stop   context.CancelFunc

	mu  sync.Mutex // guards below
	all []answered
}

// startLoad submits from now on until halt. round makes its names its own; more
// are addresses beside the servers' of now.
func (r *region) startLoad(round string, more ...string) *load {
	r.t.Helper()
	j := newJudge(r.t)
	l := &load{t: r.t, r: r, judge: j, client: newClient(r.t, j, append(r.addrs(), more...)...)}
	var ctx context.Context
	ctx, l.stop = context.WithCancel(context.Background())
	r.t.Cleanup(func() { l.stop(); l.wg.Wait() })
	for w := range loadWorkers {
		l.wg.Go(func() { l.work(ctx, fmt.Sprintf("%s-w%d", round, w)) })
	}
	return l
}

// work submits one job after the other, at most 100 a second.
func (l *load) work(ctx context.Context, prefix string) {
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s-%d", prefix, i)
		sub, err := l.client.Submit(ctx, client.SubmitRequest{Spec: smallJob(name), Key: name})
		if ctx.Err() != nil {
			return // whether it was taken is not known: it was not acknowledged
		}
		if err != nil {
			l.t.Errorf("submitting %s: %v", name, err)
			return
		}
		l.mu.Lock()
		l.all = append(l.all, answered{name, sub, time.Now()})
		l.mu.Unlock()
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
	}
}

// acknowledged returns what was acknowledged so far.
func (l *load) acknowledged() []answered {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[:len(l.all):len(l.all)]
}

// await waits until n more submits than now are acknowledged.
func (l *load) await(n int) {
	l.t.Helper()
	before := len(l.acknowledged())
	eventually(l.t, patience, fmt.Sprintf("%d more jobs acknowledged", n), func(context.Context) error {
		if got := len(l.acknowledged()) - before; got < n {
			return fmt.Errorf("%d were", got)
		}
		return nil
	})
}

// after returns how long after t the first submit was acknowledged that began
// to be served after it.
func (l *load) after(t time.Time) time.Duration {
	l.t.Helper()
	var d time.Duration
	eventually(l.t, patience, "submit acknowledged after the fault", func(context.Context) error {
		for _, a := range l.acknowledged() {
			if a.at.After(t) {
				d = a.at.Sub(t)
				return nil
			}
		}
		return errors.New("none was")
	})
	return d
}

// halt ends the load and returns all that was acknowledged.
func (l *load) halt() []answered {
	l.t.Helper()
	l.stop()
	l.wg.Wait()
	l.t.Logf("%d jobs acknowledged; answers that were none: %v", len(l.acknowledged()), l.judge.counts())
	return l.acknowledged()
}

// newest returns the highest index that was acknowledged.
func newest(all []answered) (index uint64) {
	for _, a := range all {
		index = max(index, a.sub.Index)
	}
	return index
}

// smallJob is a job that fits some thousand times onto the node of register.
func smallJob(name string) *gpuai.JobSpec {
	return &gpuai.JobSpec{Name: name, Groups: []gpuai.Group{{
		Resources: gpuai.Resources{CPU: 1, Memory: 1},
		Task:      gpuai.TaskSpec{Command: []string{"/bin/true"}},
	}}}
}

// register makes the region know a large node, whose agent then says no more:
// until it is suspect, jobs are leased to it. A registration is a beat.
func (r *region) register(id gpuai.NodeID) {
	r.t.Helper()
	m := r.leader()
	eventually(r.t, patience, "welcome for node "+string(id), func(ctx context.Context) error {
		s, err := m.client.DialSession(ctx, "http://"+m.http)
		if err != nil {
			return err
		}
		defer s.Close()
		err = s.Send(ctx, gpuai.Frame{Kind: gpuai.FrameHello, Hello: &gpuai.Hello{
			Node:   gpuai.NodeSpec{ID: id, Address: "127.0.0.1", CPU: 1 << 30, Memory: 1 << 40, Simulated: true},
			BootID: "boot-1", Nonce: "life-1", Replaces: 0, Sent: 1,
		}})
		if err != nil {
			return err
		}
		f, err := s.Recv(ctx)
		if err != nil {
			return err
		}
		if f.Kind != gpuai.FrameWelcome {
			return fmt.Errorf("the server answered a hello with %s: %+v", f.Kind, f.Refused)
		}
		return nil
	})
}

// nothingLost checks that every acknowledged job and lease is there exactly
// once, as it was acknowledged, and that no key made two jobs.
func (r *region) nothingLost(acked []answered) (leases int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	jobs := make(map[string]gpuai.Job)
	q := client.JobQuery{Page: client.Page{Limit: 1_000}}
	for more := true; more; more = q.Cursor != "" {
		page, next, err := r.client().Jobs(ctx, q)
		if err != nil {
			r.t.Fatalf("listing the jobs: %v", err)
		}
		for _, j := range page {
			if other, twice := jobs[j.Name]; twice {
				r.t.Errorf("key %s made two jobs, %s and %s", j.Name, other.ID, j.ID)
			}
			jobs[j.Name] = j
		}
		q.Cursor = next
	}
	held := r.leases(ctx)
	for _, a := range acked {
		if j, ok := jobs[a.name]; !ok || j.ID != a.sub.Job.ID || j.SubmitIndex != a.sub.Index {
			r.t.Errorf("job %s was acknowledged as %s at index %d and is now %s at index %d", a.name, a.sub.Job.ID, a.sub.Index, j.ID, j.SubmitIndex)
		}
		for _, l := range a.sub.Leases {
			if now, ok := held[l.ID]; !ok || now.TaskRef != l.TaskRef || now.Node != l.Node {
				r.t.Errorf("lease %s of job %s was acknowledged as %+v and is now %+v", l.ID, a.name, l, now)
			}
			leases++
		}
	}
	return leases
}

// leases returns all leases that the region knows.
func (r *region) leases(ctx context.Context) map[gpuai.Token]gpuai.Lease {
	r.t.Helper()
	out := make(map[gpuai.Token]gpuai.Lease)
	q := client.LeaseQuery{Page: client.Page{Limit: 1_000}}
	for more := true; more; more = q.Cursor != "" {
		page, next, err := r.client().Leases(ctx, q)
		if err != nil {
			r.t.Fatalf("listing the leases: %v", err)
		}
		for _, l := range page {
			out[l.ID] = l
		}
		q.Cursor = next
	}
	return out
}

// A judge passes requests on and fails the test at an answer that a client
// could not retry, or was not told when to.
type judge struct {
	t    *testing.T
	next *http.Transport
	mu   sync.Mutex // guards below
	seen map[string]int
}

func newJudge(t *testing.T) *judge {
	j := &judge{t: t, seen: make(map[string]int), next: &http.Transport{
		DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, MaxIdleConnsPerHost: loadWorkers,
	}}
	t.Cleanup(j.next.CloseIdleConnections)
	return j
}

// RoundTrip implements http.RoundTripper.
func (j *judge) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := j.next.RoundTrip(r)
	switch {
	case r.Context().Err() != nil:
	case err != nil:
		j.saw("no answer")
	case res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusTooManyRequests:
		j.saw(res.Status)
		if res.Header.Get("Retry-After") == "" {
			j.t.Errorf("%s %s: %s without Retry-After", r.Method, r.URL, res.Status)
		}
	case res.StatusCode == http.StatusGatewayTimeout:
		j.saw(res.Status)
	case res.StatusCode >= 400:
		j.t.Errorf("%s %s: %s is no answer to try again after", r.Method, r.URL, res.Status)
	}
	return res, err
}

func (j *judge) saw(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen[what]++
}

func (j *judge) counts() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return fmt.Sprint(j.seen)
}
