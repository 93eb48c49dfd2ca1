package httpd

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// answer is how a code looks over HTTP.
type answer struct {
	status int
	title  string
}

// answers is the one table of codes and statuses.
var answers = [...]answer{
	gpuai.OK:                  {http.StatusOK, "Done"},
	gpuai.InvalidSpec:         {http.StatusBadRequest, "The request is not valid"},
	gpuai.NotFound:            {http.StatusNotFound, "There is no such thing"},
	gpuai.Conflict:            {http.StatusConflict, "The state does not allow it"},
	gpuai.PreconditionFailed:  {http.StatusPreconditionFailed, "The state has changed meanwhile"},
	gpuai.Unauthenticated:     {http.StatusUnauthorized, "Who asks is not known"},
	gpuai.Forbidden:           {http.StatusForbidden, "Not allowed"},
	gpuai.QuotaExceeded:       {http.StatusTooManyRequests, "The quota is used up"},
	gpuai.BudgetExceeded:      {http.StatusPaymentRequired, "The budget is used up"},
	gpuai.Unschedulable:       {http.StatusUnprocessableEntity, "The job can never fit"},
	gpuai.IdempotencyMismatch: {http.StatusUnprocessableEntity, "The idempotency key was used for another request"},
	gpuai.RateLimited:         {http.StatusTooManyRequests, "Too many requests"},
	gpuai.NoLeader:            {http.StatusServiceUnavailable, "The region has no leader to ask"},
	gpuai.OutcomeUnknown:      {http.StatusGatewayTimeout, "Whether it was done is not known"},
	gpuai.TooLarge:            {http.StatusRequestEntityTooLarge, "The request is too large"},
	gpuai.Internal:            {http.StatusInternalServerError, "This server erred"},
	gpuai.DiskLow:             {http.StatusServiceUnavailable, "The servers' disks are nearly full"},
}

// A statusError is an error whose status HTTP itself prescribes, such as 405,
// 408 and 415, instead of its code.
type statusError struct {
	status int
	err    *gpuai.Error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// problem is an RFC 9457 body.
type problem struct {
	Type      string             `json:"type"`
	Title     string             `json:"title"`
	Status    int                `json:"status"`
	Detail    string             `json:"detail,omitzero"`
	Instance  string             `json:"instance,omitzero"`
	Code      gpuai.Code         `json:"code"`
	Errors    []gpuai.FieldError `json:"errors,omitempty"`
	Reasons   []gpuai.Reason     `json:"reasons,omitempty"`
	RequestID string             `json:"request_id,omitzero"`
	Index     uint64             `json:"index,omitzero"`
}

const problemType = "application/problem+json"

// classify returns err as a *gpuai.Error with its HTTP status. What is no
// *gpuai.Error is internal: its text goes to the log, not to the caller.
func classify(err error) (*gpuai.Error, int) {
	var s *statusError
	if errors.As(err, &s) {
		return s.err, s.status
	}
	var e *gpuai.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.DeadlineExceeded):
		e = &gpuai.Error{
			Code: gpuai.OutcomeUnknown, RetryAfter: gpuai.Second,
			Detail: "the answer did not come in time: send the request again with the same Idempotency-Key",
		}
	default:
		e = gpuai.NewError(gpuai.Internal, "this server could not answer: see its log for this request_id")
	}
	status := http.StatusInternalServerError
	if int(e.Code) < len(answers) && e.Code != gpuai.OK {
		status = answers[e.Code].status
	}
	return e, status
}

// fail answers with err as a problem. The caller has written nothing yet.
func (c *call) fail(err error) {
	e, status := classify(err)
	c.noteRefusal(e)
	p := problem{
		Type: "urn:gpuai:problem:" + e.Code.String(), Title: http.StatusText(status), Status: status,
		Detail: e.Detail, Instance: c.r.URL.EscapedPath(), Code: e.Code, Errors: e.Fields,
		Reasons: e.Reasons, RequestID: c.id, Index: e.Index,
	}
	if a := answers[min(int(e.Code), len(answers)-1)]; a.status == status {
		p.Title = a.title
	}
	if p.Detail == "" && len(e.Fields) > 0 {
		p.Detail = e.Fields[0].Pointer + ": " + e.Fields[0].Detail
	}
	h := c.w.Header()
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || e.RetryAfter > 0 {
		h.Set("Retry-After", retrySeconds(e.RetryAfter))
	}
	if e.Index > 0 {
		h.Set(headerIndex, strconv.FormatUint(e.Index, 10))
	}
	if status >= http.StatusInternalServerError {
		level := slog.LevelWarn
		if p.Instance == "/readyz" { // polled: the server logs each change of it
			level = slog.LevelDebug
		}
		c.api.log.Log(c.r.Context(), level, "request failed", "method", c.r.Method, "path", p.Instance, "status", status, "request_id", c.id, "error", err)
	}
	body, err := json.Marshal(&p)
	if err != nil { // a detail that is no UTF-8: the code still goes out
		p.Detail, p.Errors, p.Reasons, p.Instance = "", nil, nil, ""
		body, _ = json.Marshal(&p)
	}
	c.send(status, problemType, body)
}

// retrySeconds rounds up to what Retry-After can say; nothing means 1 s.
func retrySeconds(d gpuai.Duration) string {
	return strconv.FormatInt(max(1, int64((d+gpuai.Second-1)/gpuai.Second)), 10)
}

// invalid is the error of a request that is wrong at one place.
func invalid(pointer, detail string) error {
	return &gpuai.Error{
		Code: gpuai.InvalidSpec, Fields: []gpuai.FieldError{{Pointer: pointer, Detail: detail}},
	}
}

// badQuery is the error of a query parameter or header that is wrong.
func badQuery(name, detail string) error {
	return gpuai.NewError(gpuai.InvalidSpec, name+" "+detail)
}
