package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/raft"
)

// newJobID mints the ID of a job before its command is proposed.
func (s *Server) newJobID() (gpuai.JobID, error) {
	id, err := ulid.New(ulid.Timestamp(s.cfg.Wall()), rand.Reader)
	if err != nil {
		return gpuai.JobID{}, fmt.Errorf("mint a job ID: %w", err)
	}
	return gpuai.JobID(id), nil
}

// encodeSubmit encodes a job under a new ID.
func (s *Server) encodeSubmit(ctx context.Context, spec *gpuai.JobSpec, key string, hold bool) ([]byte, error) {
	id, err := s.newJobID()
	if err != nil {
		return nil, err
	}
	spec.Defaults()
	c := fsm.SubmitJob{ID: id, Spec: spec, HoldAnyway: hold, TenantExists: s.cfg.Authenticate && s.level() >= fsm.LevelTenants}
	return c.Append(nil, envelopeOf(ctx, spec.Tenant, key)), nil
}

// Submit implements httpd.Writer. The spec is valid: httpd saw to it.
func (s *Server) Submit(ctx context.Context, r httpd.SubmitRequest) (gpuai.Submitted, error) {
	var out gpuai.Submitted
	cmd, err := s.encodeSubmit(ctx, r.Spec, r.Key, r.HoldAnyway)
	if err != nil {
		return out, err
	}
	if err := s.node.AdmitClient(); err != nil {
		return out, err
	}
	began := time.Now()
	a, err := s.node.Propose(ctx, cmd)
	if err != nil {
		return out, err
	}
	if a.Result.Code != gpuai.OK {
		return out, s.refused(ctx, &a.Result, r.Spec)
	}
	s.metrics.placed(r.Spec.Class, &a.Result, time.Since(began))
	kept := false
	s.node.View(func(m *fsm.Machine) {
		out = submitted(m, &a.Result)
		kept = m.HasJob(a.Result.Job)
	})
	if !kept {
		return out, s.submittedLongAgo(&out)
	}
	s.sayWhy(ctx, &out)
	return out, nil
}

// submittedLongAgo completes the answer to a repeated submit whose job has left
// the machine.
func (s *Server) submittedLongAgo(out *gpuai.Submitted) (err error) {
	id := out.Job.ID
	if out.Job, err = s.archivedJob(id, false); err != nil {
		return err
	}
	leases, err := s.archivedLeases(id, 0, gpuai.MaxSubmitLeases)
	if out.Leases = leases; leases == nil {
		out.Leases = []gpuai.Lease{}
	}
	return err
}

// submitted reads what a submit answers with. The caller holds the machine.
func submitted(m *fsm.Machine, res *fsm.Result) gpuai.Submitted {
	out := gpuai.Submitted{Index: res.Index}
	ok := false
	if out.Job, ok = m.Job(res.Job, false); !ok { // repeated, and no longer kept
		out.Job = gpuai.Job{ID: res.Job, Tasks: res.Tasks}
	}
	if out.Leases = m.LeasesOfJob(res.Job, 0, gpuai.MaxSubmitLeases); out.Leases == nil {
		out.Leases = []gpuai.Lease{}
	}
	return out
}

// sayWhy adds why tasks wait, if any does.
func (s *Server) sayWhy(ctx context.Context, out *gpuai.Submitted) {
	if out.Job.Counts.Pending == 0 || out.Job.Status.Final() {
		return
	}
	id := out.Job.ID
	err := s.explainer.do(ctx, func(m *fsm.Machine) {
		m.AnswerTo(asker(ctx))
		defer m.AnswerTo("")
		if x, ok := m.Explain(id); ok {
			out.Reasons, out.QueuePosition = x.Reasons, x.Position
		}
	})
	if err != nil {
		out.Reasons = explainLater()
	}
}

// refused makes the error of a command that the machine rejected. spec is of a
// submit, else nil.
func (s *Server) refused(ctx context.Context, res *fsm.Result, spec *gpuai.JobSpec) error {
	e := refusedError(res)
	if res.Code == gpuai.InvalidSpec && spec != nil {
		e.Fields = s.lackingSecrets(spec)
	}
	if res.Code == gpuai.Unschedulable && spec != nil {
		if reasons, err := s.explainer.whyNever(ctx, spec); err == nil {
			e.Reasons = reasons
		}
		s.metrics.rejected(e.Reasons)
	}
	return e
}

func refusedError(res *fsm.Result) *gpuai.Error {
	e := &gpuai.Error{Code: res.Code, Detail: res.Detail, Index: res.Index}
	if e.Detail == "" {
		e.Detail = "this was answered before, under the same idempotency key"
	}
	if res.Code == gpuai.RateLimited {
		e.RetryAfter = gpuai.Second
	}
	return e
}

// SubmitBatch implements httpd.Writer. Job i has the key "key/i", so a batch
// that is sent again finds its jobs.
func (s *Server) SubmitBatch(ctx context.Context, specs []*gpuai.JobSpec, key string) ([]gpuai.BatchResult, error) {
	cmds := make([][]byte, len(specs))
	for i, spec := range specs {
		k := ""
		if key != "" {
			k = key + "/" + strconv.Itoa(i)
		}
		var err error
		if cmds[i], err = s.encodeSubmit(ctx, spec, k, false); err != nil {
			return nil, err
		}
	}
	if err := s.node.AdmitClient(); err != nil {
		return nil, err
	}
	began := time.Now()
	applied, err := s.node.ProposeAll(ctx, cmds)
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	out := make([]gpuai.BatchResult, len(specs))
	for i := range applied {
		res := &applied[i].Result
		out[i] = gpuai.BatchResult{
			Job: res.Job, Code: res.Code, Detail: res.Detail, Tasks: res.Tasks, Leased: res.Leased, Index: res.Index,
		}
		s.metrics.placed(specs[i].Class, res, took)
		if res.Code == gpuai.Unschedulable {
			s.metrics.rejected(nil) // looking at every node for each would hold the batch up
		}
	}
	return out, nil
}

// Plan implements httpd.Writer: a submit on a fork, through the same Apply.
func (s *Server) Plan(ctx context.Context, spec *gpuai.JobSpec) (gpuai.Submitted, error) {
	var out gpuai.Submitted
	done, err := s.turn(ctx, s.explainer.planning)
	if err != nil {
		return out, err
	}
	defer done()
	cmd, err := s.encodeSubmit(ctx, spec, "", false)
	if err != nil {
		return out, err
	}
	m, release := s.node.Fork()
	defer release()
	m.AnswerTo(asker(ctx))
	index := m.Index()
	h := fsm.Header{Time: s.node.RegionTime(), Wall: gpuai.WallTime(s.cfg.Wall().UnixMilli()), Term: m.Term()}
	var did fsm.Output
	if err := m.Apply(index+1, m.Term(), fsm.AppendEntry(nil, h, cmd), &did); err != nil {
		return out, fmt.Errorf("plan a job: %w", err)
	}
	res := &did.Results[0]
	if res.Index = index; res.Code != gpuai.OK {
		e := refusedError(res)
		if res.Code == gpuai.Unschedulable {
			e.Reasons = m.ExplainSpec(spec)
		}
		return out, e
	}
	out = submitted(m, res)
	if x, ok := m.Explain(res.Job); ok && out.Job.Counts.Pending > 0 {
		out.Reasons, out.QueuePosition = x.Reasons, x.Position
	}
	out.Cost = m.PlannedCost(res.Job, spec)
	return out, nil
}

// StopJob implements httpd.Writer.
func (s *Server) StopJob(ctx context.Context, ref, key string) (gpuai.Job, error) {
	id, err := gpuai.ParseJobID(ref)
	if err != nil { // a name or a beginning: which job that is must be read first
		if err := s.ReadIndex(ctx); err != nil {
			return gpuai.Job{}, err
		}
		at, err := s.locate(ref)
		if err != nil {
			return gpuai.Job{}, err
		}
		if at.archived {
			return gpuai.Job{}, s.errOver(at.id)
		}
		id = at.id
	}
	c := fsm.StopJob{Job: id}
	_, err = s.command(ctx, c.Append(nil, envelopeOf(ctx, tenantOf(ctx), key)))
	if isCode(err, gpuai.NotFound) {
		return gpuai.Job{}, s.errOver(id)
	}
	if err != nil {
		return gpuai.Job{}, err
	}
	return s.jobAt(place{id: id}, false)
}

// command proposes one command of a client and makes an error of a rejection.
func (s *Server) command(ctx context.Context, cmd []byte) (raft.Applied, error) {
	if err := s.node.AdmitClient(); err != nil {
		return raft.Applied{}, err
	}
	a, err := s.node.Propose(ctx, cmd)
	if err == nil && a.Result.Code != gpuai.OK {
		err = refusedError(&a.Result)
	}
	return a, err
}

// SetDrained implements httpd.Writer.
func (s *Server) SetDrained(ctx context.Context, id gpuai.NodeID, drained bool) (gpuai.Node, error) {
	c := fsm.SetNodeEligibility{Node: id, Drained: drained}
	_, err := s.command(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	if isCode(err, gpuai.NotFound) {
		return gpuai.Node{}, errNoNode(id) // the machine's sentences name nothing
	}
	if err != nil {
		return gpuai.Node{}, err
	}
	return s.Node(id, "")
}

// SetPolicy implements httpd.Writer.
func (s *Server) SetPolicy(ctx context.Context, p gpuai.Policy) error {
	if bad := p.Validate(); len(bad) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the policy is invalid", Fields: bad}
	}
	c := fsm.SetPolicy{Policy: p}
	_, err := s.command(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	return err
}

// isCode reports whether an error is a *gpuai.Error of a code.
func isCode(err error, c gpuai.Code) bool { return errors.Is(err, &gpuai.Error{Code: c}) }
