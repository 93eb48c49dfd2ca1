package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/integration/access"
	"github.com/gpuai/gpuai/integration/nursery"
)

// wipedToVoter says what the times of rejoins are from and to.
const wipedToVoter = "from kill -9 of the server that loses its disk to the vote of the one that takes its place"

// toolBound bounds one call of the command line.
const toolBound = time.Minute

// A loss is what becomes of a killed server's data directory. Where the directory can
// no longer tell whose it is, the operator does.
type loss struct {
	fault   string
	nothing bool // is left that says whose it is
	bare    bool // no certificate is left
	do      func(m *member) error
}

var losses = []loss{
	{"the directory as it was", false, false, func(*member) error { return nil }},
	{"raft.db emptied", false, false, func(m *member) error { return os.Truncate(m.log(), 0) }},
	{"all but the identity gone", false, true, func(m *member) error { return m.keepOnly("identity") }},
	{"the identity random", true, false, func(m *member) error {
		return os.WriteFile(filepath.Join(m.dir, "identity"), []byte("\x00\xff\x13random"), 0o600)
	}},
	{"all but the format gone", true, true, func(m *member) error { return m.keepOnly("FORMAT") }},
}

// loss chooses what becomes of a directory. Without its certificate a server cannot
// ask the others to remove it: then an operator does, and a new server joins.
func (r *region) loss() *loss {
	known := losses
	if r.access != nil {
		known = slices.DeleteFunc(slices.Clone(losses), func(l loss) bool { return l.bare })
	}
	return &known[r.rng.IntN(len(known))]
}

// A twist is what else happens while a server is rebuilt.
type twist struct {
	what string
	do   func(r *region, b *rebuilt) error
}

// A rebuilt server is one that has lost its disk.
type rebuilt struct {
	*member
	row   *row
	round int
	loss  *loss
	new   string // its next ID
}

var twists = []twist{
	{"nothing else", (*region).wipeAndStart},
	{"the command killed, and called again", func(r *region, b *rebuilt) error {
		if err := r.wipeKilled(b); err != nil {
			return err
		}
		return r.start(b.member)
	}},
	{"the new server killed while it catches up", func(r *region, b *rebuilt) error {
		if err := r.wipeAndStart(b); err != nil {
			return err
		}
		r.pause(r.soon(600 * time.Millisecond))
		return errors.Join(b.proc.Kill(), r.start(b.member))
	}},
	{"the leader killed while the new server catches up", func(r *region, b *rebuilt) error {
		if err := r.wipeAndStart(b); err != nil {
			return err
		}
		lead, _, err := r.leader()
		if err != nil {
			return err
		}
		r.pause(r.soon(300 * time.Millisecond))
		return errors.Join(lead.proc.Kill(), r.start(lead))
	}},
}

// playRejoins has one server after the other lose its disk. In the end no server
// has the disk that it began with, all are killed at once, and what they wrote is
// all there is.
func playRejoins(s *scene) error {
	w := s.row("9", "a server loses its disk and is rebuilt with rejoin --wipe, one after the other",
		"the others go on; the new server votes once it has caught up; nothing acknowledged is lost, also when none of the first disks is left; the digests are equal")
	w.Recovered = wipedToVoter
	r, err := s.startRegion(3, nil)
	if err != nil {
		return err
	}
	if err := r.ledger.load("rejoin"); err != nil {
		return err
	}
	var order []int
	for round := range s.counts.rejoins {
		if len(order) == 0 { // each server once before any is lost again
			order = s.rng.Perm(len(r.members))
		}
		m := r.members[order[0]]
		order = order[1:]
		if err := r.loseDisk(w, m, round); err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
		if err := errors.Join(r.ledger.account(w), r.digests(w, 0)); err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
	}
	for _, m := range r.members {
		if err := m.proc.Kill(); err != nil {
			return err
		}
	}
	if err := r.startAll(); err != nil {
		return fmt.Errorf("after all rebuilt servers were killed: %w", err)
	}
	if err := r.ledger.settle(w); err != nil {
		return err
	}
	s.end(w)
	return nil
}

// loseDisk kills a server, spoils its directory, and has it rebuilt, by choices of the
// seed. It returns once the new server votes: two that are lost at once would be the
// majority with all that only they hold.
func (r *region) loseDisk(w *row, m *member, round int) error {
	if err := r.ledger.await(20); err != nil {
		return err
	}
	b := &rebuilt{member: m, row: w, round: round, loss: r.loss(), new: fmt.Sprintf("%s-r%d", strings.Split(m.id, "-")[0], round+1)}
	t := &twists[r.rng.IntN(len(twists))]
	if err := m.proc.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	if err := b.loss.do(m); err != nil {
		return err
	}
	w.Injected++
	r.say("server %s is gone, %s; %s", m.id, b.loss.fault, t.what)
	if err := t.do(r, b); err != nil {
		return fmt.Errorf("%s, %s: %w", b.loss.fault, t.what, err)
	}
	if err := r.votes(m); err != nil {
		return fmt.Errorf("%s, %s: %w", b.loss.fault, t.what, err)
	}
	w.recovered(time.Since(killed))
	w.note("round %d: %s takes the place of a server that lost its disk (%s; %s): it voted %.1f s after", round+1, m.id, b.loss.fault, t.what, time.Since(killed).Seconds())
	return r.ledger.await(10)
}

func (r *region) wipeAndStart(b *rebuilt) error {
	if err := r.wipe(b); err != nil {
		return err
	}
	return r.start(b.member)
}

// wipe calls rejoin --wipe for a server that is down, which is the new one then.
func (r *region) wipe(b *rebuilt) error {
	p, err := r.rejoin(b, b.loss.nothing)
	if err != nil {
		return err
	}
	if err := r.ended(p); err != nil {
		return err
	}
	return r.renewed(b)
}

// renewed has the server start as the new one that its directory is of.
func (r *region) renewed(b *rebuilt) (err error) {
	b.id, b.join = b.new, r.raftOf(b.member)
	if r.access == nil {
		return nil
	}
	b.join = nil
	for _, m := range r.except(b.member) {
		b.join = append(b.join, m.listen)
	}
	b.env, err = access.JoinEnv(r, r.api, gpuai.IdentityServer)
	return err
}

// wipeKilled kills the command at some time, and calls it again as an operator
// would: it goes on from wherever it was.
func (r *region) wipeKilled(b *rebuilt) error {
	p, err := r.rejoin(b, b.loss.nothing)
	if err != nil {
		return err
	}
	r.pause(r.soon(120 * time.Millisecond))
	if err := p.Kill(); err != nil {
		return err
	}
	id, err := os.ReadFile(filepath.Join(b.dir, "identity"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if strings.Contains(string(id), b.new) {
		b.row.note("round %d: the command was killed when it was done", b.round+1)
		return r.renewed(b)
	}
	return r.wipe(b)
}

// rejoin begins one call of the command.
func (r *region) rejoin(b *rebuilt, nothing bool) (*nursery.Process, error) {
	argv := []string{r.run.program("gpuai"), "server", "rejoin", "--wipe", "--data", b.dir, "--join", strings.Join(r.raftOf(b.member), ","), "--new-id", b.new}
	if nothing {
		argv = append(argv, "--id", b.id, "--region", string(gpuai.DefaultRegion))
	}
	p, err := r.nursery.Start("rejoin-"+b.id, nil, argv...)
	if err == nil {
		p.MayEnd()
	}
	return p, err
}

// ended waits until a call of the command line has ended well.
func (r *region) ended(p *nursery.Process) error {
	select {
	case <-p.Done:
	case <-r.Done():
		return context.Cause(r)
	case <-time.After(toolBound):
		return fmt.Errorf("%s was not done within %s", p.Name, toolBound)
	}
	if code := p.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with exit code %d: %s", p.Name, code, r.without(nursery.LastLine(p.Log)))
	}
	return nil
}

// votes waits until a server is a voter that has caught up, and all that run are
// ready.
func (r *region) votes(m *member) error {
	err := r.until(toolBound, "server "+m.id+" to vote", func(ctx context.Context) error {
		if !m.proc.Alive() {
			return fmt.Errorf("%w: it ended: %s", errHopeless, r.without(nursery.LastLine(m.proc.Log)))
		}
		list, err := r.api.Members(ctx, false)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list.Members, func(s gpuai.MemberStatus) bool { return string(s.Server) == m.id })
		switch {
		case i < 0:
			return errors.New("it is no member")
		case !list.Members[i].Voter:
			return errors.New("it is a non-voter")
		case len(list.Members) != len(r.members):
			return fmt.Errorf("there are %d members", len(list.Members))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.ready()
}

// raftOf returns the Raft addresses of all servers but one.
func (r *region) raftOf(not *member) (out []string) {
	for _, m := range r.except(not) {
		out = append(out, m.raft)
	}
	return out
}

// soon is a time of the seed's choice, below max.
func (r *region) soon(max time.Duration) time.Duration {
	return time.Duration(r.rng.Int64N(int64(max)))
}

// keepOnly removes all of a data directory but one file.
func (m *member) keepOnly(name string) error {
	files, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Name() != name {
			err = errors.Join(err, os.RemoveAll(filepath.Join(m.dir, f.Name())))
		}
	}
	return err
}
