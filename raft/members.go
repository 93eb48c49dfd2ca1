package raft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// MaxMembers bounds a region's servers, non-voters included.
	MaxMembers = 15
	// reachTimeout bounds the question whether a member is alive, × multiplier.
	reachTimeout = time.Second
)

// A Member is a server of the group as the Raft configuration names it.
type Member struct {
	ID    gpuai.ServerID
	Addr  string // of its Raft port
	Voter bool
}

// ErrHandedOver is returned by RemoveMember when it was this leader's own
// removal: leadership was handed over, and the new leader is to be asked.
var ErrHandedOver = errors.New("this server led and has handed its leadership over: ask the new leader")

func conflict(format string, args ...any) error {
	return gpuai.NewError(gpuai.Conflict, fmt.Sprintf(format, args...))
}

// configuration returns the newest Raft configuration in this server's log,
// committed or not; it is empty before there is one.
func (n *Node) configuration() hraft.Configuration {
	lib := n.lib.Load()
	if lib == nil {
		return hraft.Configuration{}
	}
	return lib.GetConfiguration().Configuration()
}

// Members returns the group as this server knows it: from the newest Raft
// configuration in its log, or Config.Peers before there is one.
func (n *Node) Members() []Member {
	conf := n.configuration()
	if len(conf.Servers) == 0 {
		var out []Member
		for _, p := range n.cfg.Peers {
			out = append(out, Member{ID: p.ID, Addr: p.Addr, Voter: true})
		}
		return out
	}
	return n.membersIn(conf)
}

func membersOf(conf hraft.Configuration) (out []Member) {
	for _, s := range conf.Servers {
		addr := strings.TrimPrefix(string(s.Address), string(s.ID)+"@")
		out = append(out, Member{ID: gpuai.ServerID(s.ID), Addr: addr, Voter: s.Suffrage == hraft.Voter})
	}
	return out
}

// newAddress is how a new server's address is written into a configuration,
// which must not hold one twice: that of a server that moved stays in it.
func newAddress(conf hraft.Configuration, id gpuai.ServerID, addr string) hraft.ServerAddress {
	if slices.ContainsFunc(conf.Servers, func(s hraft.Server) bool { return string(s.Address) == addr }) {
		return hraft.ServerAddress(string(id) + "@" + addr)
	}
	return hraft.ServerAddress(addr)
}

// writtenAddress is how a member's is written.
func writtenAddress(conf hraft.Configuration, id gpuai.ServerID) hraft.ServerAddress {
	for _, s := range conf.Servers {
		if gpuai.ServerID(s.ID) == id {
			return s.Address
		}
	}
	return ""
}

// Member returns one member of the group.
func (n *Node) Member(id gpuai.ServerID) (Member, bool) { return find(n.Members(), id) }

func find(all []Member, id gpuai.ServerID) (Member, bool) {
	i := slices.IndexFunc(all, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return all[i], true
}

// Advertise returns this server's address as the others reach it.
func (n *Node) Advertise() string { return n.cfg.Advertise }

// Joined reports whether this server knows its cluster and has something of the
// cluster's log.
func (n *Node) Joined() bool { return n.cluster() != "" && n.raft.LastIndex() > 0 }

// Record makes durable that this server holds a part of the log. A member does
// it before it becomes a voter, so that an empty directory is known as a loss
// from then on.
func (n *Node) Record() error { return n.persistApplied() }

// An AddressBook is where members may be reached. Which address is right is
// what the handshake says: an address that is wrong costs a try, never a
// connection to somebody else.
type addressBook struct {
	mu   sync.Mutex // guards below
	last map[gpuai.ServerID]string
	told map[gpuai.ServerID]string
}

func (b *addressBook) answered(id gpuai.ServerID, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last[id] = addr
}

// Hint notes an address at which a member says it can be reached. It is tried
// when the recorded one does not answer.
func (n *Node) Hint(id gpuai.ServerID, addr string) {
	if _, ok := n.Member(id); !ok || id == n.cfg.ID {
		return // the book grows with the members only
	}
	n.book.mu.Lock()
	defer n.book.mu.Unlock()
	n.book.told[id] = addr
}

// addresses of a member, the likeliest first: the one that answered last, what
// the operator says now, what the configuration says, what it said itself.
func (n *Node) addressesOf(id gpuai.ServerID) []string {
	var out []string
	add := func(addr string) {
		if addr != "" && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	n.book.mu.Lock()
	last, told := n.book.last[id], n.book.told[id]
	n.book.mu.Unlock()
	add(last)
	for _, p := range n.cfg.Peers {
		if p.ID == id {
			add(p.Addr)
		}
	}
	if m, ok := find(n.membersIn(n.configuration()), id); ok {
		add(m.Addr)
	}
	add(told)
	if m, ok := find(membersOf(n.configuration()), id); ok {
		add(m.Addr) // where it began
	}
	return out
}

// reachable reports whether a member answers a handshake now: its process runs,
// under its ID and in this cluster.
func (n *Node) reachable(ctx context.Context, id gpuai.ServerID) bool {
	if id == n.cfg.ID {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, n.reachTimeout())
	defer cancel()
	conn, err := n.DialPeer(ctx, id)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (n *Node) reachTimeout() time.Duration { return reachTimeout * time.Duration(n.cfg.Multiplier) }

// Reachable asks members at once whether they are alive.
func (n *Node) Reachable(ctx context.Context, all []Member) map[gpuai.ServerID]bool {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := make(map[gpuai.ServerID]bool, len(all))
	for _, m := range all {
		wg.Go(func() {
			ok := n.reachable(ctx, m.ID)
			mu.Lock()
			defer mu.Unlock()
			out[m.ID] = ok
		})
	}
	wg.Wait()
	return out
}

// needMajority refuses a change after which the voters that can be reached
// would be no majority of all: nothing could be committed, this change neither.
func (n *Node) needMajority(ctx context.Context, what string, after []Member) error {
	voters := slices.DeleteFunc(slices.Clone(after), func(m Member) bool { return !m.Voter })
	alive := n.Reachable(ctx, voters)
	up, down := 0, []string(nil)
	for _, m := range voters {
		if alive[m.ID] {
			up++
		} else {
			down = append(down, string(m.ID))
		}
	}
	if up > len(voters)/2 {
		return nil
	}
	return conflict("%s would leave %d voters of which %d can be reached, no majority (not reached: %s): bring those back or remove them first",
		what, len(voters), up, strings.Join(down, ", "))
}

// view of a change: who leads, and the configuration that it starts from. Two
// changes at once are told apart by the configuration's index.
func (n *Node) beginChange() (conf hraft.Configuration, index uint64, err error) {
	if !n.IsLeader() {
		return conf, 0, n.notLeading()
	}
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return conf, 0, fmt.Errorf("read the members: %w", err)
	}
	return f.Configuration(), f.Index(), nil
}

// change waits for a change of the configuration to be committed, within our
// own timeout: the library's bounds the enqueueing only.
func (n *Node) change(ctx context.Context, f hraft.IndexFuture) error {
	ctx, cancel := context.WithTimeout(ctx, n.tune.applyTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return outcomeUnknown("the change of the members was not committed in time")
	case <-n.closing:
		return outcomeUnknown("this server is stopping")
	}
	switch {
	case err == nil:
		return nil
	case strings.HasPrefix(err.Error(), "configuration changed since"):
		return &gpuai.Error{Code: gpuai.RateLimited, Detail: "the members changed meanwhile: look at them again and retry", RetryAfter: gpuai.Second}
	case notAppended(err):
		return proposalError(err)
	case errors.Is(err, hraft.ErrLeadershipLost), errors.Is(err, hraft.ErrRaftShutdown):
		return proposalError(err)
	}
	return conflict("the members cannot be changed so: %v", err)
}

func checkMember(id gpuai.ServerID, addr string) error {
	if !gpuai.ValidName(string(id)) {
		return gpuai.NewError(gpuai.InvalidSpec, fmt.Sprintf("a server's ID is 1 to 63 of a-z, 0-9 and '-', not %q", id))
	}
	if err := CheckAddr(addr); err != nil {
		return gpuai.NewError(gpuai.InvalidSpec, fmt.Sprintf("server %s: %v", id, err))
	}
	return nil
}

// AddMember adds a server as a non-voter: it is sent the log, and nothing waits
// for it. Adding one that is there at this address already changes nothing.
func (n *Node) AddMember(ctx context.Context, id gpuai.ServerID, addr string) error {
	if err := checkMember(id, addr); err != nil {
		return err
	}
	conf, index, err := n.beginChange()
	if err != nil {
		return err
	}
	all := n.membersIn(conf)
	if m, ok := find(all, id); ok {
		if m.Addr == addr {
			return nil
		}
		return conflict("server %s is a member already, at %s: give the new server another ID, or restart %s with --advertise %s if its address changed", id, m.Addr, id, addr)
	}
	if i := slices.IndexFunc(all, func(m Member) bool { return m.Addr == addr }); i >= 0 {
		return conflict("the address %s is that of server %s: each server has its own", addr, all[i].ID)
	}
	if n.retired(id) {
		return conflict("server %s was removed from this region, and its ID is never used again, since it could vote twice: give the server a new ID ('gpuai server rejoin --wipe' does)", id)
	}
	if len(all) >= MaxMembers {
		return conflict("the region has %d servers, as many as it can", len(all))
	}
	return n.change(ctx, n.raft.AddNonvoter(hraft.ServerID(id), newAddress(conf, id, addr), index, n.tune.enqueueTimeout))
}

// PromoteMember makes a non-voter a voter. The caller has seen that it is
// caught up. Promoting a voter changes nothing.
func (n *Node) PromoteMember(ctx context.Context, id gpuai.ServerID) error {
	conf, index, err := n.beginChange()
	if err != nil {
		return err
	}
	all := n.membersIn(conf)
	m, ok := find(all, id)
	switch {
	case !ok:
		return n.noMember(id, all)
	case m.Voter:
		return nil
	case n.retired(id):
		return conflict("server %s is being removed from this region: remove it again to finish that", id)
	}
	after := slices.Clone(all)
	after[slices.Index(after, m)].Voter = true
	if err := n.needMajority(ctx, "promoting server "+string(id), after); err != nil {
		return err
	}
	return n.change(ctx, n.raft.AddVoter(hraft.ServerID(id), writtenAddress(conf, id), index, n.tune.enqueueTimeout))
}

// SetMemberAddr records a member's new address. It refuses while a server of
// that ID answers at the old one: two servers must not have one ID.
func (n *Node) SetMemberAddr(ctx context.Context, id gpuai.ServerID, addr string) error {
	if err := checkMember(id, addr); err != nil {
		return err
	}
	conf, _, err := n.beginChange()
	if err != nil {
		return err
	}
	all := n.membersIn(conf)
	m, ok := find(all, id)
	switch {
	case !ok:
		return n.noMember(id, all)
	case m.Addr == addr:
		return nil
	}
	if id != n.cfg.ID && n.answersAt(ctx, id, m.Addr) {
		return conflict("a server %s answers at %s and another says that it is at %s: two servers must not have one ID; stop the one that is wrong, and give it a new ID with 'gpuai server rejoin --wipe'", id, m.Addr, addr)
	}
	if err := n.command(ctx, &fsm.MoveServer{Server: id, Address: addr}); err != nil {
		return err
	}
	n.cfg.Logger.Info("a member's address changed", "member", id, "from", m.Addr, "to", addr)
	return nil
}

// command has a command of the region's own applied.
func (n *Node) command(ctx context.Context, cmd fsm.Command) error {
	a, err := n.Propose(ctx, cmd.Append(nil, fsm.Envelope{Actor: "operator"}))
	if err == nil && a.Result.Code != gpuai.OK {
		err = &gpuai.Error{Code: a.Result.Code, Detail: a.Result.Detail, Index: a.Index}
	}
	return err
}

func (n *Node) answersAt(ctx context.Context, id gpuai.ServerID, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, n.reachTimeout())
	defer cancel()
	conn, err := n.mux.dial(ctx, n.cfg.Dial, addr, n.hello(kindPeer, id))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// RemoveMember takes a server out of the group for ever: its ID is never used
// again. It refuses to remove the last voter, and what would leave no majority
// that can be reached. A leader that is to remove itself hands its leadership
// over and returns ErrHandedOver.
func (n *Node) RemoveMember(ctx context.Context, id gpuai.ServerID) error {
	conf, _, err := n.beginChange()
	if err != nil {
		return err
	}
	all := n.membersIn(conf)
	m, ok := find(all, id)
	if !ok && n.retired(id) {
		return nil // it was removed before: asked again
	}
	if !ok {
		return n.noMember(id, all)
	}
	after := slices.DeleteFunc(slices.Clone(all), func(o Member) bool { return o.ID == id })
	if m.Voter {
		if !slices.ContainsFunc(after, func(o Member) bool { return o.Voter }) {
			return conflict("server %s is the region's last voter: without it nothing is left of the region", id)
		}
		if err := n.needMajority(ctx, "removing server "+string(id), after); err != nil {
			return err
		}
	}
	if id == n.cfg.ID {
		if err := n.TransferLeadership(ctx); err != nil {
			return &gpuai.Error{Code: gpuai.NoLeader, Detail: err.Error() + ": it leads, so it is not removed; retry", RetryAfter: gpuai.Second}
		}
		return ErrHandedOver
	}
	return n.expel(ctx, id)
}

// expel retires the ID first: a removal without that would let it come back. In
// a region of a lower level a version that does not know the command may run:
// it is removed without, so that a dead server cannot hold an upgrade up.
func (n *Node) expel(ctx context.Context, id gpuai.ServerID) error {
	var level uint32
	n.View(func(m *fsm.Machine) { level = m.Level() })
	if level >= fsm.LevelServers {
		if err := n.command(ctx, &fsm.RetireServer{Server: id}); err != nil {
			return err
		}
	} else {
		n.cfg.Logger.Warn("a server is removed below the feature level that remembers it: do not use its ID again", "member", id, "level", level)
	}
	conf, index, err := n.beginChange()
	if err != nil {
		return err
	}
	if _, ok := find(membersOf(conf), id); !ok {
		return nil // somebody else removed it meanwhile
	}
	return n.change(ctx, n.raft.RemoveServer(hraft.ServerID(id), index, n.tune.enqueueTimeout))
}

func (n *Node) noMember(id gpuai.ServerID, all []Member) error {
	var names []string
	for _, m := range all {
		names = append(names, string(m.ID))
	}
	return gpuai.NewError(gpuai.NotFound, fmt.Sprintf("no server %s is a member: the members are %s", id, strings.Join(names, ", ")))
}

// gone reports whether a server's removal is known here to be committed.
func (n *Node) gone(id gpuai.ServerID) bool {
	lib := n.lib.Load()
	if lib == nil {
		return false
	}
	f := lib.GetConfiguration()
	if f.Index() > n.AppliedIndex() {
		return false // it may be taken back
	}
	_, member := find(membersOf(f.Configuration()), id)
	return !member && n.retired(id)
}

// removedError is the sentence of a server that was removed.
func (n *Node) removedError(how string) error {
	return fmt.Errorf("server %s was removed from its region (%s): it must not vote again, and its data directory %s is of no more use; "+
		"to bring this host back under a new ID run 'gpuai server rejoin --wipe'", n.cfg.ID, how, n.cfg.Dir.Path())
}

// configured is called with each configuration that is committed: a server that
// finds itself removed stops.
func (n *Node) configured(index uint64, members []Member) {
	if _, ok := find(members, n.cfg.ID); !ok && n.retired(n.cfg.ID) {
		n.damaged(n.removedError(fmt.Sprintf("at index %d", index)))
	}
}
