package httpd

import (
	"bufio"
	"context"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// An Auditor records what does not become a command by itself.
type Auditor interface {
	// Refused takes note of a request that was refused for who asked. It does not
	// block, and folds what it is told often.
	Refused(n gpuai.AuditNote)
	// RecordExec records a command beside a task before it runs. It must not run
	// when that fails.
	RecordExec(ctx context.Context, n gpuai.AuditNote) error
}

// anonymous is who asks as long as that is not known.
const anonymous = "anonymous"

// actor says who asks and from where, as the audit has it.
func (c *call) actor() string {
	p := PrincipalOf(c.r.Context())
	who, from := p.Actor, p.From
	if who == "" {
		who = anonymous
	}
	if from == "" {
		from = hostOf(c.r.RemoteAddr)
	}
	return auditText(who + "@" + from)
}

func auditText(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), gpuai.MaxAuditText)], "")
}

// noteRefusal has the audit know of a request that was refused for who asked.
// What a command was refused with is recorded with the command.
func (c *call) noteRefusal(e *gpuai.Error) {
	switch e.Code {
	case gpuai.Unauthenticated, gpuai.Forbidden, gpuai.QuotaExceeded, gpuai.BudgetExceeded:
		if e.Index == 0 {
			c.api.backend.Refused(c.refusal(e.Code))
		}
	}
}

func (c *call) refusal(code gpuai.Code) gpuai.AuditNote {
	return gpuai.AuditNote{
		Actor: c.actor(), Tenant: PrincipalOf(c.r.Context()).Tenant, Code: code,
		Request: auditText(strings.TrimSpace(c.rt.method + " " + c.rt.path)), // as the table has it: paths hold what users wrote
	}
}

// audit answers GET /v1/operator/audit with lines of JSON. An answer that breaks
// off has no head in its last line.
func (c *call) audit() error {
	since, err := c.unsigned("since", 64)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.Header().Set("Cache-Control", "no-store")
	w := bufio.NewWriterSize(&slowWriter{c}, exportBuffer)
	err = c.api.backend.Audit(c.r.Context(), since, func(l *gpuai.AuditLine) error {
		line, err := json.Marshal(l)
		if err == nil {
			_, err = w.Write(append(line, '\n'))
		}
		return err
	})
	if err == nil {
		err = w.Flush()
	}
	if err != nil && c.status != 0 {
		c.api.log.Warn("audit cut short", "request_id", c.id, "error", err)
		panic(http.ErrAbortHandler)
	}
	return err
}
