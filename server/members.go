package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/raft"
)

const (
	// positionTimeout bounds the question how far a member is, × multiplier.
	positionTimeout = 2 * time.Second
	// handOverTimeout bounds the wait for a new leader when one removes itself.
	handOverTimeout = 10 * time.Second
	memberRetry     = 50 * time.Millisecond
)

// Kinds of change that servers ask each other for.
const (
	opAdd     = "add"
	opPromote = "promote"
	opRemove  = "remove"
)

// A memberChange is what a server asks the leader to do to the members.
type memberChange struct {
	Op      string         `json:"op"`
	Server  gpuai.ServerID `json:"server"`
	Address string         `json:"address,omitzero"` // of add
	// Passed says that a server passed it on: it is not passed on again.
	Passed bool `json:"passed,omitzero"`
}

// A position is how far a server is.
type position struct {
	Applied     uint64 `json:"applied"`
	Quarantined string `json:"quarantined,omitzero"`
}

// Members implements httpd.Members.
func (s *Server) Members(ctx context.Context) gpuai.MemberList {
	leader, _ := s.node.Leader()
	all := s.node.Members()
	answers := make([]*position, len(all))
	done := make(chan struct{})
	for i := range all {
		go func() {
			answers[i] = s.positionOf(ctx, all[i].ID, 0)
			done <- struct{}{}
		}()
	}
	for range all {
		<-done
	}
	out := gpuai.MemberList{Cluster: s.cluster(), Members: []gpuai.MemberStatus{}, Removed: []gpuai.ServerID{}}
	for i, m := range all {
		st := gpuai.MemberStatus{Server: m.ID, Address: m.Addr, Voter: m.Voter, Leader: m.ID == leader}
		if p := answers[i]; p != nil {
			st.Reachable, st.AppliedIndex, st.Quarantined = true, p.Applied, p.Quarantined
		}
		out.Members = append(out.Members, st)
	}
	var known []fsm.ServerRecord
	s.node.View(func(m *fsm.Machine) { known = m.Servers() })
	for _, k := range known {
		if _, member := s.node.Member(k.ID); k.Retired && !member {
			out.Removed = append(out.Removed, k.ID)
		}
	}
	out.Index = s.node.AppliedIndex()
	return out
}

// positionOf asks a member how far it is; where it has not applied index yet it
// waits a while. nil means that it does not answer.
func (s *Server) positionOf(ctx context.Context, id gpuai.ServerID, index uint64) *position {
	ctx, cancel := context.WithTimeout(ctx, s.scaled(positionTimeout))
	defer cancel()
	if id == s.cfg.ID {
		return &position{Applied: s.node.AppliedIndex(), Quarantined: s.quarantine.why()}
	}
	body, err := json.Marshal(index)
	if err != nil {
		return nil
	}
	answer, err := s.askPeer(ctx, id, pathPosition, body)
	var p position
	if err != nil || json.Unmarshal(answer, &p) != nil {
		return nil
	}
	return &p
}

// positionPeer answers positionOf.
func (s *Server) positionPeer(ctx context.Context, body []byte) ([]byte, error) {
	var index uint64
	if err := json.Unmarshal(body, &index); err != nil {
		return nil, errWire
	}
	if index > 0 {
		ctx, cancel := context.WithTimeout(ctx, s.scaled(positionTimeout)*3/4)
		defer cancel()
		_ = s.node.WaitApplied(ctx, index) // how far it is says the answer
	}
	return json.Marshal(position{Applied: s.node.AppliedIndex(), Quarantined: s.quarantine.why()})
}

// scaled returns a timeout by the multiplier of Raft's.
func (s *Server) scaled(d time.Duration) time.Duration {
	return d * time.Duration(max(s.cfg.Multiplier, 1))
}

// AddMember implements httpd.Members.
func (s *Server) AddMember(ctx context.Context, id gpuai.ServerID, addr string) error {
	return s.node.AddMember(ctx, id, addr)
}

// PromoteMember implements httpd.Members. One that is not caught up is refused:
// a majority that needs it would wait for it.
func (s *Server) PromoteMember(ctx context.Context, id gpuai.ServerID) error {
	m, ok := s.node.Member(id)
	if ok && !m.Voter && s.node.IsLeader() {
		index := s.node.AppliedIndex()
		switch p := s.positionOf(ctx, id, index); {
		case p == nil:
			return gpuai.NewError(gpuai.Conflict, fmt.Sprintf("server %s at %s does not answer: start it, and promote it once it is caught up", id, m.Addr))
		case p.Quarantined != "":
			return gpuai.NewError(gpuai.Conflict, fmt.Sprintf("server %s is quarantined: %s", id, p.Quarantined))
		case p.Applied < index:
			return gpuai.NewError(gpuai.Conflict, fmt.Sprintf("server %s is not caught up: it has applied index %d of %d; promote it later", id, p.Applied, index))
		}
	}
	return s.node.PromoteMember(ctx, id)
}

// RemoveMember implements httpd.Members. A leader that is to be removed hands
// over first, and asks the new one.
func (s *Server) RemoveMember(ctx context.Context, id gpuai.ServerID) error {
	err := s.node.RemoveMember(ctx, id)
	if !errors.Is(err, raft.ErrHandedOver) {
		return err
	}
	s.log.Info("handed leadership over before this server's own removal")
	ctx, cancel := context.WithTimeout(ctx, s.scaled(handOverTimeout))
	defer cancel()
	for {
		if leader, ok := s.node.Leader(); ok && leader != s.cfg.ID {
			_, err = s.passChange(ctx, memberChange{Op: opRemove, Server: id})
			if !isCode(err, gpuai.NoLeader) {
				return err
			}
		}
		select {
		case <-time.After(memberRetry):
		case <-ctx.Done():
			return &gpuai.Error{Code: gpuai.NoLeader, Detail: "no new leader has taken over yet: retry", RetryAfter: gpuai.Second}
		}
	}
}

// passChange asks the leader for a change.
func (s *Server) passChange(ctx context.Context, c memberChange) ([]byte, error) {
	c.Passed = true
	body, err := json.Marshal(&c)
	if err != nil {
		return nil, err
	}
	return s.askLeader(ctx, pathMember, body)
}

// memberPeer changes the members for another server, or for a command of the
// operator's that knows Raft ports only.
func (s *Server) memberPeer(ctx context.Context, body []byte) ([]byte, error) {
	var c memberChange
	if err := json.Unmarshal(body, &c, json.RejectUnknownMembers(true)); err != nil {
		return nil, errWire
	}
	if !s.node.IsLeader() && !c.Passed {
		return s.passChange(ctx, c)
	}
	switch c.Op {
	case opAdd:
		return nil, s.AddMember(ctx, c.Server, c.Address)
	case opPromote:
		return nil, s.PromoteMember(ctx, c.Server)
	case opRemove:
		return nil, s.RemoveMember(ctx, c.Server)
	}
	return nil, errWire
}

// membersPeer lists the members for a command of the operator's.
func (s *Server) membersPeer(ctx context.Context, body []byte) ([]byte, error) {
	if !s.node.IsLeader() && len(body) == 0 {
		return s.askLeader(ctx, pathMembers, []byte("passed"))
	}
	if _, err := s.node.Barrier(ctx); err != nil {
		return nil, err
	}
	return json.Marshal(s.Members(ctx))
}
