package offline

import (
	"context"
	"errors"
	"fmt"

	"github.com/gpuai/gpuai/fsm"
)

// base is the oldest state on which the log follows: that of no entry, or of a
// snapshot.
func (v *verifier) base() (m *fsm.Machine, s SnapshotReport, err error) {
	if v.log != nil && v.log.First == 1 {
		return fsm.New(fsm.Options{Region: v.Region}), s, nil
	}
	s, ok := v.newest()
	if !ok {
		return nil, s, errors.New("no snapshot can be read, and the log does not begin at 1")
	}
	for i := len(v.Snapshots) - 1; i >= 0; i-- {
		if o := v.Snapshots[i]; o.OK && v.log != nil && v.log.First > 0 && v.log.First <= o.Index+1 {
			s = o
			break
		}
	}
	m, err = restore(s.path, v.Region)
	return m, s, err
}

// replay applies the log to the oldest state there is, compares what it gives
// with every newer snapshot, and reports the state at its end.
func (v *verifier) replay(ctx context.Context) error {
	m, from, err := v.base()
	if err != nil {
		return nil // there is a finding that says so
	}
	if err := v.apply(ctx, m, from.Index); err != nil {
		return err
	}
	if m.Epoch() < v.identity.Epoch || m.Level() < v.identity.Level {
		v.found(Finding{File: v.look.Path(), Problem: fmt.Sprintf("the state is of epoch %d and feature level %d, and this server has lived in epoch %d at level %d",
			m.Epoch(), m.Level(), v.identity.Epoch, v.identity.Level), Next: nextRejoin})
	}
	c := m.Counts()
	v.State = &State{
		From: from.Name, Index: m.Index(), Term: m.Term(), Time: m.Time(), Level: m.Level(), Epoch: m.Epoch(),
		Digest: m.Digest().String(), Jobs: c.Jobs, Leases: c.Leases,
	}
	for _, n := range c.Nodes {
		v.State.Nodes += n
	}
	if err := m.Check(); err != nil {
		v.found(Finding{File: v.look.Path(), Problem: "the state contradicts itself: " + err.Error(), Next: "report this bug with the directory; " + nextRejoin})
	}
	return nil
}

// apply applies the entries behind an index up to the last that can be read.
func (v *verifier) apply(ctx context.Context, m *fsm.Machine, after uint64) error {
	newer := len(v.Snapshots) - 1 // the oldest that was not compared
	compare := func(upTo uint64) {
		for ; newer >= 0 && v.Snapshots[newer].Index <= upTo; newer-- {
			if s := &v.Snapshots[newer]; s.OK && s.Index >= after && s.Digest != m.Digest().String() {
				s.OK = false
				v.found(Finding{File: s.path, Problem: fmt.Sprintf("it holds digest %s at index %d, and the log gives %s there", s.Digest, s.Index, m.Digest()), Next: nextRejoin})
			}
		}
	}
	var out fsm.Output
	for i := max(after, v.Log.First-min(v.Log.First, 1)) + 1; v.log != nil && i <= v.good; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if i%1024 == 0 {
			v.progress("applying the log", i-after, v.good-after)
		}
		compare(i - 1)
		e, err := v.log.Read(i)
		if err == nil && e.Command {
			err = m.Apply(e.Index, e.Term, e.Data, &out)
		}
		if err != nil {
			v.stuck(i, err)
			return nil
		}
		if out.Diverged && e.Command {
			v.found(Finding{File: v.log.Path(), Place: fmt.Sprintf("entry %d", i), Problem: "the leader had another digest than this directory gives: one of the two was damaged", Next: "compare gpuai operator digest on the servers; " + nextRejoin})
		}
	}
	compare(max(v.good, after))
	return nil
}

// stuck reports an entry that the machine does not apply.
func (v *verifier) stuck(index uint64, err error) {
	f := Finding{File: v.log.Path(), Place: fmt.Sprintf("entry %d", index), Problem: err.Error(), Next: nextRejoin}
	if errors.Is(err, fsm.ErrLevel) || errors.Is(err, fsm.ErrUnknownCommand) {
		f.Next = nextVersion
	}
	v.found(f)
}
