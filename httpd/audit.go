package httpd

import (
	"context"
	"strings"

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
	case gpuai.NotFound: // of who does not see all there is: somebody may be guessing
		if c.who != nil && e.Index == 0 && !c.who.Operator() && (c.who.Tenant != "" || c.who.Contributor != "") {
			c.api.backend.Refused(c.refusal(e.Code))
		}
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
	return writeLines(c, "audit", func(f func(*gpuai.AuditLine) error) error { return c.api.backend.Audit(c.r.Context(), since, f) })
}
