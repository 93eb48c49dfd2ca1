package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/frames"
)

const (
	helloTimeout = 10 * time.Second // until an agent says who it is
	idleTimeout  = time.Minute      // without a frame, many beats long
	sendTimeout  = 5 * time.Second  // for one frame; a slower agent is cut
	// maxDirty is how many changed leases are remembered one by one; with
	// more, the whole set is sent again.
	maxDirty = 4_096
	// maxAcks bounds the confirmed beats of a session that wait to be sent.
	maxAcks = 16
	// maxWork bounds the reports of a session that wait for the leader, and
	// its answers that wait to be sent. An agent that goes beyond is cut.
	maxWork = 4_096
)

// errReplaced ends a session whose agent has begun another.
var errReplaced = errors.New("the agent began another session")

// errIdle ends a session whose agent says nothing.
var errIdle = errors.New("the agent has sent nothing for " + idleTimeout.String())

// agentConn is what a session needs of a connection; httpd.AgentConn is one.
type agentConn interface {
	Recv(ctx context.Context) (gpuai.Frame, error)
	Send(ctx context.Context, f gpuai.Frame) error
	RemoteAddr() string
}

// A session is one agent's connection. One goroutine receives. Another sends,
// and a third carries commands to the leader; these two there are only while
// there is something to do, since most sessions wait most of the time and each
// goroutine costs a stack. Everything that is sent is built by the sender, from
// the machine and under its lock, so indexes never go back.
type session struct {
	s    *Server
	conn agentConn
	name string
	ref  fsm.NodeRef
	// registered is the index of the registration: a later one of the same
	// node is another session's.
	registered uint64

	running  sync.WaitGroup // of sender and carrier
	mu       sync.Mutex     // guards below
	ctx      context.Context
	sender   errand
	carrier  errand
	full     bool // the whole set is due
	dirty    []gpuai.Token
	acks     []frames.AckDue
	answers  []gpuai.Reported
	judged   []gpuai.Published
	secrets  []gpuai.SecretDelivery
	requests []gpuai.LogRequest
	execs    []gpuai.ExecRequest
	jobs     []agentCommand
	logs     logWaiters
	told     []gpuai.Device // what the agent last said it has
	refuses  *gpuai.Refusal // and why it takes no new task
	doubt    bool           // whether the region holds that is to be looked at
	end      error          // why the session is over
	refusal  *gpuai.SessionError

	// Of the sender only.
	teller   *frames.Teller
	greeted  bool
	cancel   context.CancelFunc
	received chan struct{} // closed when nothing is received any more
	over     chan error    // takes why the session is over
}

// An errand is what a session has a goroutine for while there is something to
// do. It is guarded by session.mu.
type errand struct {
	due     bool
	running bool // and it stays so once the session is over
}

// rouse has an errand done: what is due then is seen to. The caller holds mu.
// Until the session is served it only notes it.
func (se *session) rouse(e *errand, do func(ctx context.Context)) {
	e.due = true
	if se.ctx == nil || e.running {
		return
	}
	e.running = true
	ctx := se.ctx
	se.running.Go(func() { do(ctx) })
}

// more reports whether an errand is due again; if not, its goroutine must end.
func (se *session) more(e *errand) bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	if !e.due {
		e.running = false
		return false
	}
	e.due = false
	return true
}

// sends has the sender look for what is due. The caller holds mu.
func (se *session) sends() { se.rouse(&se.sender, se.send) }

// carries has the carrier look for commands. The caller holds mu.
func (se *session) carries() {
	if se.end == nil {
		se.rouse(&se.carrier, se.carryAll)
	}
}

// Offer implements hub.Sink.
func (se *session) Offer(e *gpuai.Event) {
	switch e.Kind {
	case gpuai.LeaseGrantedEvent, gpuai.LeaseReady, gpuai.LeasePeers, gpuai.LeaseRevokingEvent, gpuai.LeaseEndedEvent, gpuai.LeaseAdopted:
		se.mark(e.Lease)
	case gpuai.NodeRegistered:
		if e.Index > se.registered {
			se.replaced(e.Incarnation)
			return
		}
		se.mu.Lock()
		se.carries() // this replica has the registration
		se.mu.Unlock()
	case gpuai.NodeChanged:
		se.doubtDevices()
	default:
	}
}

// Reset implements hub.Sink.
func (se *session) Reset() {
	se.mu.Lock()
	se.full, se.dirty = true, nil
	se.sends()
	se.mu.Unlock()
	se.doubtDevices()
}

func (se *session) mark(t gpuai.Token) {
	se.mu.Lock()
	if se.dirty = append(se.dirty, t); len(se.dirty) > maxDirty {
		se.full, se.dirty = true, nil
	}
	se.sends()
	se.mu.Unlock()
}

// replaced ends the session because the node registered again. An older
// incarnation is told of the newer one: it must fence.
func (se *session) replaced(by gpuai.Incarnation) {
	var refusal *gpuai.SessionError
	if by != se.ref.Incarnation {
		refusal = &gpuai.SessionError{
			Code: gpuai.Conflict, Incarnation: by,
			Detail: "a newer agent holds this node's identity: fence, and give one of the two hosts another node name",
		}
	}
	se.stop(errReplaced, refusal)
}

// stop ends the session, once; the sender sends the refusal first, if any.
func (se *session) stop(why error, refusal *gpuai.SessionError) {
	se.mu.Lock()
	if se.end == nil {
		se.end, se.refusal = why, refusal
	}
	se.sends()
	se.mu.Unlock()
}

// ack has a confirmed beat answered.
func (se *session) ack(seq uint64, sent int64) {
	se.mu.Lock()
	if len(se.acks) == maxAcks {
		se.acks = se.acks[1:] // a newer one says more
	}
	se.acks = append(se.acks, frames.AckDue{Seq: seq, Sent: sent})
	se.sends()
	se.mu.Unlock()
}

// receive handles the agent's frames until the session ends.
func (se *session) receive(ctx context.Context) error {
	var seq uint64
	idle := time.AfterFunc(idleTimeout, func() {
		se.stop(errIdle, nil)
		se.cancel()
	})
	defer idle.Stop()
	for {
		f, err := se.conn.Recv(ctx)
		if err != nil {
			return err
		}
		idle.Reset(idleTimeout)
		switch {
		case f.Kind == gpuai.FrameBeat && f.Beat != nil && f.Beat.Seq > seq:
			seq = f.Beat.Seq
			se.beat(*f.Beat)
		case f.Kind == gpuai.FrameReport && f.Report != nil:
			err = se.report(*f.Report)
		case f.Kind == gpuai.FramePublish && f.Publish != nil:
			err = se.publish(*f.Publish)
		case f.Kind == gpuai.FrameSecretAsk && f.SecretAsk != nil:
			err = se.askSecrets(*f.SecretAsk)
		case f.Kind == gpuai.FrameDevices:
			err = se.tell(f.Devices, f.Refuses)
		case f.Kind == gpuai.FrameLog && f.Log != nil:
			se.deliver(f.Log)
		default:
			err = gpuai.NewError(gpuai.InvalidSpec, "an agent sent a frame that does not fit the session: "+f.Kind.String())
			se.stop(err, &gpuai.SessionError{Code: gpuai.InvalidSpec, Detail: err.Error()})
		}
		if err != nil {
			return err
		}
	}
}

func recvWithin(ctx context.Context, c agentConn, d time.Duration) (gpuai.Frame, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return c.Recv(ctx)
}

func (se *session) beat(b gpuai.Beat) {
	se.s.collector.add(heldBeat{
		beat:  beat{NodeRef: se.ref, Seq: b.Seq},
		since: time.Now(),
		done:  func(uint64) { se.ack(b.Seq, b.Sent) },
	})
}

func (se *session) envelope() fsm.Envelope { return fsm.Envelope{Actor: agentActor(se.ref.Node)} }

func agentActor(n gpuai.NodeID) string { return "node/" + string(n) }

// report has the leader judge a report.
func (se *session) report(r gpuai.Report) error {
	if len(r.Reason) > gpuai.MaxReasonLen {
		r.Reason = r.Reason[:gpuai.MaxReasonLen]
	}
	if r.State == 0 || int(r.State) >= gpuai.NumReportStates || len(r.Unclean) > gpuai.MaxGPUs {
		return se.answer(gpuai.Reported{Lease: r.Lease, Seq: r.Seq, Code: gpuai.InvalidSpec})
	}
	if r.EndCode != gpuai.EndOther && se.s.level() < fsm.LevelPlacement {
		r.EndCode = gpuai.EndOther // replicas of the level do not read it; the reason says as much
	}
	c := fsm.ReportLease{Node: se.ref.Node, Report: r}
	return se.carry(agentCommand{
		cmd:    c.Append(nil, se.envelope()),
		report: &gpuai.Reported{Lease: r.Lease, Seq: r.Seq},
		image:  r.State == gpuai.ReportResolved,
	})
}

// imageOf returns the digest that a lease's task runs, as the state has it after
// an index; "" when nothing is known of the lease any more.
func (se *session) imageOf(ctx context.Context, lease gpuai.Token, index uint64) (digest string) {
	if se.s.node.WaitApplied(ctx, index) != nil {
		return "" // the session is over
	}
	se.s.node.View(func(m *fsm.Machine) {
		a, _ := m.Assignment(lease)
		digest = a.Image
	})
	return digest
}

// answer queues an answer to a report.
func (se *session) answer(r gpuai.Reported) error {
	se.mu.Lock()
	defer se.mu.Unlock()
	if len(se.answers) >= maxWork {
		return errors.New("the agent does not read the answers to its reports")
	}
	se.answers = append(se.answers, r)
	se.sends()
	return nil
}

// publish has the leader judge a checkpoint.
func (se *session) publish(p gpuai.Publish) error {
	answer := gpuai.Published{Lease: p.Lease, After: p.After, Digest: p.Digest}
	if !p.Valid() {
		answer.Code, answer.Detail = gpuai.InvalidSpec, "the checkpoint is out of bounds"
		return se.tellPublished(answer)
	}
	c := fsm.PublishCheckpoint{Node: se.ref.Node, Publish: p}
	return se.carry(agentCommand{cmd: c.Append(nil, se.envelope()), publish: &answer})
}

// keptOf returns the checkpoints of a lease's task as of an index.
func (se *session) keptOf(ctx context.Context, lease gpuai.Token, index uint64) (kept []gpuai.PublishedCheckpoint) {
	if se.s.node.WaitApplied(ctx, index) != nil {
		return nil // the session is over
	}
	se.s.node.View(func(m *fsm.Machine) { kept = m.CheckpointsOf(lease) })
	return kept
}

// tellPublished queues an answer to a publish.
func (se *session) tellPublished(p gpuai.Published) error {
	if p.Code != gpuai.OK {
		se.s.log.Warn("a checkpoint was refused", "node", se.ref.Node, "lease", p.Lease, "code", p.Code, "detail", p.Detail)
	}
	se.mu.Lock()
	defer se.mu.Unlock()
	if len(se.judged) >= maxWork {
		return errors.New("the agent does not read the answers about its checkpoints")
	}
	se.judged = append(se.judged, p)
	se.sends()
	return nil
}

// An agentCommand is a command on an agent's behalf. All of them are safe to
// repeat: the machine knows a report by (lease, seq).
type agentCommand struct {
	cmd    []byte
	report *gpuai.Reported // to be answered; nil: nobody waits
	image  bool            // its answer says which image the lease's task runs
	// publish is the same for a checkpoint.
	publish *gpuai.Published
	// secrets is the lease that its answer has the secrets of; 0: of none.
	secrets gpuai.Token
}

// carry queues a command.
func (se *session) carry(c agentCommand) error {
	se.mu.Lock()
	defer se.mu.Unlock()
	if len(se.jobs) >= maxWork {
		return errors.New("the agent sends more than the leader takes")
	}
	se.jobs = append(se.jobs, c)
	se.carries()
	return nil
}

const (
	carryBatch    = 256
	carryRetryMin = 50 * time.Millisecond
	carryRetryMax = time.Second
)

// carryAll brings the session's commands to the leader in order, and those that
// were not judged again, until there are none or ctx ends.
func (se *session) carryAll(ctx context.Context) {
	for se.more(&se.carrier) {
		if err := se.carryQueued(ctx); err != nil {
			se.stop(err, nil)
			return
		}
	}
}

// carryQueued returns when nothing waits.
func (se *session) carryQueued(ctx context.Context) error {
	var batch []agentCommand
	retry := carryRetryMin
	for {
		if batch = se.moreWork(batch); len(batch) == 0 {
			c, due := se.correction()
			if !due {
				return nil
			}
			batch = append(batch, c)
		}
		left, err := se.carryOut(ctx, batch)
		if err != nil {
			return err
		}
		if batch = left; len(left) == 0 {
			retry = carryRetryMin
			continue
		}
		select {
		case <-time.After(retry):
			retry = min(2*retry, carryRetryMax)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// moreWork fills batch up from the queue.
func (se *session) moreWork(batch []agentCommand) []agentCommand {
	se.mu.Lock()
	defer se.mu.Unlock()
	n := min(len(se.jobs), carryBatch-len(batch))
	batch = append(batch, se.jobs[:n]...)
	se.jobs = se.jobs[n:]
	return batch
}

// carryOut proposes a batch, answers what was judged, and returns the rest.
func (se *session) carryOut(ctx context.Context, batch []agentCommand) (left []agentCommand, err error) {
	cmds := make([][]byte, len(batch))
	for i := range batch {
		cmds[i] = batch[i].cmd
	}
	out, err := se.s.propose(ctx, cmds...)
	if err != nil {
		return batch, ctx.Err()
	}
	for i, c := range batch {
		switch {
		case !out[i].settled():
			left = append(left, c)
		case c.report != nil:
			r := *c.report
			if r.Code = out[i].Code; c.image && r.Code == gpuai.OK {
				r.Image = se.imageOf(ctx, r.Lease, out[i].Index)
			}
			if err := se.answer(r); err != nil {
				return nil, err
			}
		case c.publish != nil:
			p := *c.publish
			if p.Code, p.Detail = out[i].Code, out[i].Detail; p.Code == gpuai.PreconditionFailed {
				p.Kept = se.keptOf(ctx, p.Lease, out[i].Index)
			}
			if err := se.tellPublished(p); err != nil {
				return nil, err
			}
		case c.secrets != 0:
			if err := se.giveSecrets(ctx, c.secrets, &out[i]); errors.Is(err, errChanged) {
				left = append(left, c)
			} else if err != nil {
				return nil, err
			}
		case out[i].Code != gpuai.OK:
			se.s.log.Warn("an agent's devices were refused", "node", se.ref.Node, "code", out[i].Code, "detail", out[i].Detail)
		}
	}
	return left, nil
}
