package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// A Page asks for one page of a list. The zero Page is the first one.
type Page struct {
	Limit  int    // at most 1,000; 0 is the server's default
	Cursor string // as the page before returned it
	// Filter is an expression over the rows' JSON fields, such as
	// `status == "running" and class != "batch"`; "" is all.
	Filter string
	Fields []string // JSON names of the fields wanted; nil is all
	Read
}

// Read says how to read. The zero Read is linearizable and does not wait.
type Read struct {
	// Stale takes any server's answer at once, without asking the leader.
	Stale bool
	// After and Wait make a blocking query: the answer comes once the region's
	// index, or a single object's modify index, is above After, or after Wait,
	// at most five minutes. Wait 0 does not wait.
	After uint64
	Wait  gpuai.Duration
}

func (r *Read) add(v url.Values) {
	if r.Stale {
		v.Set("consistency", "stale")
	}
	if r.Wait > 0 {
		v.Set("index", strconv.FormatUint(r.After, 10))
		v.Set("wait", r.Wait.String())
	}
}

func (p *Page) values() url.Values {
	v := url.Values{}
	if p.Limit > 0 {
		v.Set("limit", strconv.Itoa(p.Limit))
	}
	set(v, "cursor", p.Cursor)
	set(v, "filter", p.Filter)
	set(v, "fields", strings.Join(p.Fields, ","))
	p.Read.add(v)
	return v
}

func set(v url.Values, name, value string) {
	if value != "" {
		v.Set(name, value)
	}
}

// A SubmitRequest is a job to submit.
type SubmitRequest struct {
	Spec *gpuai.JobSpec
	// Key makes the submit happen once, however often it is sent; "" mints one.
	Key string
	// HoldAnyway stores a job that no registered node could ever run.
	HoldAnyway bool
}

// JobQuery asks for jobs, newest first.
type JobQuery struct {
	Page
	Status *gpuai.JobStatus // nil is any
	// Archived goes on with the jobs of the history archive.
	Archived bool
}

// LeaseQuery asks for leases.
type LeaseQuery struct {
	Page
	Job  string
	Node gpuai.NodeID // live ones only
	Live bool
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (out T, err error) {
	r := request{method: http.MethodGet, path: path, query: query}
	if s := query.Get("wait"); s != "" {
		r.wait, _ = gpuai.ParseDuration(s) // we wrote it
	}
	err = c.do(ctx, r, decode(&out))
	return out, err
}

func key(k string) string {
	if k == "" {
		return NewKey()
	}
	return k
}

// Submit submits a job.
func (c *Client) Submit(ctx context.Context, r SubmitRequest) (out gpuai.Submitted, err error) {
	q := url.Values{}
	if r.HoldAnyway {
		q.Set("hold_anyway", "true")
	}
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/jobs", query: q, body: r.Spec, key: key(r.Key)}, decode(&out))
	return out, err
}

// SubmitBatch submits at most gpuai.MaxBatchJobs jobs; each has a result of its
// own, in their order.
func (c *Client) SubmitBatch(ctx context.Context, jobs []gpuai.JobSpec, k string) ([]gpuai.BatchResult, error) {
	var out struct {
		Results []gpuai.BatchResult `json:"results"`
	}
	r := request{method: http.MethodPost, path: "/v1/jobs:batch", body: gpuai.BatchRequest{Jobs: jobs}, key: key(k)}
	err := c.do(ctx, r, decode(&out))
	return out.Results, err
}

// SubmitEncoded is SubmitBatch for a gpuai.BatchRequest that is JSON already:
// who sends the same jobs many times encodes them once.
func (c *Client) SubmitEncoded(ctx context.Context, body []byte, k string) ([]gpuai.BatchResult, error) {
	var out struct {
		Results []gpuai.BatchResult `json:"results"`
	}
	err := c.do(ctx, request{method: http.MethodPost, path: "/v1/jobs:batch", raw: body, key: key(k)}, decode(&out))
	return out.Results, err
}

// Plan says what a submit would answer now. Nothing is stored.
func (c *Client) Plan(ctx context.Context, spec *gpuai.JobSpec) (out gpuai.Submitted, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/jobs:plan", body: spec}, decode(&out))
	return out, err
}

func jobPath(ref string) string { return "/v1/jobs/" + url.PathEscape(ref) }

type jobBody struct {
	Job gpuai.Job `json:"job"`
}

// Job returns a job with its spec, by ID, unique beginning of one, or name.
func (c *Client) Job(ctx context.Context, ref string) (gpuai.Job, error) {
	out, err := get[jobBody](ctx, c, jobPath(ref), nil)
	return out.Job, err
}

// WatchJob is Job as a blocking query: it returns once the job changed after
// index r.After, or r.Wait passed, with the index to go on from.
func (c *Client) WatchJob(ctx context.Context, ref string, r Read) (gpuai.Job, uint64, error) {
	v := url.Values{}
	r.add(v)
	out, err := get[struct {
		Job   gpuai.Job `json:"job"`
		Index uint64    `json:"index"`
	}](ctx, c, jobPath(ref), v)
	return out.Job, out.Index, err
}

// Jobs returns a page of jobs, and the cursor of the next; "" at the end.
func (c *Client) Jobs(ctx context.Context, q JobQuery) ([]gpuai.Job, string, error) {
	v := q.values()
	if q.Status != nil {
		v.Set("status", q.Status.String())
	}
	if q.Archived {
		v.Set("archived", "true")
	}
	out, err := get[struct {
		Jobs []gpuai.Job `json:"jobs"`
		Next string      `json:"next_cursor"`
	}](ctx, c, "/v1/jobs", v)
	return out.Jobs, out.Next, err
}

// Tasks returns a page of a job's tasks.
func (c *Client) Tasks(ctx context.Context, ref string, p Page) ([]gpuai.Task, string, error) {
	out, err := get[struct {
		Tasks []gpuai.Task `json:"tasks"`
		Next  string       `json:"next_cursor"`
	}](ctx, c, jobPath(ref)+"/tasks", p.values())
	return out.Tasks, out.Next, err
}

// Checkpoints returns a page of what a job's tasks have published, by task, the
// newest first.
func (c *Client) Checkpoints(ctx context.Context, ref string, p Page) ([]gpuai.PublishedCheckpoint, string, error) {
	out, err := get[struct {
		Checkpoints []gpuai.PublishedCheckpoint `json:"checkpoints"`
		Next        string                      `json:"next_cursor"`
	}](ctx, c, jobPath(ref)+"/checkpoints", p.values())
	return out.Checkpoints, out.Next, err
}

// StopJob stops a job. k is the idempotency key; "" mints one.
func (c *Client) StopJob(ctx context.Context, ref, k string) (gpuai.Job, error) {
	var out jobBody
	err := c.do(ctx, request{method: http.MethodPost, path: jobPath(ref) + "/stop", key: key(k)}, decode(&out))
	return out.Job, err
}

// Leases returns a page of leases.
func (c *Client) Leases(ctx context.Context, q LeaseQuery) ([]gpuai.Lease, string, error) {
	v := q.values()
	set(v, "job", q.Job)
	set(v, "node", string(q.Node))
	if q.Live {
		v.Set("live", "true")
	}
	out, err := get[struct {
		Leases []gpuai.Lease `json:"leases"`
		Next   string        `json:"next_cursor"`
	}](ctx, c, "/v1/leases", v)
	return out.Leases, out.Next, err
}

// Lease returns a lease.
func (c *Client) Lease(ctx context.Context, t gpuai.Token) (gpuai.Lease, error) {
	out, err := get[struct {
		Lease gpuai.Lease `json:"lease"`
	}](ctx, c, "/v1/leases/"+t.String(), nil)
	return out.Lease, err
}

// Nodes returns a page of nodes.
func (c *Client) Nodes(ctx context.Context, p Page) ([]gpuai.Node, string, error) {
	out, err := get[struct {
		Nodes []gpuai.Node `json:"nodes"`
		Next  string       `json:"next_cursor"`
	}](ctx, c, "/v1/nodes", p.values())
	return out.Nodes, out.Next, err
}

type nodeBody struct {
	Node gpuai.Node `json:"node"`
}

func nodePath(id gpuai.NodeID) string { return "/v1/nodes/" + url.PathEscape(string(id)) }

// Node returns a node.
func (c *Client) Node(ctx context.Context, id gpuai.NodeID) (gpuai.Node, error) {
	out, err := get[nodeBody](ctx, c, nodePath(id), nil)
	return out.Node, err
}

// SetDrained drains a node, or takes it back into use.
func (c *Client) SetDrained(ctx context.Context, id gpuai.NodeID, drained bool) (gpuai.Node, error) {
	path := nodePath(id) + "/undrain"
	if drained {
		path = nodePath(id) + "/drain"
	}
	var out nodeBody
	err := c.do(ctx, request{method: http.MethodPost, path: path, key: NewKey()}, decode(&out))
	return out.Node, err
}

// Queue sums up what waits.
func (c *Client) Queue(ctx context.Context) (gpuai.QueueStatus, error) {
	return get[gpuai.QueueStatus](ctx, c, "/v1/queue", nil)
}

// Pending returns a page of the waiting jobs, in queue order.
func (c *Client) Pending(ctx context.Context, p Page) ([]gpuai.QueueEntry, string, error) {
	out, err := get[struct {
		Pending []gpuai.QueueEntry `json:"pending"`
		Next    string             `json:"next_cursor"`
	}](ctx, c, "/v1/queue/pending", p.values())
	return out.Pending, out.Next, err
}

// Tenants returns a page of what tenants had of the devices, with their weights.
func (c *Client) Tenants(ctx context.Context, p Page) ([]gpuai.TenantShare, string, error) {
	out, err := get[struct {
		Tenants []gpuai.TenantShare `json:"tenants"`
		Next    string              `json:"next_cursor"`
	}](ctx, c, "/v1/tenants", p.values())
	return out.Tenants, out.Next, err
}

// SetTenantWeight says how much of the devices a tenant is to have beside
// others: in proportion to its weight, 1 to gpuai.MaxTenantWeight.
func (c *Client) SetTenantWeight(ctx context.Context, id gpuai.TenantID, weight uint32) error {
	body := map[string]uint32{"weight": weight}
	return c.do(ctx, request{method: http.MethodPut, path: "/v1/tenants/" + url.PathEscape(string(id)) + "/weight", body: body, key: NewKey()},
		func(*http.Response) error { return nil })
}

type policyBody struct {
	Policy gpuai.Policy `json:"policy"`
}

// Policy returns the region's policy.
func (c *Client) Policy(ctx context.Context) (gpuai.Policy, error) {
	out, err := get[policyBody](ctx, c, "/v1/operator/policy", nil)
	return out.Policy, err
}

// SetPolicy replaces the region's policy whole.
func (c *Client) SetPolicy(ctx context.Context, p gpuai.Policy) error {
	return c.do(ctx, request{method: http.MethodPut, path: "/v1/operator/policy", body: p, key: NewKey()},
		func(*http.Response) error { return nil })
}

// Raft returns one server's view of its Raft group.
func (c *Client) Raft(ctx context.Context) (gpuai.RaftStatus, error) {
	return get[gpuai.RaftStatus](ctx, c, "/v1/operator/raft", nil)
}

// Digest returns the digest that one server remembers for an index; 0 is its
// newest.
func (c *Client) Digest(ctx context.Context, index uint64) (gpuai.DigestAt, error) {
	v := url.Values{}
	if index > 0 {
		v.Set("index", strconv.FormatUint(index, 10))
	}
	return get[gpuai.DigestAt](ctx, c, "/v1/operator/digest", v)
}

// Snapshot writes a snapshot of the region's state to w. It tries no other
// server once w was written to: after an error w may hold a part.
func (c *Client) Snapshot(ctx context.Context, w io.Writer) error {
	return c.download(ctx, "snapshot", nil, w)
}

// Report writes a redacted report of a range of one server's log to w, and of the
// state that it begins with. An end that is 0 is left to the server, and "" is the
// server that is asked. As Snapshot it may leave a part in w.
func (c *Client) Report(ctx context.Context, id gpuai.ServerID, span gpuai.IndexRange, w io.Writer) error {
	q := url.Values{}
	for name, v := range map[string]uint64{"from": span.From, "to": span.To} {
		if v > 0 {
			q.Set(name, strconv.FormatUint(v, 10))
		}
	}
	if id != "" {
		q.Set("server", string(id))
	}
	return c.download(ctx, "report", q, w)
}

// download writes the answer of an operator's route to w.
func (c *Client) download(ctx context.Context, what string, q url.Values, w io.Writer) error {
	r := request{method: http.MethodGet, path: "/v1/operator/" + what, query: q, accept: "application/octet-stream", stream: true}
	err := c.round(ctx, &r, func(res *http.Response) error {
		if n, err := io.Copy(w, res.Body); err != nil {
			return &gpuai.Error{
				Code: gpuai.Internal, RequestID: res.Header.Get("X-Request-Id"),
				Detail: "the " + what + " broke off after " + strconv.FormatInt(n, 10) + " bytes: take it again (" + err.Error() + ")",
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	return c.final(ctx, &r, nil, err)
}
