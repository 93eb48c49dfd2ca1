package virtual

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// newcomer is a server that is to join, through a member.
func (r *region) newcomer(id gpuai.ServerID, through *member) *member {
	return &member{id: id, dir: filepath.Join(r.base, string(id)+"-0"), join: through}
}

// joined starts a newcomer and waits until it votes and serves.
func (r *region) joined(m *member) {
	r.t.Helper()
	r.start(m)
	r.servers = append(r.servers, m)
	r.within(convergeWithin, "vote of server "+string(m.id), func() bool {
		for _, s := range m.life.Raft(context.Background()).Members {
			if s.Server == m.id && s.Voter {
				return m.life.Status().Ready
			}
		}
		return false
	})
}

// removed removes a member, which may be down, through the others, until one of
// them says that it is done.
func (r *region) removed(m *member) {
	r.t.Helper()
	r.servers = slices.DeleteFunc(r.servers, func(o *member) bool { return o == m })
	c := r.client(10*time.Second, r.others()...)
	var last error
	r.within(convergeWithin, "removal of server "+string(m.id), func() bool {
		list, err := c.RemoveMember(context.Background(), m.id)
		if last = err; err != nil {
			list, err = c.Members(context.Background(), false)
		}
		return err == nil && !slices.ContainsFunc(list.Members, func(s gpuai.MemberStatus) bool { return s.Server == m.id })
	})
	if last != nil && !isCode(last, gpuai.NoLeader) && !isCode(last, gpuai.OutcomeUnknown) && !isCode(last, gpuai.NotFound) {
		r.t.Errorf("removing %s: %v", m.id, last)
	}
}

// retires waits until a removed server has stopped by itself, with a sentence.
func (r *region) retires(m *member) {
	r.t.Helper()
	l := m.life
	select {
	case err := <-l.done:
		if err == nil || !strings.Contains(err.Error(), "was removed from") {
			r.t.Errorf("the removed server %s ended with: %v", m.id, err)
		}
	case <-time.After(convergeWithin):
		r.t.Fatalf("the removed server %s runs on: %s", m.id, r.describe())
	}
	m.life = nil
	l.host.die()
}

// TestCase15ReplaceAllServers replaces all servers of a region under load, one
// after the other, the leader too.
func TestCase15ReplaceAllServers(t *testing.T) {
	each(t, 2, func(t *testing.T, seed uint64) {
		bubble(t, 3, seed, func(r *region) {
			old := slices.Clone(r.servers)
			var fresh []*member
			for _, id := range []gpuai.ServerID{"x", "y", "z"} {
				fresh = append(fresh, r.newcomer(id, nil))
			}
			load := r.startLoadAt(append(slices.Clone(old), fresh...))
			for i, m := range fresh {
				r.idle(r.between(100*time.Millisecond, 600*time.Millisecond))
				m.join = r.others()[r.rng.IntN(3)]
				r.joined(m)
				began := time.Now()
				r.removed(old[i])
				r.progress(r.others()...)
				if d := time.Since(began); d > 3*time.Second {
					t.Errorf("the removal of %s left a gap of %v", old[i].id, d)
				}
				r.retires(old[i])
			}
			r.converge()
			load.stop()
			r.converge()
		})
	})
}

// TestCase15LeaderCrashesWhileMembersChange kills the leader while a server
// joins and another is removed.
func TestCase15LeaderCrashesWhileMembersChange(t *testing.T) {
	each(t, 2, func(t *testing.T, seed uint64) {
		bubble(t, 3, seed, func(r *region) {
			load := r.startLoad()
			r.idle(300 * time.Millisecond)
			l := r.leader()
			fresh := r.newcomer("x", r.others(l)[0])
			r.start(fresh)
			r.idle(r.between(time.Millisecond, 300*time.Millisecond))
			r.crash(l)
			r.progress(r.others()...)
			r.servers = append(r.servers, fresh)
			r.within(convergeWithin, "vote of the newcomer", func() bool {
				for _, s := range fresh.life.Raft(context.Background()).Members {
					if s.Server == fresh.id && s.Voter {
						return true
					}
				}
				return false
			})
			r.removed(l) // it is down and never comes back as a member
			r.progress(r.others()...)
			term := r.leader().life.Raft(context.Background()).Term
			r.start(l)
			r.retires(l)
			r.idle(5 * time.Second)
			if now := r.leader().life.Raft(context.Background()).Term; now != term {
				t.Errorf("a removed server disturbed term %d: it is %d now", term, now)
			}
			r.converge()
			load.stop()
			r.converge()
		})
	})
}
