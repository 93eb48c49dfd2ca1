package httpd

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/gpuai/gpuai"
)

// ErrCompacted is returned by Streams.Events when events after the index asked
// for are gone, or when the reader fell so far behind that they went.
var ErrCompacted = errors.New("events behind this index are no longer kept: read the state again and watch from its index")

// A Backend is the region as this package sees it: one server of it. All
// methods may be called concurrently. An error that is a *gpuai.Error is
// answered with its code; any other is answered as internal and logged, except
// the end of the request's own context.
type Backend interface {
	Reader
	Asker
	Writer
	Streams
	Execer
	Auditor
	Operator
	Members
	Access
	Identities
	Secrets
	Owners
	Objects
}

// Status is what this server knows of itself and its region right now.
type Status struct {
	Server gpuai.ServerID
	// Index is the last applied entry's.
	Index uint64
	// LastContact is how long ago the leader was heard; 0 on the leader.
	LastContact gpuai.Duration
	Leader      gpuai.ServerID // "" = not known
	IsLeader    bool
	// Starting is true from the start until this server has once applied what
	// its leader had, while it knows one: its contact is fresh and its state
	// is old.
	Starting bool
	Ready    bool
	NotReady string // why not, one sentence; "" when Ready
	// Stalled says why this server cannot apply anything at present, as on a
	// full disk; "" when it can. Its state is the region's, of a while ago, and
	// LastContact is no less than that.
	Stalled string
	// Quarantined says why nothing may be answered from this server's own
	// state; "" when it may.
	Quarantined string
}

// A Page asks for one page of a list.
type Page struct {
	Limit  int    // 1 … 1,000
	Cursor string // "" = from the start; else as a page before returned it
	// Tenant and Contributor have the list hold only what is theirs; "" = all.
	Tenant      gpuai.TenantID
	Contributor gpuai.ContributorID
}

// A JobQuery asks for jobs, newest first.
type JobQuery struct {
	Page
	Status *gpuai.JobStatus // nil = any
	// Archived goes on with the jobs of the history archive when those of the
	// machine end.
	Archived bool
}

// A LeaseQuery asks for leases.
type LeaseQuery struct {
	Page
	Job  string       // ID, unique prefix or name; "" = any
	Node gpuai.NodeID // "" = any; live leases only
	Live bool         // no ended ones
}

// A SubmitRequest is one job to submit. Spec has passed Defaults and Validate;
// the backend may keep it.
type SubmitRequest struct {
	Spec       *gpuai.JobSpec
	Key        string // idempotency key, "" = none
	HoldAnyway bool   // store what can never fit as pending
}

// An EventQuery asks for events after index From.
type EventQuery struct {
	From uint64
	Job  string       // ID, unique prefix or name; "" = any
	Node gpuai.NodeID // "" = any
	// Tenant has the stream tell only of jobs of one; "" = of everything.
	Tenant gpuai.TenantID
}

// A LogQuery asks for output of one task. Lease wins over Group and Task; 0
// means the task's latest lease.
type LogQuery struct {
	Job    string         // ID, unique prefix or name
	Tenant gpuai.TenantID // whose lease it must be; "" = any's
	Group  uint16
	Task   uint32
	Lease  gpuai.Token
	Stream string // "stdout" or "stderr"
	Offset int64  // bytes from the start; negative: from the end
	Limit  int64  // bytes at most
	// Wait lets the answer be held until there is something new.
	Wait gpuai.Duration
	// Attempt is the task's lease of this number, from 1; 0 is the latest.
	Attempt uint32
	// Since, Tail and Times are as in gpuai.LogRequest.
	Since gpuai.WallTime
	Tail  int64
	Times bool
}

// A Reader reads the state of this server, and its history archive for what has
// left the state. Only ReadIndex and JobEvents take their time.
type Reader interface {
	Status() Status
	// Changed returns a channel that is closed once the applied index is above
	// what Status returned before the call. Take the channel first, then look
	// at Status, then wait.
	Changed() <-chan struct{}
	// ReadIndex returns once reads on this server, which must lead, see every
	// write that was acknowledged before the call.
	ReadIndex(ctx context.Context) error
	// FindJob returns the job that an ID, a unique prefix of one, or a name names,
	// among those of a tenant; "" = all. Another's is as unknown as none.
	FindJob(ref string, tenant gpuai.TenantID) (gpuai.JobID, error)
	// Job takes an ID, a unique prefix of one, or a name.
	Job(ref string, withSpec bool) (gpuai.Job, error)
	// Jobs and the other lists return a page and the cursor of the next, ""
	// at the end. A page may be short, even empty, with more to come.
	Jobs(q JobQuery) ([]gpuai.Job, string, error)
	Tasks(ref string, p Page) ([]gpuai.Task, string, error)
	// Checkpoints are those that a job's tasks have published.
	Checkpoints(ref string, p Page) ([]gpuai.PublishedCheckpoint, string, error)
	Leases(q LeaseQuery) ([]gpuai.Lease, string, error)
	// JobEvents returns what happened to a job, in order.
	JobEvents(ctx context.Context, ref string, p Page) ([]gpuai.Event, string, error)
	// Lease and Node return one of the given tenant's or contributor's; "" = any.
	// Another's is as unknown as none.
	Lease(t gpuai.Token, tenant gpuai.TenantID) (gpuai.Lease, error)
	Nodes(p Page) ([]gpuai.Node, string, error)
	Node(id gpuai.NodeID, owner gpuai.ContributorID) (gpuai.Node, error)
	// Queue sums up all that waits; it names jobs of the tenant only, "" = all.
	Queue(tenant gpuai.TenantID) gpuai.QueueStatus
	QueueEntries(p Page) ([]gpuai.QueueEntry, string, error)
	Policy() gpuai.Policy
	// Demand returns what the packing policy expects.
	Demand() gpuai.DemandStatus
	// Tenants returns those that have held devices or were given a weight.
	Tenants(p Page) ([]gpuai.TenantShare, string, error)
	// Quota and Usage are NotFound of a tenant that has none, or is not known.
	Quota(id gpuai.TenantID) (gpuai.QuotaStatus, error)
	Usage(id gpuai.TenantID) (gpuai.TenantUsage, error)
	Usages(p Page) ([]gpuai.TenantUsage, string, error)
	Prices() gpuai.Prices
}

// An Asker answers questions on copies of the state, which no question changes.
// It may take a while, and answers RateLimited when too many ask.
type Asker interface {
	// Explain says why a job's tasks wait or are where they are, at a past
	// index or, for 0, now. NotFound says too that the past is not retained. All
	// three name other jobs only where they are of the tenant of who asks, or that
	// is an operator.
	Explain(ctx context.Context, ref string, index uint64) (gpuai.Explanation, error)
	// Estimate says when a job's waiting tasks start.
	Estimate(ctx context.Context, id gpuai.JobID) (*gpuai.StartEstimate, error)
	// Suppose says what would follow from a request that has passed Validate.
	Suppose(ctx context.Context, r *gpuai.PlanRequest) (gpuai.Plan, error)
}

// A Writer changes the state. It is called on the leader only; it may lose that
// meanwhile and answers NoLeader or OutcomeUnknown then.
type Writer interface {
	Submit(ctx context.Context, r SubmitRequest) (gpuai.Submitted, error)
	// SubmitBatch submits specs, the i-th under the key (key, i), and returns
	// one result each. The backend may keep the specs, not the slice.
	SubmitBatch(ctx context.Context, specs []*gpuai.JobSpec, key string) ([]gpuai.BatchResult, error)
	// Plan says what Submit would answer now. Nothing is stored. It is called
	// on followers too, for a stale plan.
	Plan(ctx context.Context, spec *gpuai.JobSpec) (gpuai.Submitted, error)
	StopJob(ctx context.Context, ref, key string) (gpuai.Job, error)
	SetDrained(ctx context.Context, id gpuai.NodeID, drained bool) (gpuai.Node, error)
	// SetPolicy takes a policy that has passed Validate.
	SetPolicy(ctx context.Context, p gpuai.Policy) error
	// SetDemand takes a demand that has passed Validate.
	SetDemand(ctx context.Context, d gpuai.Demand) error
	SetTenantWeight(ctx context.Context, id gpuai.TenantID, weight uint32) error
	// SetQuota, SetBudget and SetPrices take what has passed Validate. A price
	// below 0 takes a node's own away.
	SetQuota(ctx context.Context, id gpuai.TenantID, q gpuai.Quota) error
	SetBudget(ctx context.Context, id gpuai.TenantID, b gpuai.Budget) error
	SetPrices(ctx context.Context, p gpuai.Prices) error
	SetNodePrice(ctx context.Context, id gpuai.NodeID, price gpuai.Micros) error
}

// Streams are the requests that last. They are served by every server.
type Streams interface {
	// Events calls f for each batch of events after q.From, in order, with the
	// index up to which the stream is complete, until f or ctx ends it. It
	// returns ErrCompacted when events are missing. The slice is not kept.
	Events(ctx context.Context, q EventQuery, f func([]gpuai.Event, uint64) error) error
	Logs(ctx context.Context, q LogQuery) (gpuai.LogChunk, error)
	// Agent runs one agent's session until it ends. c is closed afterwards.
	Agent(ctx context.Context, c AgentConn) error
}

// An AgentConn is one agent's connection. Send and Recv may run beside each
// other, each from one goroutine at a time. A cancelled ctx ends the connection.
type AgentConn interface {
	Recv(ctx context.Context) (gpuai.Frame, error)
	Send(ctx context.Context, f gpuai.Frame) error
	RemoteAddr() string
}

// An Operator looks at this server itself.
type Operator interface {
	Raft(ctx context.Context) gpuai.RaftStatus
	DigestAt(index uint64) (gpuai.DigestAt, error)
	// Snapshot writes a snapshot of the state to w.
	Snapshot(ctx context.Context, w io.Writer) error
	// Report writes a redacted report of a range of this server's log, and of the
	// state that it begins with, to w. 0 is an end that was not given.
	Report(ctx context.Context, span gpuai.IndexRange, w io.Writer) error
	// Export calls f for each line of an export of all that is known: the
	// archive's from after an index on, by index, the machine's as it is.
	Export(ctx context.Context, since uint64, f func(*gpuai.ExportLine) error) error
	// Audit calls f for each line of an export of the audit, behind an index: of
	// what this server's archive has, up to the end that its state has.
	Audit(ctx context.Context, since uint64, f func(*gpuai.AuditLine) error) error
	// Forward returns a transport to the leader; nil, nil when this server
	// leads; a *gpuai.Error NoLeader when nobody is known to. The transport
	// ignores the URL's host.
	Forward(ctx context.Context) (http.RoundTripper, error)
	// ForwardTo returns a transport to another server of the region; a
	// *gpuai.Error NotFound when there is none of this name.
	ForwardTo(ctx context.Context, id gpuai.ServerID) (http.RoundTripper, error)
	Info() gpuai.ServerInfo
	// Debug writes one of the gpuai.Debug… texts, but for the metrics, to w. A
	// profile takes the given seconds.
	Debug(ctx context.Context, what string, seconds uint32, w io.Writer) error
}
