package server

import (
	"context"
	"encoding/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// errExecDenied is returned for every command while the region's policy denies it.
var errExecDenied = gpuai.NewError(gpuai.Forbidden, "this region's operator has denied exec: its policy says exec=deny")

// maxExecQueue bounds the commands that wait to be sent to an agent.
const maxExecQueue = 64

// ExecTarget implements httpd.Execer.
func (s *Server) ExecTarget(ctx context.Context, q httpd.LogQuery) (l gpuai.Lease, at gpuai.ServerID, err error) {
	s.awaitLease(ctx, q.Lease)
	rule := gpuai.ExecAllow
	s.node.View(func(m *fsm.Machine) { rule = m.Policy().Exec })
	if rule == gpuai.ExecDeny {
		return l, "", errExecDenied
	}
	run, err := s.runOfQuery(&q)
	if err != nil {
		return l, "", err
	}
	if l, err = s.Lease(run.lease, q.Tenant); err != nil {
		return l, "", err
	}
	if l.State == gpuai.LeaseEnded { // whether it runs already its agent knows
		return l, "", gpuai.NewError(gpuai.Conflict, "the task does not run now: its lease has ended")
	}
	var node gpuai.Node
	s.node.View(func(m *fsm.Machine) { node, _ = m.Node(l.Node) })
	if node.Labels[gpuai.LabelExec] != gpuai.LabelYes {
		return l, "", gpuai.NewError(gpuai.Forbidden, "node "+string(l.Node)+" runs no commands beside tasks: its operator has denied it (--exec=deny), or its agent is of an older version")
	}
	at, err = s.holder(ctx, l.Node)
	return l, at, err
}

// StartExec implements httpd.Execer.
func (s *Server) StartExec(node gpuai.NodeID, r gpuai.ExecRequest) error {
	se := s.sessions.get(node)
	if se == nil {
		return errNoSession
	}
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.end != nil {
		return errNoSession
	}
	if len(se.execs) >= maxExecQueue {
		return &gpuai.Error{Code: gpuai.RateLimited, Detail: "too many commands wait for this node; retry", RetryAfter: gpuai.Second}
	}
	se.execs = append(se.execs, r)
	se.sends()
	return nil
}

// holder returns the server that has a node's session.
func (s *Server) holder(ctx context.Context, node gpuai.NodeID) (gpuai.ServerID, error) {
	if s.sessions.get(node) != nil {
		return s.cfg.ID, nil
	}
	body, err := json.Marshal(node)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	members := s.node.Members()
	found, asked := make(chan gpuai.ServerID, len(members)), 0
	for _, p := range members {
		if p.ID == s.cfg.ID {
			continue
		}
		asked++
		go func() { // ends with ctx at the latest
			b, err := s.askPeer(ctx, p.ID, pathHolds, body)
			if err != nil || string(b) != "true" {
				found <- ""
				return
			}
			found <- p.ID
		}()
	}
	for range asked {
		if id := <-found; id != "" {
			return id, nil
		}
	}
	return "", errNoSession
}

// holdsPeer tells another server whether a node's session is here.
func (s *Server) holdsPeer(_ context.Context, body []byte) ([]byte, error) {
	var node gpuai.NodeID
	if err := json.Unmarshal(body, &node); err != nil {
		return nil, errWire
	}
	return json.Marshal(s.sessions.get(node) != nil)
}
