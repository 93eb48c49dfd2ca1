package httpd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gpuai/gpuai"
)

// A twin is the region in memory: the Backend's contract without a log. Jobs
// run as long as a free GPU is left. It keeps what it was called with.
type twin struct {
	notes    []gpuai.AuditNote
	mu       sync.Mutex // guards below
	index    uint64
	changed  chan struct{}
	jobs     []gpuai.Job // oldest first
	leases   []gpuai.Lease
	nodes    []gpuai.Node
	events   []gpuai.Event
	first    uint64 // events up to it are gone
	policy   gpuai.Policy
	demand   gpuai.Demand
	tenants  []gpuai.TenantShare
	quotas   map[gpuai.TenantID]gpuai.QuotaStatus
	usages   []gpuai.TenantUsage
	prices   gpuai.Prices
	keys     map[string]gpuai.Submitted
	free     int
	status   Status
	fail     error // of the next call
	leader   http.RoundTripper
	others   map[gpuai.ServerID]http.RoundTripper
	barriers int
	output   []byte // of every task
	ended    bool   // the output is all there is
	batch    []string
	agent    func(context.Context, AgentConn) error
	access   twinAccess
	secrets  twinSecrets
	objects  twinObjects
	members  []gpuai.MemberStatus
	removed  []gpuai.ServerID
}

var _ Backend = (*twin)(nil)

func newTwin() *twin {
	t := &twin{
		index: 10, changed: make(chan struct{}), policy: gpuai.DefaultPolicy(), free: 4, keys: map[string]gpuai.Submitted{}, quotas: map[gpuai.TenantID]gpuai.QuotaStatus{},
		status:  Status{Server: "s1", Leader: "s1", IsLeader: true, Ready: true},
		members: []gpuai.MemberStatus{{Server: "s1", Address: "127.0.0.1:1", Voter: true, Leader: true, Reachable: true, AppliedIndex: 10}},
		removed: []gpuai.ServerID{},
	}
	for i := range 3 {
		t.nodes = append(t.nodes, gpuai.Node{
			NodeSpec: gpuai.NodeSpec{
				ID: gpuai.NodeID("gpu-" + strconv.Itoa(i)), Zone: "z1", Labels: map[string]string{"rack": "r1"}, Address: "127.0.0.1",
				CPU: 8000, Memory: 1 << 34, Devices: []gpuai.Device{{ID: "d0", Vendor: "sim", Model: "H100", Memory: 1 << 36, Free: 1000}},
			},
			Region: "local", Incarnation: gpuai.MakeIncarnation(0, 1), BootID: "b", FreeGPUs: 1, RegisterIndex: 2, ModifyIndex: 2,
		})
	}
	return t
}

// commit moves the index on and wakes waiters; the caller holds the lock.
func (t *twin) commit(e gpuai.Event) uint64 {
	t.index++
	e.Index = t.index
	t.events = append(t.events, e)
	close(t.changed)
	t.changed = make(chan struct{})
	return t.index
}

// failing returns the error that was planted, once.
func (t *twin) failing() error {
	err := t.fail
	t.fail = nil
	return err
}

func (t *twin) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.status
	st.Index = t.index
	return st
}

func (t *twin) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

func (t *twin) ReadIndex(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.barriers++
	return t.failing()
}

func notThere(what string) error {
	return gpuai.NewError(gpuai.NotFound, "there is no "+what+": list them first")
}

// find returns the place of a job; the caller holds the lock.
func (t *twin) find(ref string) (int, error) {
	for i := len(t.jobs) - 1; i >= 0; i-- {
		if j := &t.jobs[i]; j.Name == ref || len(ref) >= 4 && strings.HasPrefix(j.ID.String(), ref) {
			return i, nil
		}
	}
	return 0, notThere("job " + ref)
}

func (t *twin) Job(ref string, withSpec bool) (gpuai.Job, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, err := t.find(ref)
	if err != nil {
		return gpuai.Job{}, err
	}
	j := t.jobs[i]
	if !withSpec {
		j.Spec = nil
	}
	return j, nil
}

// page cuts rows by a cursor that is their number.
func page[T any](rows []T, p Page) ([]T, string, error) {
	from := 0
	if p.Cursor != "" {
		var err error
		if from, err = strconv.Atoi(p.Cursor); err != nil || from < 0 || from > len(rows) {
			return nil, "", gpuai.NewError(gpuai.InvalidSpec, "cursor is none of this list's")
		}
	}
	to := min(len(rows), from+p.Limit)
	next := ""
	if to < len(rows) {
		next = strconv.Itoa(to)
	}
	return slices.Clone(rows[from:to]), next, nil
}

func (t *twin) Jobs(q JobQuery) ([]gpuai.Job, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var rows []gpuai.Job
	for _, j := range slices.Backward(t.jobs) {
		if j.Archived && !q.Archived {
			continue
		}
		if j.Spec = nil; (q.Status == nil || *q.Status == j.Status) && (q.Tenant == "" || q.Tenant == j.Tenant) {
			rows = append(rows, j)
		}
	}
	return page(rows, q.Page)
}

func (t *twin) Tasks(ref string, p Page) ([]gpuai.Task, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, err := t.find(ref)
	if err != nil {
		return nil, "", err
	}
	var rows []gpuai.Task
	for n := range t.jobs[i].Tasks {
		rows = append(rows, gpuai.Task{
			TaskRef: gpuai.TaskRef{Job: t.jobs[i].ID, Task: n},
			LastEnd: &gpuai.TaskEnd{Lease: 7, Node: "a", Cause: gpuai.CauseFailed, Code: gpuai.EndImagePull, ExitCode: 1, Reason: "no such image", At: 1},
		})
	}
	return page(rows, p)
}

func (t *twin) Checkpoints(ref string, p Page) ([]gpuai.PublishedCheckpoint, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, err := t.find(ref)
	if err != nil {
		return nil, "", err
	}
	of := gpuai.TaskRef{Job: t.jobs[i].ID}
	d := gpuai.BlobDigest{1, 2, 3}
	return page([]gpuai.PublishedCheckpoint{
		{TaskRef: of, Seq: 2, Digest: d, Bytes: 1 << 30, Step: 200, PublishedAt: 9, Lease: 7, Key: gpuai.CheckpointKey(of, 7, d)},
		{TaskRef: of, Seq: 1, Digest: d, Lease: 7, Key: gpuai.CheckpointKey(of, 7, d)},
	}, p)
}

func (t *twin) Leases(q LeaseQuery) ([]gpuai.Lease, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var rows []gpuai.Lease
	for _, l := range t.leases {
		if q.Job != "" {
			i, err := t.find(q.Job)
			if err != nil {
				return nil, "", err
			}
			if t.jobs[i].ID != l.Job {
				continue
			}
		}
		if (q.Node == "" || q.Node == l.Node) && (!q.Live || l.State != gpuai.LeaseEnded) && (q.Tenant == "" || q.Tenant == l.Tenant) {
			rows = append(rows, l)
		}
	}
	return page(rows, q.Page)
}

func (t *twin) JobEvents(_ context.Context, ref string, p Page) ([]gpuai.Event, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, err := t.find(ref)
	if err != nil {
		return nil, "", err
	}
	var rows []gpuai.Event
	for _, e := range t.events {
		if e.Job == t.jobs[i].ID {
			rows = append(rows, e)
		}
	}
	return page(rows, p)
}

func (t *twin) Lease(id gpuai.Token, tenant gpuai.TenantID) (gpuai.Lease, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.leases {
		if l.ID == id && (tenant == "" || l.Tenant == tenant) {
			return l, nil
		}
	}
	return gpuai.Lease{}, notThere("lease " + id.String())
}

func (t *twin) Nodes(p Page) ([]gpuai.Node, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return page(slices.DeleteFunc(slices.Clone(t.nodes), func(n gpuai.Node) bool { return p.Contributor != "" && n.Contributor != p.Contributor }), p)
}

func (t *twin) Node(id gpuai.NodeID, owner gpuai.ContributorID) (gpuai.Node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		if n.ID == id && (owner == "" || n.Contributor == owner) {
			return n, nil
		}
	}
	return gpuai.Node{}, notThere("node " + string(id))
}

func (t *twin) Estimate(context.Context, gpuai.JobID) (*gpuai.StartEstimate, error) {
	return &gpuai.StartEstimate{Known: true, In: gpuai.Minute, Calibration: &gpuai.Calibration{Starts: 2, Error: gpuai.Second, Bias: -gpuai.Second}}, nil
}

func (t *twin) Suppose(ctx context.Context, r *gpuai.PlanRequest) (gpuai.Plan, error) {
	p := gpuai.Plan{
		Index: t.Status().Index, Jobs: []gpuai.PlannedJob{}, Changes: []gpuai.PlanChange{},
		Before: gpuai.Capacity{Nodes: 1, NodesOpen: 1}, After: gpuai.Capacity{Nodes: 1},
		Blast: gpuai.PlanBlast{Jobs: 1, Moves: 1, Revoked: []gpuai.PlanCause{{Cause: gpuai.CauseDrained, Tasks: 1}}},
	}
	for i := range r.Submit {
		sub, err := t.Plan(ctx, &r.Submit[i])
		if err != nil {
			return p, err
		}
		p.Jobs = append(p.Jobs, gpuai.PlannedJob{Job: sub.Job, Leases: sub.Leases, Reasons: sub.Reasons})
	}
	for _, id := range r.Drain {
		if _, err := t.Node(id, ""); err != nil {
			return p, err
		}
		p.Changes = append(p.Changes, gpuai.PlanChange{Name: "j", Change: gpuai.PlanMoves, Cause: gpuai.CauseDrained, From: id, To: "n2", GPUs: 1})
	}
	return p, nil
}

func (t *twin) Explain(_ context.Context, ref string, index uint64) (gpuai.Explanation, error) {
	if index > t.Status().Index {
		return gpuai.Explanation{}, gpuai.NewError(gpuai.NotFound, "the index is not retained")
	}
	j, err := t.Job(ref, true)
	if err != nil {
		return gpuai.Explanation{}, err
	}
	return gpuai.Explanation{
		Job: j.ID, Name: j.Name, Status: j.Status, Index: t.Status().Index, Position: 1, QueueLen: 1,
		Groups: []gpuai.GroupWhy{{
			Group: "main", Pending: 1, Needs: j.Spec.Groups[0].Resources, Nodes: 3,
			Rules: []gpuai.Rule{{Name: "gpu.count", Code: gpuai.InsufficientGPUs, Nodes: 3, Alone: 3}},
		}},
		Reasons:  []gpuai.Reason{{Code: gpuai.InsufficientGPUs, Message: "no node has a free GPU", Nodes: 3}},
		Helps:    []gpuai.Helpful{{Change: "wait", Effect: "when a job ends"}},
		Ahead:    []gpuai.Preferred{{QueueEntry: gpuai.QueueEntry{Position: 1, Name: "b", Tenant: "default", Priority: 20}, Why: "it was submitted before"}},
		Estimate: &gpuai.StartEstimate{Why: "it waits for tasks without a run-time limit"},
		Places:   []gpuai.PlacedWhy{{Lease: 1, Node: "n1", Index: 1, Nodes: 3, Fits: 1, Steps: []gpuai.PlaceStep{{Rule: "class", Value: "2 free", Nodes: 1}}}},
	}, nil
}

func (t *twin) pending() (rows []gpuai.QueueEntry) {
	for _, j := range t.jobs {
		if j.Counts.Pending > 0 {
			rows = append(rows, gpuai.QueueEntry{
				Position: uint32(len(rows) + 1), Job: j.ID, Name: j.Name, Tenant: j.Tenant, Priority: 20, Pending: j.Counts.Pending,
			})
		}
	}
	return rows
}

func (t *twin) Queue(tenant gpuai.TenantID) gpuai.QueueStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := gpuai.QueueStatus{Index: t.index}
	for _, e := range t.pending() {
		q.Jobs++
		if tenant != "" && e.Tenant != tenant {
			e.Job = gpuai.JobID{}
		}
		q.Shapes = append(q.Shapes, gpuai.QueueShape{Priority: 20, Jobs: 1, Tasks: 1, Oldest: e.Job, Reason: gpuai.InsufficientGPUs})
	}
	return q
}

func (t *twin) QueueEntries(p Page) ([]gpuai.QueueEntry, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return page(slices.DeleteFunc(t.pending(), func(e gpuai.QueueEntry) bool { return p.Tenant != "" && e.Tenant != p.Tenant }), p)
}

func (t *twin) Policy() gpuai.Policy {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.policy
}

func (t *twin) Submit(_ context.Context, r SubmitRequest) (gpuai.Submitted, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.failing(); err != nil {
		return gpuai.Submitted{}, err
	}
	if s, ok := t.keys[r.Key]; ok && r.Key != "" {
		if s.Job.Name != r.Spec.Name {
			return gpuai.Submitted{}, gpuai.NewError(gpuai.IdempotencyMismatch, "this key was used for another job")
		}
		return s, nil
	}
	if g := &r.Spec.Groups[0]; g.Resources.GPU.Count > 8 && !r.HoldAnyway {
		return gpuai.Submitted{}, &gpuai.Error{
			Code: gpuai.Unschedulable, Detail: "no registered node has 9 GPUs", Index: t.index,
			Reasons: []gpuai.Reason{{Code: gpuai.NoSuchDevice, Message: "no node has so many", Nodes: 3, Fix: "ask for fewer"}},
		}
	}
	s := t.place(r.Spec)
	t.keys[r.Key] = s
	return s, nil
}

// place makes a job and as many leases as there are free GPUs.
func (t *twin) place(spec *gpuai.JobSpec) gpuai.Submitted {
	id := gpuai.JobID{0: 1, 15: byte(len(t.jobs))}
	index := t.commit(gpuai.Event{Kind: gpuai.JobSubmitted, Job: id})
	j := gpuai.Job{
		ID: id, Name: spec.Name, Tenant: spec.Tenant, Region: "local", Class: spec.Class, Priority: 20, Spec: spec,
		SubmitIndex: index, ModifyIndex: index,
	}
	for i := range spec.Groups {
		j.Tasks += spec.Groups[i].Count
	}
	s := gpuai.Submitted{Index: index}
	for n := range j.Tasks {
		if t.free == 0 {
			j.Counts.Pending = j.Tasks - n
			s.Reasons = []gpuai.Reason{{Code: gpuai.InsufficientGPUs, Message: "all are taken"}}
			s.QueuePosition = 1
			break
		}
		t.free--
		s.Leases = append(s.Leases, gpuai.Lease{
			ID: gpuai.MakeToken(0, index, uint16(n)), TaskRef: gpuai.TaskRef{Job: id, Task: n}, Tenant: spec.Tenant,
			Node: t.nodes[0].ID, Incarnation: 1, Devices: []gpuai.DeviceID{"d0"}, CPU: 1000, Memory: 1 << 30,
			TTL: 20_000, Grace: 5000, ModifyIndex: index,
		})
		j.Counts.Leased, j.Status = n+1, gpuai.JobRunning
	}
	t.leases = append(t.leases, s.Leases...)
	t.jobs = append(t.jobs, j)
	s.Job = j
	return s
}

func (t *twin) SubmitBatch(ctx context.Context, specs []*gpuai.JobSpec, key string) ([]gpuai.BatchResult, error) {
	var out []gpuai.BatchResult
	for i, spec := range specs {
		k := ""
		if key != "" {
			k = key + "/" + strconv.Itoa(i)
		}
		s, err := t.Submit(ctx, SubmitRequest{Spec: spec, Key: k})
		r := gpuai.BatchResult{Job: s.Job.ID, Tasks: s.Job.Tasks, Leased: s.Job.Counts.Leased, Index: s.Index}
		var e *gpuai.Error
		if errors.As(err, &e) {
			r.Code, r.Detail = e.Code, e.Detail
		}
		out = append(out, r)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.batch = append(t.batch, key)
	return out, nil
}

func (t *twin) Plan(_ context.Context, spec *gpuai.JobSpec) (gpuai.Submitted, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fork := &twin{index: t.index, changed: make(chan struct{}), free: t.free, nodes: t.nodes, jobs: slices.Clone(t.jobs)}
	return fork.place(spec), nil
}

func (t *twin) StopJob(_ context.Context, ref, _ string) (gpuai.Job, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, err := t.find(ref)
	if err != nil {
		return gpuai.Job{}, err
	}
	j := &t.jobs[i]
	if j.Status.Final() {
		return gpuai.Job{}, gpuai.NewError(gpuai.Conflict, "job "+ref+" has ended already")
	}
	j.Status, j.Counts = gpuai.JobStopped, gpuai.TaskCounts{Stopped: j.Tasks}
	j.ModifyIndex = t.commit(gpuai.Event{Kind: gpuai.JobEnded, Job: j.ID, JobStatus: j.Status})
	return *j, nil
}

func (t *twin) SetDrained(_ context.Context, id gpuai.NodeID, drained bool) (gpuai.Node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.nodes {
		if n := &t.nodes[i]; n.ID == id {
			n.Drained = drained
			n.ModifyIndex = t.commit(gpuai.Event{Kind: gpuai.NodeChanged, Node: id, Drained: drained})
			return *n, nil
		}
	}
	return gpuai.Node{}, notThere("node " + string(id))
}

func (t *twin) Tenants(p Page) ([]gpuai.TenantShare, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return page(slices.DeleteFunc(slices.Clone(t.tenants), func(s gpuai.TenantShare) bool { return p.Tenant != "" && s.ID != p.Tenant }), p)
}

func (t *twin) SetTenantWeight(_ context.Context, id gpuai.TenantID, weight uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tenants = append(t.tenants, gpuai.TenantShare{ID: id, Weight: weight})
	t.commit(gpuai.Event{Kind: gpuai.PolicySet})
	return nil
}

func (t *twin) Quota(id gpuai.TenantID) (gpuai.QuotaStatus, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q, ok := t.quotas[id]
	if !ok {
		return q, notThere("quota of " + string(id))
	}
	return q, nil
}

func (t *twin) SetQuota(_ context.Context, id gpuai.TenantID, q gpuai.Quota) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := gpuai.QuotaStatus{Tenant: id, Quota: q}
	for _, m := range q.Models {
		st.Use.Models = append(st.Use.Models, gpuai.ModelUse{Model: m.Model, GPUMilli: 500})
	}
	t.quotas[id] = st
	t.commit(gpuai.Event{Kind: gpuai.QuotaSet, Tenant: id})
	return nil
}

func (t *twin) Usage(id gpuai.TenantID) (gpuai.TenantUsage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range t.usages {
		if u.Tenant == id {
			return u, nil
		}
	}
	return gpuai.TenantUsage{}, notThere("tenant " + string(id))
}

func (t *twin) Usages(p Page) ([]gpuai.TenantUsage, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return page(t.usages, p)
}

func (t *twin) SetBudget(_ context.Context, id gpuai.TenantID, b gpuai.Budget) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.usages = append(t.usages, gpuai.TenantUsage{Tenant: id, Budget: b, HeldMoney: 3})
	t.commit(gpuai.Event{Kind: gpuai.BudgetSet, Tenant: id})
	return nil
}

func (t *twin) Prices() gpuai.Prices {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.prices
}

func (t *twin) SetPrices(_ context.Context, p gpuai.Prices) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.prices = p
	t.commit(gpuai.Event{Kind: gpuai.PricesSet})
	return nil
}

func (t *twin) SetNodePrice(_ context.Context, id gpuai.NodeID, price gpuai.Micros) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.nodes {
		if t.nodes[i].ID == id {
			t.nodes[i].Price = max(price, 0)
			t.commit(gpuai.Event{Kind: gpuai.PricesSet})
			return nil
		}
	}
	return notThere("node " + string(id))
}

func (t *twin) Demand() gpuai.DemandStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := gpuai.DemandStatus{Packing: gpuai.PackingEFW, Active: gpuai.PackingEFW, Fixed: t.demand.Fixed, Epoch: 1, Groups: 7, NextFreeze: 128, Classes: []gpuai.ExpectedClass{}}
	for _, c := range t.demand.Classes {
		st.Classes = append(st.Classes, gpuai.ExpectedClass{DemandClass: c, WeightPPM: 1_000_000})
	}
	return st
}

func (t *twin) SetDemand(_ context.Context, d gpuai.Demand) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.demand = d
	t.commit(gpuai.Event{Kind: gpuai.PolicySet})
	return nil
}

func (t *twin) SetPolicy(_ context.Context, p gpuai.Policy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.policy = p
	t.commit(gpuai.Event{Kind: gpuai.PolicySet})
	return nil
}

func (t *twin) Events(ctx context.Context, q EventQuery, f func([]gpuai.Event, uint64) error) error {
	for from := q.From; ; {
		changed := t.Changed()
		t.mu.Lock()
		first, index := t.first, t.index
		var out []gpuai.Event
		for _, e := range t.events {
			if e.Index > from && (q.Node == "" || e.Node == q.Node) && (q.Job == "" || e.Job.String() == q.Job) && (q.Tenant == "" || t.tenantOf(e.Job) == q.Tenant) {
				out = append(out, e)
			}
		}
		t.mu.Unlock()
		if from < first {
			return ErrCompacted
		}
		if from = index; len(out) > 0 {
			if err := f(out, index); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (t *twin) Logs(ctx context.Context, q LogQuery) (gpuai.LogChunk, error) {
	if _, err := t.Job(q.Job, false); err != nil {
		return gpuai.LogChunk{}, err
	}
	for {
		changed := t.Changed()
		t.mu.Lock()
		from := q.Offset
		if from < 0 {
			from = max(0, int64(len(t.output))+from)
		}
		from = min(from, int64(len(t.output)))
		data := t.output[from:min(int64(len(t.output)), from+q.Limit)]
		chunk := gpuai.LogChunk{Offset: from, Data: data, EOF: t.ended && from+int64(len(data)) == int64(len(t.output))}
		if q.Times {
			chunk.Times = []gpuai.LogTime{{Offset: from, At: q.Since}}
		}
		t.mu.Unlock()
		if len(data) > 0 || chunk.EOF || q.Wait == 0 {
			return chunk, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return chunk, ctx.Err()
		}
	}
}

func (t *twin) Agent(ctx context.Context, c AgentConn) error {
	if t.agent != nil {
		return t.agent(ctx, c)
	}
	for {
		f, err := c.Recv(ctx)
		if err != nil {
			return err
		}
		if err := c.Send(ctx, f); err != nil {
			return err
		}
	}
}

func (t *twin) Raft(context.Context) gpuai.RaftStatus {
	return gpuai.RaftStatus{
		Server: "s1", Cluster: "c", Region: "local", State: "leader", Term: 2, Leader: "s1", AppliedIndex: t.Status().Index,
		Members: []gpuai.RaftMember{{Server: "s1", Address: "127.0.0.1:1", Voter: true, Leader: true}},
	}
}

func (t *twin) DigestAt(index uint64) (gpuai.DigestAt, error) {
	if now := t.Status().Index; index > now {
		return gpuai.DigestAt{}, notThere("digest at that index")
	} else if index == 0 {
		index = now
	}
	return gpuai.DigestAt{Index: index, Digest: strings.Repeat("0a", 16)}, nil
}

func (t *twin) Report(_ context.Context, span gpuai.IndexRange, w io.Writer) error {
	if span.To > t.Status().Index {
		return notThere("state at that index")
	}
	_, err := fmt.Fprintf(w, "report of %d to %d", span.From, span.To)
	return err
}

func (t *twin) Snapshot(_ context.Context, w io.Writer) error {
	t.mu.Lock()
	err := t.failing()
	t.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = w.Write(bytes.Repeat([]byte("snapshot"), 100_000))
	return err
}

// Export breaks off behind the jobs when it is to fail.
func (t *twin) Export(_ context.Context, since uint64, f func(*gpuai.ExportLine) error) error {
	t.mu.Lock()
	failing, jobs, events, index := t.failing(), slices.Clone(t.jobs), slices.Clone(t.events), t.index
	t.mu.Unlock()
	lines := []gpuai.ExportLine{{Kind: gpuai.ExportBegin, Index: since, Dropped: 3, Missing: []gpuai.IndexRange{{From: 4, To: 5}}}}
	for i := range events {
		if e := &events[i]; e.Index > since {
			lines = append(lines, gpuai.ExportLine{Kind: gpuai.ExportEvent, Index: e.Index, Archived: true, Event: e})
		}
	}
	for i := range jobs {
		lines = append(lines, gpuai.ExportLine{Kind: gpuai.ExportJob, Index: index, Job: &jobs[i]})
	}
	for i := range lines {
		if err := f(&lines[i]); err != nil {
			return err
		}
	}
	if failing != nil {
		return failing
	}
	return f(&gpuai.ExportLine{Kind: gpuai.ExportEnd, Index: index})
}

// Audit breaks off behind its entry when it is to fail.
func (t *twin) Audit(_ context.Context, since uint64, f func(*gpuai.AuditLine) error) error {
	e := gpuai.AuditEntry{Index: since + 1, First: 1, Records: []gpuai.AuditRecord{
		{Actor: "token/A@10.0.0.7", Command: "submit_job", Tenant: "default", Job: gpuai.JobID{1}},
		{Actor: "anonymous@::1", Command: "audit_note", Code: gpuai.Unauthenticated, Request: "GET /v1/jobs", Count: 7},
	}}
	for _, l := range []gpuai.AuditLine{{Begin: &gpuai.AuditBegin{Server: "s1", Region: "r", Since: since, Dropped: 3, Missing: []gpuai.IndexRange{{From: 4, To: 5}}}}, {Entry: &e}} {
		if err := f(&l); err != nil {
			return err
		}
	}
	if err := t.failing(); err != nil {
		return err
	}
	return f(&gpuai.AuditLine{Head: &gpuai.AuditHead{Records: 2, Index: since + 1}})
}

func (t *twin) Refused(n gpuai.AuditNote) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes = append(t.notes, n)
}

func (t *twin) RecordExec(_ context.Context, n gpuai.AuditNote) error {
	t.Refused(n)
	return t.failing()
}

func (t *twin) ForwardTo(_ context.Context, id gpuai.ServerID) (http.RoundTripper, error) {
	if rt := t.others[id]; rt != nil {
		return rt, nil
	}
	return nil, notThere("server " + string(id))
}

func (t *twin) Info() gpuai.ServerInfo {
	return gpuai.ServerInfo{Server: t.Status().Server, Version: "1", Go: "go1", CPUs: 2, Ready: true, Config: []gpuai.Setting{{Name: "id", Value: "s1"}}}
}

func (t *twin) Debug(_ context.Context, what string, seconds uint32, w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s of %s for %d s\n", what, t.Status().Server, seconds)
	return err
}

func (t *twin) Forward(context.Context) (http.RoundTripper, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status.IsLeader {
		return nil, nil
	}
	if t.leader == nil {
		return nil, &gpuai.Error{Code: gpuai.NoLeader, Detail: "the region has no leader now: retry", RetryAfter: gpuai.Second}
	}
	return t.leader, nil
}

// toServer is a transport to one server, whatever the URL's host says.
type toServer struct{ addr string }

func (s toServer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = s.addr
	return http.DefaultTransport.RoundTrip(r)
}

// serve starts the API over b on a real listener.
func serve(t *testing.T, b Backend, change ...func(*Config)) *httptest.Server {
	t.Helper()
	cfg := testConfig(b)
	for _, f := range change {
		f(&cfg)
	}
	s := httptest.NewUnstartedServer(nil)
	s.Config = NewServer(New(cfg), cfg.Logger)
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func testConfig(b Backend) Config {
	reg := prometheus.NewRegistry()
	return Config{
		Hosts: testHosts, Backend: b, Schema: []byte(`{"type":"object"}`), Registry: reg,
		Metrics: promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), Logger: slog.New(slog.DiscardHandler),
	}
}

// call makes one request and reads the whole answer. Headers are "Name: value".
func ask(t *testing.T, s *httptest.Server, method, path, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// spec is a valid job in its wire form.
func spec(name string, gpus, count int) string {
	return `{"name":"` + name + `","groups":[{"count":` + strconv.Itoa(cmp.Or(count, 1)) +
		`,"resources":{"gpu":{"count":` + strconv.Itoa(gpus) + `}},"task":{"command":["true"]}}]}`
}

// ExecTarget implements Execer: nothing runs here.
func (t *twin) ExecTarget(_ context.Context, q LogQuery) (gpuai.Lease, gpuai.ServerID, error) {
	return gpuai.Lease{}, "", gpuai.NewError(gpuai.Forbidden, "exec is denied")
}

// StartExec implements Execer.
func (t *twin) StartExec(gpuai.NodeID, gpuai.ExecRequest) error { return nil }
