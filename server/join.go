package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/raft"
)

const (
	// announceEvery is how often a server that is not yet where it should be
	// asks for it, and one that is looks whether it still is.
	announceEvery = 500 * time.Millisecond
	// announceTimeout bounds one such question, × multiplier.
	announceTimeout = 15 * time.Second
	// sayAgain is how often the same obstacle is logged.
	sayAgain = 30 * time.Second
)

// A joinBody is a join on its way between servers.
type joinBody struct {
	raft.JoinRequest
	// Passed says that a server passed it on: it is not passed on again.
	Passed bool `json:"passed,omitzero"`
}

// A joinAnswer tells a new member where it is now.
type joinAnswer struct {
	Cluster gpuai.ClusterID `json:"cluster"`
	Leader  gpuai.ServerID  `json:"leader"`
}

// joinPeer admits a server, or notes its new address. A server that does not
// lead asks the leader.
func (s *Server) joinPeer(ctx context.Context, body []byte) ([]byte, error) {
	var j joinBody
	if err := json.Unmarshal(body, &j, json.RejectUnknownMembers(true)); err != nil {
		return nil, errWire
	}
	if j.Holds && j.Cluster == s.cluster() {
		s.node.Hint(j.Server, j.Address) // there may be no leader until members are found again
	}
	if !s.node.IsLeader() {
		if j.Passed {
			return nil, errNotLeading
		}
		j.Passed = true
		passed, err := json.Marshal(&j)
		if err != nil {
			return nil, err
		}
		return s.askLeader(ctx, pathJoin, passed)
	}
	if err := s.node.Admit(ctx, j.JoinRequest); err != nil {
		return nil, err
	}
	return json.Marshal(joinAnswer{Cluster: s.cluster(), Leader: s.cfg.ID})
}

// An announcer makes this server a member, keeps its recorded address right,
// and has it promoted once it is caught up.
type announcer struct {
	s    *Server
	http *http.Transport // to Raft ports by their address

	mu  sync.Mutex // guards below
	why string     // it is no member yet; "" when it is

	said string // the obstacle that was logged last …
	when time.Time
}

func newAnnouncer(s *Server) *announcer {
	return &announcer{s: s, http: &http.Transport{
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return s.node.DialJoin(ctx, addr) },
		DisableKeepAlives: true, DisableCompression: true,
	}}
}

// obstacle says why this server is no member yet.
func (a *announcer) obstacle() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.why
}

// run works until ctx ends. It ends the server when it can never be a member.
func (a *announcer) run(ctx context.Context) {
	for {
		err := a.step(ctx)
		if ctx.Err() != nil {
			return
		}
		if a.final(err) {
			a.s.fail(fmt.Errorf("this server cannot be a member: %v", err)) // no answer of an API any more
			return
		}
		a.say(err)
		select {
		case <-time.After(announceEvery):
		case <-ctx.Done():
			return
		}
	}
}

// final reports whether asking again is of no use. To one that was a member
// before, only a refusal for good is final.
func (a *announcer) final(err error) bool {
	return isCode(err, gpuai.Forbidden) ||
		a.s.cluster() == "" && (isCode(err, gpuai.Conflict) || isCode(err, gpuai.InvalidSpec) || isCode(err, gpuai.TooLarge))
}

func (a *announcer) say(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.mu.Lock()
	a.why = text
	a.mu.Unlock()
	if text != a.said && text != "" || text != "" && time.Since(a.when) > sayAgain {
		a.s.log.Warn("this server is not yet the member that it should be; trying again", "error", err)
		a.when = time.Now()
	}
	a.said = text
}

// step does what is missing: to be a member at the right address, then to vote.
func (a *announcer) step(ctx context.Context) error {
	s := a.s
	all := s.node.Members()
	me, member := s.node.Member(s.cfg.ID)
	switch {
	case len(s.cfg.Join) == 0 && s.cluster() == "":
		return nil // its cluster is being formed
	case member && raft.CheckAddr(s.node.Advertise()) != nil:
		return nil // it listens on all addresses and was not told which is its own
	case !member || me.Addr != s.node.Advertise():
		return a.announce(ctx, all)
	case me.Voter:
		return s.discardAside()
	case s.cfg.NonVoter:
		return nil
	}
	return a.promote(ctx)
}

// announce asks each server that may be a member: all of them learn the address,
// the leader records it.
func (a *announcer) announce(ctx context.Context, all []raft.Member) error {
	s := a.s
	if s.node.IsLeader() {
		return s.node.SetMemberAddr(ctx, s.cfg.ID, s.node.Advertise())
	}
	body, err := json.Marshal(&joinBody{JoinRequest: s.node.JoinRequest()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.scaled(announceTimeout))
	defer cancel()
	var worst error
	for _, m := range all {
		if m.ID == s.cfg.ID || s.cluster() == "" {
			continue
		}
		answer, err := s.askPeer(ctx, m.ID, pathJoin, body)
		if err = a.took(answer, err); err == nil || isCode(err, gpuai.Forbidden) {
			return err
		}
		worst = errors.Join(worst, err)
	}
	for _, addr := range s.cfg.Join {
		answer, err := post(ctx, a.http, addr, "the server at "+addr, pathJoin, body)
		if err = a.took(answer, err); err == nil || a.final(err) {
			return err
		}
		worst = errors.Join(worst, err)
	}
	return worst
}

// took reads the answer to a join.
func (a *announcer) took(answer []byte, err error) error {
	if err != nil {
		return err
	}
	var j joinAnswer
	if err := json.Unmarshal(answer, &j); err != nil || j.Cluster == "" {
		return errWire
	}
	return a.s.node.Adopt(j.Cluster)
}

// promote asks for this server's vote once it serves, which means that it has
// caught up.
func (a *announcer) promote(ctx context.Context) error {
	s := a.s
	if ready, _ := s.readiness.get(); !ready {
		return nil
	}
	// From its vote on, an empty directory of this server is a loss.
	if err := s.node.Record(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.scaled(announceTimeout))
	defer cancel()
	if _, err := s.passChange(ctx, memberChange{Op: opPromote, Server: s.cfg.ID}); err != nil {
		return fmt.Errorf("it is not promoted yet: %w", err)
	}
	s.log.Info("caught up and promoted: this server votes now")
	return nil
}
