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

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/nursery"
)

const (
	// tmpfsBytes is the size of a server's disk. A server's low mark is a tenth
	// of its disk, the hard one a quarter of that.
	tmpfsBytes = 256 << 20
	// goesOn bounds the time to a lease through servers with room, once those
	// without have had time to give leadership up.
	goesOn = 3 * time.Second
	// lowBytes is what is left for a disk to be between the two marks.
	lowBytes = tmpfsBytes / 10 / 2
	// atOnce bounds the median of submits through a follower with a full disk: each
	// would take a second, were it to wait for that server's machine.
	atOnce = 500 * time.Millisecond
	// throughs is how many submits it is the median of.
	throughs = 9
)

// A fullness is one way for disks to be full.
type fullness struct {
	fault    string
	expected string
	of       func(r *region) ([]*member, error)
	free     uint64 // that is left
	writes   bool   // submits must be acknowledged meanwhile
	refuses  bool   // submits must be refused with a sentence meanwhile
	through  bool   // submits through the victim must not wait for it
}

var fullnesses = []fullness{
	{"a follower's disk is full", "the region goes on; the follower resumes by itself once there is room",
		func(r *region) ([]*member, error) { m, err := r.follower(); return []*member{m}, err }, 0, true, false, true},
	{"the leader's disk is full", "another server leads and the region goes on; the old leader resumes by itself once there is room",
		func(r *region) ([]*member, error) { m, _, err := r.leader(); return []*member{m}, err }, 0, true, false, false},
	{"all disks are below the low mark", "submits are refused with path and free bytes, reads and leases go on; all resumes by itself once there is room",
		func(r *region) ([]*member, error) { return r.members, nil }, lowBytes, false, true, false},
	{"all disks are full", "no server ends, nothing is lost; all resumes by itself once there is room",
		func(r *region) ([]*member, error) { return r.members, nil }, 0, false, false, false},
}

// playFullDisks fills the disks of servers, on file systems in memory.
func playFullDisks(s *scene) error {
	if os.Geteuid() != 0 {
		for _, f := range fullnesses {
			s.skip(s.row("7", f.fault, f.expected), errors.New("full disks need root, to mount a tmpfs"))
		}
		return nil
	}
	r, err := s.startRegion(3, func(_ int, m *member) error {
		disk := m.dir + ".disk"
		if err := os.MkdirAll(disk, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", tmpfsBytes)); err != nil {
			return fmt.Errorf("mount a tmpfs: %w", err)
		}
		s.cleanup(func() error { return unix.Unmount(disk, 0) })
		m.dir = filepath.Join(disk, "data")
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.ledger.load("full"); err != nil {
		return err
	}
	for _, f := range fullnesses {
		w := s.row("7", f.fault, f.expected)
		w.Recovered = "from room on the disk to the first lease of a job submitted after it"
		if err := r.fill(w, &f); err != nil {
			return fmt.Errorf("%s: %w", f.fault, err)
		}
		if err := r.ledger.account(w); err != nil {
			return err
		}
		if err := r.digests(w, r.ledger.newest()); err != nil {
			return err
		}
		s.end(w)
	}
	w := s.row("7", "after all full disks", "nothing is lost, keys answer as before, the digests are equal")
	if err := r.ledger.settle(w); err != nil {
		return err
	}
	s.end(w)
	return nil
}

// fill fills disks for a while, sees what happens, and makes room again.
func (r *region) fill(w *row, f *fullness) error {
	if err := r.ledger.await(20); err != nil {
		return err
	}
	victims, err := f.of(r)
	if err != nil {
		return err
	}
	for _, m := range victims {
		if err := ballast(m, f.free); err != nil {
			return err
		}
	}
	w.Injected += len(victims)
	began, before := time.Now(), len(r.ledger.entries())
	r.say("%s, for %s", f.fault, r.counts.full)
	if f.writes {
		if err := r.goesOn(w, victims, began); err != nil {
			return err
		}
	}
	if f.through {
		r.through(w, victims[0])
	}
	r.pause(r.counts.full - time.Since(began))
	acknowledged := len(r.ledger.entries()) - before
	w.note("%d submits were acknowledged in the %.0f s meanwhile", acknowledged, time.Since(began).Seconds())
	r.judgeFull(w, f)
	for _, m := range victims {
		if err := os.Remove(filepath.Join(filepath.Dir(m.dir), "ballast")); err != nil {
			return err
		}
	}
	return r.afterFull(w, victims)
}

// through submits through a follower that cannot write, after it had time to
// notice.
func (r *region) through(w *row, m *member) {
	var took []time.Duration
	for i := range throughs {
		began := time.Now()
		ctx, cancel := context.WithTimeout(r, patience)
		_, err := r.ledger.submit(ctx, m.api, fmt.Sprintf("through-%s-%d-%d", m.id, began.UnixNano(), i))
		cancel()
		if err != nil {
			w.fail("a submit through the follower with a full disk: %v", err)
			return
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	w.note("a submit through the follower with a full disk took %d ms (median), %d ms at most", took[throughs/2].Milliseconds(), took[throughs-1].Milliseconds())
	if took[throughs/2] > atOnce {
		w.fail("a submit through the follower with a full disk took %s (median), the bound is %s", took[throughs/2], atOnce)
	}
	if err := m.api.Ready(r); err == nil {
		w.fail("the follower with a full disk says that it is ready")
	}
}

// goesOn sees that jobs are placed through the servers that have room.
func (r *region) goesOn(w *row, victims []*member, since time.Time) error {
	others := r.except(victims...)
	took, err := r.ledger.firstPlacement(since, others)
	if err != nil {
		return fmt.Errorf("through the servers that have room: %w", err)
	}
	if took > failoverBound {
		w.fail("the first new placement through servers with room came after %s, the bound is %s", took, failoverBound)
	}
	w.note("the first new placement through servers with room came after %d ms", took.Milliseconds())
	r.pause(r.counts.full - time.Since(since))
	if took, err = r.ledger.firstPlacement(time.Now(), others); err != nil || took > goesOn {
		w.fail("the region does not go on: a lease through servers with room took %s (%v)", took, err)
	}
	return nil
}

// ballast leaves a member's disk so many free bytes.
func ballast(m *member, free uint64) error {
	disk := filepath.Dir(m.dir)
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		return fmt.Errorf("read the room at %s: %w", disk, err)
	}
	f, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		return err
	}
	defer f.Close()
	room := int64(st.Bavail * uint64(st.Bsize))
	want := room - int64(free)
	for at, step := int64(0), want; at < want && step >= pageBytes; {
		err := unix.Fallocate(int(f.Fd()), 0, at, min(step, want-at))
		switch {
		case err == nil:
			at += step
		case errors.Is(err, unix.ENOSPC): // the server was faster
			step /= 2
		default:
			return fmt.Errorf("fill %s: %w", disk, err)
		}
	}
	return nil
}

// judgeFull asks the servers while their disks are full.
func (r *region) judgeFull(w *row, f *fullness) {
	if !f.refuses {
		return
	}
	ctx, cancel := context.WithTimeout(r, 5*time.Second)
	defer cancel()
	if _, _, err := r.api.Jobs(ctx, client.JobQuery{Page: client.Page{Limit: 1}}); err != nil {
		w.fail("reads do not go on: %v", err)
	}
	for _, m := range r.members {
		_, err := r.ledger.submit(ctx, m.api, fmt.Sprintf("full-%s-%d", m.id, time.Now().UnixNano()))
		var api *gpuai.Error
		switch {
		case err == nil:
			w.fail("server %s acknowledged a submit with %d bytes free", m.id, f.free)
		case !errors.As(err, &api) || !strings.Contains(api.Detail, "free") && !strings.Contains(api.Detail, "full"):
			w.fail("server %s refused a submit without a word of its disk: %v", m.id, err)
		default:
			w.note("%s: %s", m.id, r.without(api.Detail))
		}
	}
}

// afterFull sees that all goes on by itself. A server that has ended is a
// failure, and started again for what comes next.
func (r *region) afterFull(w *row, victims []*member) error {
	room := time.Now()
	for _, m := range victims {
		if m.proc.Alive() {
			continue
		}
		w.fail("server %s ended with exit code %d: %s", m.id, m.proc.ExitCode(), r.without(nursery.LastLine(m.proc.Log)))
	}
	if err := r.startAll(); err != nil {
		return err
	}
	took, err := r.ledger.firstPlacement(room, r.members)
	if err != nil {
		return fmt.Errorf("with room on the disks again: %w", err)
	}
	w.recovered(took)
	for _, m := range victims {
		err := r.until(patience, "server "+m.id+" to answer reads and writes again", func(ctx context.Context) error {
			_, err := r.ledger.submit(ctx, m.api, fmt.Sprintf("room-%s-%d", m.id, time.Now().UnixNano()))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
