package decide

import (
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
)

// finish reports a lease's end.
func (c *Core) finish(now int64, l *lease, r gpuai.Report) {
	l.phase = Reported
	c.report(now, l, r)
}

// report makes l's next report. It is repeated until it is answered.
func (c *Core) report(now int64, l *lease, r gpuai.Report) {
	l.seq++
	r.Lease, r.Seq, r.Incarnation = l.a.Lease.ID, l.seq, l.a.Lease.Incarnation
	if len(r.Reason) > gpuai.MaxReasonLen {
		r.Reason = strings.ToValidUTF8(r.Reason[:gpuai.MaxReasonLen], "")
	}
	l.unsent = append(l.unsent, r)
	l.sentAt = now
	c.do(SendReport{Report: r, First: true})
}

// resend sends again what was not answered, oldest first.
func (c *Core) resend(now int64, l *lease) {
	l.sentAt = now
	for _, r := range l.unsent {
		c.do(SendReport{Report: r})
	}
}

// adopted notes the incarnation that a lease belongs to now. What was reported
// under another one and is not answered will be refused: the newest of it is
// told again.
func (c *Core) adopted(now int64, l *lease, inc gpuai.Incarnation) {
	if l.a.Lease.Incarnation == inc {
		return
	}
	l.a.Lease.Incarnation = inc
	if n := len(l.unsent); n > 0 && l.unsent[n-1].Incarnation != inc {
		c.report(now, l, l.unsent[n-1])
	}
}

// answered takes the answer to a report: any code is final, and it settles the
// reports before it too.
func (c *Core) answered(r gpuai.Reported) {
	l := c.leases[r.Lease]
	if l == nil {
		return
	}
	i := slices.IndexFunc(l.unsent, func(u gpuai.Report) bool { return u.Seq == r.Seq })
	if i < 0 {
		return // a second answer
	}
	u := l.unsent[i]
	judged := u.Incarnation == l.a.Lease.Incarnation
	l.unsent = slices.Delete(l.unsent, 0, i+1)
	if judged && l.holds() && (r.Code == gpuai.Conflict || r.Code == gpuai.NotFound) {
		// The lease ended, or went to another incarnation.
		c.kill(l, gpuai.ReportFenced, "the region says that the lease is not this agent's any more")
		return
	}
	if judged && u.State == gpuai.ReportResolved && l.phase == Starting {
		digest := ""
		if r.Code == gpuai.OK {
			digest = r.Image
		}
		c.do(UseImage{Lease: l.a.Lease.ID, Digest: digest})
	}
	c.forgetAnswered(l)
}

// forgetAnswered drops a lease of which nothing is left to say.
func (c *Core) forgetAnswered(l *lease) {
	if l.phase != Reported || len(l.unsent) > 0 {
		return
	}
	t := l.a.Lease.ID
	delete(c.leases, t)
	c.finished[t] = true
	c.do(Forget{Lease: t})
}
