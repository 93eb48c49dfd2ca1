package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

const (
	// maxKnown bounds the tokens that are remembered as good.
	maxKnown = 8_192
	// settleWait bounds how long a token that this server does not know is looked
	// for at the leader.
	settleWait = time.Second
	// usesEvery is how often the tokens that were used are told to the leader, and
	// by that to the machine.
	usesEvery = time.Minute
	// maxUses bounds the tokens of which a use is noted between two tellings.
	maxUses = 4_096
)

// A keeper judges access tokens by the replicated state. What it has judged is
// remembered until a command changes what a token is.
type keeper struct {
	s *Server
	// changes counts the commands that change tokens, and restores: what was
	// judged before does not hold behind one.
	changes atomic.Uint64
	applied atomic.Int64 // when the last entry was applied, ns since s.start

	mu    sync.RWMutex // guards below
	known map[gpuai.AccessTokenID]*judged
	uses  map[gpuai.AccessTokenID]struct{}

	settling sync.Mutex // held by who asks the leader
	settled  time.Time  // when the last question began that was answered
}

// A judged token is one that was good.
type judged struct {
	principal gpuai.Principal
	hash      [32]byte
	expires   gpuai.Instant
	changes   uint64
	used      atomic.Bool // it is in uses
}

var _ httpd.Authenticator = (*keeper)(nil)

func newKeeper(s *Server) *keeper {
	return &keeper{s: s, known: map[gpuai.AccessTokenID]*judged{}, uses: map[gpuai.AccessTokenID]struct{}{}}
}

// errBadToken is the one answer to every token that is not good: what is wrong
// with it is said only to who has shown that he holds it.
func errBadToken() error {
	return gpuai.NewError(gpuai.Unauthenticated, "the token is not known here: log in with gpuai login, or ask for another one")
}

// errTokenOver tells the holder of a token that was good why it is not.
func errTokenOver(h *fsm.HeldToken, now gpuai.Instant) error {
	if h.Revoked {
		return gpuai.NewError(gpuai.Unauthenticated, "the token "+h.ID.String()+" was revoked: log in with gpuai login, or ask for another one")
	}
	ago := gpuai.Duration(now - h.Expires)
	return gpuai.NewError(gpuai.Unauthenticated, "the token "+h.ID.String()+" expired "+(ago-ago%gpuai.Second).String()+" ago: log in with gpuai login, or ask for another one")
}

// Bearer implements httpd.Authenticator.
func (k *keeper) Bearer(ctx context.Context, text string) (*gpuai.Principal, error) {
	hash := sha256.Sum256([]byte(text))
	id, ok := gpuai.SplitAccessToken(text)
	if ok {
		if j := k.recall(id); j != nil && subtle.ConstantTimeCompare(j.hash[:], hash[:]) == 1 {
			k.use(id, j)
			return &j.principal, nil
		}
	}
	j, err := k.judge(id, &hash)
	if err != nil { // it may be newer than this server's state
		further, cannot := k.settle(ctx)
		if cannot != nil {
			return nil, cannot
		}
		if further {
			j, err = k.judge(id, &hash)
		}
	}
	if err != nil {
		return nil, err
	}
	k.use(id, j)
	return &j.principal, nil
}

// recall returns a token that was good and is still.
func (k *keeper) recall(id gpuai.AccessTokenID) *judged {
	k.mu.RLock()
	j := k.known[id]
	k.mu.RUnlock()
	if j == nil || j.changes != k.changes.Load() || k.now() >= j.expires {
		return nil
	}
	return j
}

// now is region time, also on a server that has applied nothing for a while: the
// leader's clock goes on meanwhile.
func (k *keeper) now() gpuai.Instant {
	now := k.s.node.RegionTime()
	if k.s.node.IsLeader() {
		return now
	}
	since := time.Since(k.s.start) - time.Duration(k.applied.Load())
	return now.Add(gpuai.Duration(since / time.Millisecond))
}

// judge looks a token up in the state, whatever its text is: one that is not known
// takes as long as one whose secret is wrong.
func (k *keeper) judge(id gpuai.AccessTokenID, hash *[32]byte) (*judged, error) {
	changes := k.changes.Load() // before the look: what comes later is another
	var h fsm.HeldToken
	found := false
	k.s.node.View(func(m *fsm.Machine) { h, found = m.AccessToken(id) })
	same := subtle.ConstantTimeCompare(h.Hash[:], hash[:]) == 1
	now := k.now()
	switch {
	case !found || !same:
		return nil, errBadToken()
	case h.Revoked || now >= h.Expires:
		return nil, errTokenOver(&h, now)
	}
	j := &judged{principal: principalOf(&h), hash: h.Hash, expires: h.Expires, changes: changes}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.known) >= maxKnown {
		clear(k.known) // those that are used are soon back
	}
	k.known[id] = j
	return j, nil
}

// principalOf returns who holds a token.
func principalOf(h *fsm.HeldToken) gpuai.Principal {
	p := gpuai.Principal{
		Actor: "token/" + h.ID.String(), Tenant: h.Tenant, Contributor: h.Contributor, Scopes: h.Allows, Token: h.ID,
	}
	if h.User != "" {
		p.Actor = gpuai.ActorUser + h.User
	}
	return p
}

// settle has this server come as far as the leader is, and reports whether that
// may have brought something. Those who wait meanwhile are served by one question,
// of which there are not more than some in a second: a flood of wrong tokens
// costs the leader nothing to speak of.
func (k *keeper) settle(ctx context.Context) (bool, error) {
	if k.s.node.IsLeader() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	came := time.Now()
	k.settling.Lock()
	defer k.settling.Unlock()
	if k.settled.After(came) { // asked after we came
		return true, nil
	}
	wait := time.NewTimer(settleEvery - time.Since(k.settled))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return false, errCannotTell
	}
	began := time.Now()
	answer, err := k.s.askLeader(ctx, pathIndex, nil)
	w := wireReader{b: answer}
	index := w.number()
	if err != nil || w.err != nil || k.s.node.WaitApplied(ctx, index) != nil {
		return false, errCannotTell
	}
	k.settled = began
	return true, nil
}

// settleEvery is how often the leader is asked for the sake of unknown tokens.
const settleEvery = 20 * time.Millisecond

// errCannotTell is returned for a token that may be newer than this server's state.
var errCannotTell = &gpuai.Error{
	Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
	Detail: "this server does not know the token, and cannot ask the leader whether it is new: retry, or ask another server",
}

// Again implements httpd.Authenticator. Who has no token is judged by the
// certificate, for as long as the connection lasts.
func (k *keeper) Again(ctx context.Context, p *gpuai.Principal) error {
	if p.Token.IsZero() || k.recall(p.Token) != nil {
		return nil
	}
	var h fsm.HeldToken
	look := func() (found bool) {
		k.s.node.View(func(m *fsm.Machine) { h, found = m.AccessToken(p.Token) })
		return found
	}
	if !look() { // a server that has just begun, to lead or at all, may not have it yet
		if k.s.ReadIndex(ctx) != nil {
			return errCannotTell
		}
		if !look() {
			return errBadToken()
		}
	}
	if now := k.now(); h.Revoked || now >= h.Expires {
		return errTokenOver(&h, now)
	}
	return nil
}

// use notes that a token was used.
func (k *keeper) use(id gpuai.AccessTokenID, j *judged) {
	if j.used.Swap(true) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.uses) < maxUses {
		k.uses[id] = struct{}{}
	}
}

// observe looks at what an entry did; it is part of raft's OnApply.
func (k *keeper) observe(out *fsm.Output) {
	k.applied.Store(int64(time.Since(k.s.start)))
	for i := range out.Results {
		if out.Results[i].Kind.ChangesAccess() {
			k.changes.Add(1)
			return
		}
	}
}

// takeUses returns the tokens that were used since the last call.
func (k *keeper) takeUses() []gpuai.AccessTokenID {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids := slices.SortedFunc(maps.Keys(k.uses), func(a, b gpuai.AccessTokenID) int { return slices.Compare(a[:], b[:]) })
	clear(k.uses)
	for _, id := range ids {
		if j := k.known[id]; j != nil {
			j.used.Store(false)
		}
	}
	return ids
}

// addUses notes the tokens that another server tells of.
func (k *keeper) addUses(ids []gpuai.AccessTokenID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range ids {
		if len(k.uses) < maxUses {
			k.uses[id] = struct{}{}
		}
	}
}

// run tells of the tokens that were used until ctx ends: a follower tells the
// leader, which proposes one small command a minute. What does not fit is left
// to the next.
func (k *keeper) run(ctx context.Context) {
	t := time.NewTicker(usesEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			k.tell(ctx)
		}
	}
}

func (k *keeper) tell(ctx context.Context) {
	ids := k.takeUses()
	if len(ids) == 0 {
		return
	}
	if k.s.node.IsLeader() {
		n := min(len(ids), fsm.MaxTouched)
		k.addUses(ids[n:])
		c := fsm.TouchTokens{IDs: ids[:n]}
		if _, err := k.s.node.Propose(ctx, c.Append(nil, fsm.Envelope{Actor: actorSelf})); err != nil {
			k.s.log.Debug("the uses of access tokens are not noted", "error", err)
		}
		return
	}
	body, err := json.Marshal(ids)
	if err == nil {
		_, err = k.s.askLeader(ctx, pathUses, body)
	}
	if err != nil {
		k.addUses(ids)
	}
}

// usesPeer takes the uses that another server tells of.
func (s *Server) usesPeer(_ context.Context, body []byte) ([]byte, error) {
	var ids []gpuai.AccessTokenID
	if err := json.Unmarshal(body, &ids); err != nil || len(ids) > maxUses {
		return nil, errWire
	}
	s.keeper.addUses(ids)
	return nil, nil
}
