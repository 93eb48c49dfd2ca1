package httpd

import (
	"net/http"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gpuai/gpuai"
)

// maxErrors bounds the errors in one answer.
const maxErrors = 100

// submit answers POST /v1/jobs.
func (c *call) submit() error {
	req, err := c.submitRequest()
	if err != nil {
		return err
	}
	sub, err := c.api.backend.Submit(c.r.Context(), req)
	if err != nil {
		return err
	}
	c.discreetly(sub.Leases)
	c.setIndex(sub.Index)
	c.w.Header().Set("Location", "/v1/jobs/"+sub.Job.ID.String())
	return c.reply(submitStatus(&sub), &sub)
}

// submitStatus is 201 when no task waits for a lease, else 202.
func submitStatus(s *gpuai.Submitted) int {
	if s.Job.Counts.Pending > 0 {
		return http.StatusAccepted
	}
	return http.StatusCreated
}

func (c *call) submitRequest() (req SubmitRequest, err error) {
	if req.Key, err = c.key(); err != nil {
		return req, err
	}
	if req.HoldAnyway, err = c.boolean("hold_anyway"); err != nil {
		return req, err
	}
	req.Spec, err = c.spec()
	return req, err
}

// spec reads one valid job spec, its defaults filled in.
func (c *call) spec() (*gpuai.JobSpec, error) {
	spec := new(gpuai.JobSpec)
	if err := c.decode(spec); err != nil {
		return nil, err
	}
	if err := c.own(spec, ""); err != nil {
		return nil, err
	}
	spec.Defaults()
	if wrong := spec.Validate(); len(wrong) > 0 {
		return nil, &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong[:min(len(wrong), maxErrors)]}
	}
	return spec, nil
}

// plan answers POST /v1/jobs:plan: what a submit would answer now.
func (c *call) plan() error {
	spec, err := c.spec()
	if err != nil {
		return err
	}
	if err := c.readPoint(); err != nil {
		return err
	}
	sub, err := c.api.backend.Plan(c.r.Context(), spec)
	if err != nil {
		return err
	}
	c.discreetly(sub.Leases)
	return c.reply(http.StatusOK, &sub)
}

type batchReply struct {
	Results []gpuai.BatchResult `json:"results"`
	Index   uint64              `json:"index"`
}

// submitBatch answers POST /v1/jobs:batch. A batch with one invalid spec is
// refused whole: its keys go by position, so what is submitted must not depend
// on which were valid.
func (c *call) submitBatch() error {
	key, err := c.key()
	if err != nil {
		return err
	}
	specs, err := c.batch()
	if err != nil {
		return err
	}
	c.api.fair.charge(&c.claim, len(specs)-1)
	results, err := c.api.backend.SubmitBatch(c.r.Context(), specs, key)
	if err != nil {
		return err
	}
	reply := batchReply{Results: results}
	for i := range results {
		reply.Index = max(reply.Index, results[i].Index)
	}
	c.setIndex(reply.Index)
	return c.reply(http.StatusOK, &reply)
}

// batch reads {"jobs":[…]}. Each spec is checked as soon as it is read, so that
// a hostile body is given up at its first bad object.
func (c *call) batch() ([]*gpuai.JobSpec, error) {
	b, err := c.open(maxBatchBody)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if err := b.enter('{', "", "must be an object with the field jobs"); err != nil {
		return nil, err
	}
	if name, err := b.dec.ReadToken(); err != nil {
		return nil, b.explain(err)
	} else if name.Kind() != '"' || name.String() != "jobs" {
		return nil, invalid("", "must have the field jobs and no other")
	}
	if err := b.enter('[', "/jobs", "must be an array"); err != nil {
		return nil, err
	}
	specs, err := b.specs(c.own)
	if err != nil {
		return nil, err
	}
	if _, err := b.dec.ReadToken(); err != nil { // the array's end
		return nil, b.explain(err)
	}
	if t, err := b.dec.ReadToken(); err != nil {
		return nil, b.explain(err)
	} else if t.Kind() != '}' {
		return nil, invalid("", "must have the field jobs and no other")
	}
	return specs, b.end()
}

// enter reads the start of an object or array.
func (b *body) enter(kind jsontext.Kind, at, otherwise string) error {
	t, err := b.dec.ReadToken()
	if err != nil {
		return b.explain(err)
	}
	if t.Kind() != kind {
		return invalid(at, otherwise)
	}
	return nil
}

// specs reads the elements of the array that was entered.
func (b *body) specs(own func(*gpuai.JobSpec, string) error) (specs []*gpuai.JobSpec, err error) {
	var wrong []gpuai.FieldError
	for n := 0; b.dec.PeekKind() != ']'; n++ {
		if n == gpuai.MaxBatchJobs {
			return nil, gpuai.NewError(gpuai.TooLarge, "a batch has at most "+strconv.Itoa(gpuai.MaxBatchJobs)+" jobs")
		}
		b.guard.values = 0 // but for what is buffered already
		spec := new(gpuai.JobSpec)
		if err := b.value(spec); err != nil {
			return nil, err
		}
		if err := own(spec, "/jobs/"+strconv.Itoa(n)); err != nil {
			return nil, err
		}
		spec.Defaults()
		for _, w := range spec.Validate() {
			w.Pointer = "/jobs/" + strconv.Itoa(n) + w.Pointer
			wrong = append(wrong, w)
		}
		if len(wrong) >= maxErrors {
			break
		}
		specs = append(specs, spec)
	}
	if len(wrong) > 0 {
		return nil, &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong[:min(len(wrong), maxErrors)]}
	}
	if len(specs) == 0 {
		return nil, invalid("/jobs", "needs at least one job")
	}
	return specs, nil
}

// key returns the request's idempotency key.
func (c *call) key() (string, error) {
	k := c.r.Header.Get("Idempotency-Key")
	if len(k) > gpuai.MaxKeyLen {
		return "", badQuery("Idempotency-Key", "has at most "+strconv.Itoa(gpuai.MaxKeyLen)+" characters")
	}
	for i := range len(k) {
		if k[i] < '!' || k[i] > '~' {
			return "", badQuery("Idempotency-Key", "has printable ASCII characters only, and no spaces")
		}
	}
	return k, nil
}

type jobReply struct {
	Job      gpuai.Job            `json:"job"`
	Estimate *gpuai.StartEstimate `json:"start_estimate,omitempty"`
	Index    uint64               `json:"index"`
}

// getJob answers GET /v1/jobs/{job}.
func (c *call) getJob() error {
	ref, err := c.job()
	if err != nil {
		return err
	}
	if err := c.await(func() (uint64, error) {
		job, err := c.api.backend.Job(ref, false)
		return job.ModifyIndex, err
	}); err != nil {
		return err
	}
	job, err := c.api.backend.Job(ref, true)
	if err != nil {
		return err
	}
	reply := jobReply{Job: job}
	wanted, err := c.boolean("estimate")
	if err != nil {
		return err
	}
	if wanted && !job.Archived && job.Counts.Pending > 0 && !job.Status.Final() {
		if reply.Estimate, err = c.api.backend.Estimate(c.r.Context(), job.ID); err != nil {
			return err
		}
	}
	reply.Index = c.index
	c.setETag(job.ModifyIndex)
	return c.reply(http.StatusOK, &reply)
}

// stopJob answers POST /v1/jobs/{job}/stop.
func (c *call) stopJob() error {
	ref, err := c.job()
	if err != nil {
		return err
	}
	key, err := c.key()
	if err != nil {
		return err
	}
	if err := c.noBody(); err != nil {
		return err
	}
	job, err := c.api.backend.StopJob(c.r.Context(), ref, key)
	if err != nil {
		return err
	}
	c.setIndex(max(job.ModifyIndex, c.api.backend.Status().Index))
	c.setETag(job.ModifyIndex)
	return c.reply(http.StatusOK, &jobReply{Job: job, Index: c.index})
}

// jobStatus reads ?status=.
func jobStatus(q url.Values) (*gpuai.JobStatus, error) {
	if q.Get("status") == "" {
		return nil, nil
	}
	s := new(gpuai.JobStatus)
	if err := s.UnmarshalText([]byte(q.Get("status"))); err != nil {
		return nil, badQuery("status:", err.Error())
	}
	return s, nil
}
