package httpd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// An Execer finds the agents that run commands beside tasks.
type Execer interface {
	// ExecTarget returns the live lease whose task is asked for, and the server
	// that has its agent's session. Forbidden says by whom exec is denied.
	ExecTarget(ctx context.Context, q LogQuery) (gpuai.Lease, gpuai.ServerID, error)
	// StartExec sends a request to a node's agent, whose session is this server's.
	StartExec(node gpuai.NodeID, r gpuai.ExecRequest) error
}

// execWait bounds the waits for a command, and for the agent to come for it.
const execWait = 10 * time.Second

// meetings are the commands whose agents have not come yet.
type meetings struct {
	mu   sync.Mutex // guards below
	byID map[string]meeting
}

// A meeting is where the connection of a node's agent goes.
type meeting struct {
	agent chan *websocket.Conn
	node  gpuai.NodeID
}

func (m *meetings) open(node gpuai.NodeID) (id string, agent chan *websocket.Conn) {
	id, agent = rand.Text(), make(chan *websocket.Conn, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byID == nil {
		m.byID = map[string]meeting{}
	}
	m.byID[id] = meeting{agent, node}
	return id, agent
}

// take returns where the agent's connection goes, once; nil for an ID that is
// not waited for, or of another node; "" is any.
func (m *meetings) take(id string, node gpuai.NodeID) chan *websocket.Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.byID[id]
	if node != "" && at.node != node {
		return nil
	}
	delete(m.byID, id)
	return at.agent
}

// exec answers GET /v1/jobs/{job}/exec: a WebSocket to a command beside a task.
func (c *call) exec() error {
	if !c.offers(gpuai.ExecProtocol) {
		return gpuai.NewError(gpuai.InvalidSpec, "this path is for commands: a WebSocket with the subprotocol "+gpuai.ExecProtocol)
	}
	q, err := c.logQuery()
	if err != nil {
		return err
	}
	lease, holder, err := c.api.backend.ExecTarget(c.r.Context(), q)
	if err != nil {
		return err
	}
	if holder != c.api.backend.Status().Server {
		c.api.log.Info("exec is passed on", "audit", "exec", "who", c.actor(), "job", lease.Job, "task", lease.Task, "lease", lease.ID,
			"node", lease.Node, "server", holder, "request_id", c.id)
		return c.passOn(holder)
	}
	conn, err := c.accept()
	if err != nil {
		return err
	}
	ctx, done := c.still()
	defer done()
	defer context.AfterFunc(ctx, func() { _ = conn.CloseNow() })()
	if err := c.runExec(conn, &lease); err != nil {
		e := gpuai.NewError(gpuai.Internal, err.Error())
		errors.As(err, &e)
		b, _ := json.Marshal(&gpuai.ExecControl{Exit: &gpuai.ExecExit{Error: e.Detail}}) // it always can
		ctx, cancel := context.WithTimeout(context.Background(), execWait)
		defer cancel()
		_ = conn.Write(ctx, websocket.MessageText, b) // the peer may be gone
	}
	_ = conn.Close(websocket.StatusNormalClosure, "") // likewise
	return nil
}

// passOn has another server answer, without a bound on how long that takes.
func (c *call) passOn(id gpuai.ServerID) error {
	transport, err := c.api.backend.ForwardTo(c.r.Context(), id)
	if err != nil {
		return err
	}
	return c.forward(transport)
}

// accept makes the request a WebSocket.
func (c *call) accept() (*websocket.Conn, error) {
	conn, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{
		Subprotocols: []string{gpuai.ExecProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		c.status = http.StatusBadRequest // Accept has answered
		return nil, fmt.Errorf("accept a command's connection: %w", err)
	}
	c.status = http.StatusSwitchingProtocols
	conn.SetReadLimit(gpuai.MaxExecMessage)
	return conn, nil
}

// runExec brings a client and an agent together, and passes their messages on
// until one of them has gone.
func (c *call) runExec(client *websocket.Conn, lease *gpuai.Lease) error {
	ctx, cancel := context.WithTimeout(context.Background(), execWait)
	defer cancel()
	start, err := readStart(ctx, client)
	if err != nil {
		return err
	}
	c.api.log.Info("exec", "audit", "exec", "who", c.actor(), "job", lease.Job, "task", lease.Task, "lease", lease.ID,
		"node", lease.Node, "program", start.Command[0], "tty", start.TTY, "request_id", c.id)
	err = c.api.backend.RecordExec(ctx, gpuai.AuditNote{
		Actor: c.actor(), Tenant: lease.Tenant, Job: lease.Job, Subject: string(lease.Node), Request: "exec", Count: 1,
	})
	if err != nil {
		return err
	}
	id, came := c.api.meetings.open(lease.Node)
	defer c.api.meetings.take(id, "")
	r := gpuai.ExecRequest{ID: id, Server: c.api.backend.Status().Server, Lease: lease.ID, Start: *start}
	if err := c.api.backend.StartExec(lease.Node, r); err != nil {
		return err
	}
	select {
	case agent := <-came:
		splice(client, agent)
		return nil
	case <-ctx.Done():
	}
	if c.api.meetings.take(id, "") == nil { // it comes this moment
		select {
		case agent := <-came:
			splice(client, agent)
			return nil
		case <-time.After(execWait):
		}
	}
	return fmt.Errorf("the agent of node %s did not come for the command within %v: its log says why", lease.Node, execWait)
}

// readStart reads a client's first message.
func readStart(ctx context.Context, client *websocket.Conn) (*gpuai.ExecStart, error) {
	kind, b, err := client.Read(ctx)
	if err != nil {
		return nil, err
	}
	var control gpuai.ExecControl
	if kind != websocket.MessageText || json.Unmarshal(b, &control, strict) != nil || control.Start == nil {
		return nil, gpuai.NewError(gpuai.InvalidSpec, "the first message of a client says what to run")
	}
	if why := control.Start.Validate(); why != "" {
		return nil, gpuai.NewError(gpuai.InvalidSpec, why)
	}
	return control.Start, nil
}

// splice passes messages on between two connections, one at a time in each
// direction, until one ends, and ends both.
func splice(client, agent *websocket.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		pass(client, agent)
		_ = agent.Close(websocket.StatusNormalClosure, "the client is gone") // it may be gone itself
	})
	both.Go(func() {
		pass(agent, client)
		_ = client.Close(websocket.StatusNormalClosure, "") // likewise
	})
	both.Wait()
}

func pass(from, to *websocket.Conn) {
	for {
		kind, b, err := from.Read(context.Background())
		if err != nil || to.Write(context.Background(), kind, b) != nil {
			return
		}
	}
}

// answerExec answers GET /v1/agent/exec, by which an agent comes for a command.
func (c *call) answerExec() error {
	if !c.offers(gpuai.ExecProtocol) {
		return gpuai.NewError(gpuai.InvalidSpec, "this path is for agents: a WebSocket with the subprotocol "+gpuai.ExecProtocol)
	}
	if at := gpuai.ServerID(c.query.Get("at")); at != "" && at != c.api.backend.Status().Server {
		return c.passOn(at)
	}
	client := c.api.meetings.take(c.query.Get("id"), c.who.Node)
	if client == nil {
		return gpuai.NewError(gpuai.NotFound, "no such command waits for an agent here")
	}
	conn, err := c.accept()
	if err != nil {
		return err
	}
	client <- conn
	return nil
}
