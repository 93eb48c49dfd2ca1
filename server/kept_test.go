package server

import (
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/blobs"
)

// keep puts output of an attempt into a store as its agent would.
func keep(t *testing.T, s *blobs.Store, of gpuai.TaskRef, lease gpuai.Token, text string) {
	t.Helper()
	w := s.NewLog(gpuai.LogPrefix(of, lease))
	c := gpuai.LogChunk{Data: []byte(text), Times: []gpuai.LogTime{{Offset: 0, At: 1000}, {Offset: int64(strings.IndexByte(text, '\n') + 1), At: 2000}}}
	if err := w.Add(t.Context(), "stdout", &c); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func openStore(t *testing.T, url string) *blobs.Store {
	t.Helper()
	s, err := blobs.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// What a node cannot tell, since it is gone or has the output no more, any server
// reads from the store: of each attempt its own.
func TestLogsOfANodeThatIsGone(t *testing.T) {
	t.Parallel()
	url := "file://" + t.TempDir() + "/store"
	r := startRegionWith(t, 2, func(c *Config) { c.CheckpointStore = url })
	a := join(t, r.servers[0].Server, helloOf("n1", 1))
	a.logs = func(q gpuai.LogRequest) gpuai.LogChunk {
		return gpuai.LogChunk{Error: "this node has no output of the lease", Gone: true}
	}
	r.submit(jobSpec("j", 1), "")
	first := a.awaitLeases(1)[0]
	if code := a.report(first, 1, gpuai.ReportLost); code != gpuai.OK {
		t.Fatal(code)
	}
	second := first
	eventually(t, "the second attempt", func() bool {
		if held := a.held(); len(held) == 1 {
			second = held[0]
		}
		return second.Lease.ID != first.Lease.ID
	})
	if code := a.report(second, 1, gpuai.ReportDone); code != gpuai.OK {
		t.Fatal(code)
	}
	s := openStore(t, url)
	keep(t, s, first.Lease.TaskRef, first.Lease.ID, "one\ntwo\n")
	both := func(when string) {
		t.Helper()
		for _, m := range r.servers {
			for name, c := range map[string]struct {
				q    httpd.LogQuery
				want string
			}{
				"by number": {httpd.LogQuery{Job: "j", Attempt: 1}, "one\ntwo\n"},
				"by lease":  {httpd.LogQuery{Lease: first.Lease.ID, Limit: 5}, "one\nt"},
				"tail":      {httpd.LogQuery{Job: "j", Attempt: 1, Tail: 1}, "two\n"},
				"since":     {httpd.LogQuery{Job: "j", Attempt: 1, Since: 1500, Times: true}, "two\n"},
			} {
				got, err := m.Logs(t.Context(), c.q)
				if err != nil || string(got.Data) != c.want || got.EOF != (c.q.Limit == 0) || c.q.Times != (len(got.Times) == 1) {
					t.Errorf("%s, server %s, %s: %+v, %v", when, m.cfg.ID, name, got, err)
				}
			}
		}
	}
	both("the agent has it no more")
	if c, err := r.servers[1].Logs(t.Context(), httpd.LogQuery{Job: "j"}); err != nil || !c.Gone {
		t.Errorf("neither has the second attempt: %+v, %v", c, err)
	}
	a.conn.close()
	a.awaitEnd()
	both("the agent is away")
	_, err := r.servers[0].Logs(t.Context(), httpd.LogQuery{Job: "j"})
	if !isCode(err, gpuai.NotFound) || !strings.Contains(err.Error(), "agent of node n1 is not connected") || !strings.Contains(err.Error(), "store has no output") {
		t.Errorf("neither can tell: %v", err)
	}
	if err := s.Put(t.Context(), gpuai.LogPrefix(second.Lease.TaskRef, second.Lease.ID)+"index", []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.servers[0].Logs(t.Context(), httpd.LogQuery{Job: "j"}); !isCode(err, gpuai.NotFound) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("what is damaged: %v", err)
	}
}

// The leader deletes what retired jobs have in the store, also what came late; what
// it does not know it leaves.
func TestStoreIsSweptOfRetiredJobs(t *testing.T) {
	t.Parallel()
	url := "file://" + t.TempDir() + "/store"
	r := startRegionWith(t, 1, func(c *Config) { c.CheckpointStore, c.Retain = url, time.Second })
	a := join(t, r.servers[0].Server, helloOf("n1", 2))
	out := []gpuai.Submitted{r.submit(jobSpec("over", 1), ""), r.submit(jobSpec("on", 1), "")}
	s := openStore(t, url)
	stranger := gpuai.TaskRef{Job: gpuai.JobID{1}}
	for _, of := range []gpuai.TaskRef{{Job: out[0].Job.ID}, {Job: out[1].Job.ID}, stranger} {
		keep(t, s, of, 5, "text\n")
		if err := s.Put(t.Context(), gpuai.CheckpointKey(of, 5, gpuai.BlobDigest{}), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range a.awaitLeases(2) {
		if l.Lease.Job == out[0].Job.ID {
			a.report(l, 1, gpuai.ReportDone)
		}
	}
	left := func(job gpuai.JobID) (n int) {
		for _, top := range []string{"logs/", "checkpoints/"} {
			for name := range s.Below(t.Context(), top) {
				if name == job.String() { // a store of files: the directories go last
					n++
				}
			}
		}
		return n
	}
	eventually(t, "the retired job's blobs to go", func() bool { return left(out[0].Job.ID) == 0 })
	late := gpuai.TaskRef{Job: out[0].Job.ID}
	keep(t, s, late, 6, "late\n")
	if _, err := r.servers[0].sweep(t.Context()); err != nil || left(out[0].Job.ID) != 0 {
		t.Errorf("what came late is left: %v", err)
	}
	if left(out[1].Job.ID) != 2 || left(stranger.Job) != 2 {
		t.Errorf("of the other job %d blobs are left, of a stranger %d", left(out[1].Job.ID), left(stranger.Job))
	}
}
