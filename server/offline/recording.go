package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// A Recording is a state and the log behind it: of a stopped server's data
// directory, or of a report.
type Recording struct {
	// Source is where it was read from, Region whose it is.
	Source string
	Region gpuai.RegionID
	// First is the lowest index whose state can be made, Last the highest.
	First, Last uint64
	// Report is what a report says of itself; nil for a data directory.
	Report *ReportInfo

	base  func(ctx context.Context, at uint64) (*fsm.Machine, uint64, error) // the newest state at or before an index
	read  func(index uint64) (store.Entry, error)
	close func() error
}

// OpenRecording opens a data directory that no server uses, or a report.
func OpenRecording(path string) (*Recording, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no data directory and no report at %s: name the --data that 'gpuai server run' was started with, or the file of 'gpuai operator report'", path)
	}
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return openDir(path)
	}
	return openReport(path)
}

// A Log is the log of a server that runs, and the states that it leads to.
type Log interface {
	MachineAt(ctx context.Context, index uint64) (*fsm.Machine, error)
	Entry(index uint64) (store.Entry, error)
}

// Running is the recording of a server that runs, for a range of indexes that it
// keeps.
func Running(region gpuai.RegionID, span gpuai.IndexRange, l Log) *Recording {
	return &Recording{
		Source: "this server", Region: region, First: span.From, Last: span.To, read: l.Entry, close: func() error { return nil },
		base: func(ctx context.Context, index uint64) (*fsm.Machine, uint64, error) {
			m, err := l.MachineAt(ctx, index)
			return m, index, err
		},
	}
}

// Close lets the source go.
func (r *Recording) Close() error { return r.close() }

func openDir(dir string) (_ *Recording, err error) {
	look, err := store.OpenLook(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			look.Close()
		}
	}()
	id, err := look.Identity()
	if err != nil {
		return nil, fmt.Errorf("read the identity of %s: %w", dir, err)
	}
	log, err := look.OpenLog()
	if err != nil {
		return nil, err
	}
	snaps, err := look.Snapshots() // the newest first
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	r := &Recording{Source: look.Path(), Region: id.Region, read: log.Read}
	r.close = func() error { return errors.Join(log.Close(), look.Close()) }
	r.Last = log.Last
	r.First = log.Last + 1
	for i := range snaps {
		if r.Last = max(r.Last, snaps[i].Index); log.First == 0 || snaps[i].Index+1 >= log.First {
			r.First = min(r.First, snaps[i].Index)
		}
	}
	if log.First == 1 {
		r.First = 0
	}
	r.base = func(_ context.Context, at uint64) (*fsm.Machine, uint64, error) {
		for i := range snaps {
			if s := &snaps[i]; s.Index <= at && s.Index+1 >= log.First {
				if m, err := restore(s.Path, id.Region); err == nil {
					return m, s.Index, nil
				}
			}
		}
		if log.First == 1 {
			return fsm.New(fsm.Options{Region: id.Region}), 0, nil
		}
		return nil, 0, fmt.Errorf("no snapshot of %s that can be read goes before index %d", dir, at)
	}
	return r, nil
}

// errRange says which indexes there are.
func (r *Recording) errRange(index uint64) error {
	return gpuai.NewError(gpuai.NotFound, fmt.Sprintf("%s holds the states of indexes %d to %d, not of %d", r.Source, r.First, r.Last, index))
}

// An applied is one entry and what it did. Its output is the reader's own.
type applied struct {
	entry store.Entry
	out   fsm.Output
	m     *fsm.Machine
}

// MachineAt makes the state after an index. progress may be nil. A report's
// recorded digests are compared on the way: an error matching ErrDiverged names the
// first index that differs.
func (r *Recording) MachineAt(ctx context.Context, index uint64, progress func(string, uint64, uint64)) (*fsm.Machine, error) {
	if index < r.First || index > r.Last {
		return nil, r.errRange(index)
	}
	m, at, err := r.base(ctx, index)
	if err != nil {
		return nil, err
	}
	return m, r.apply(ctx, m, gpuai.IndexRange{From: at + 1, To: index}, progress, nil)
}

// ErrDiverged is returned when a replay gives another digest than was recorded.
var ErrDiverged = errors.New("this build gives another state than was recorded")

// apply applies the entries of a range to m, and calls f, which may be nil, behind
// each.
func (r *Recording) apply(ctx context.Context, m *fsm.Machine, span gpuai.IndexRange, progress func(string, uint64, uint64), f func(*applied) error) error {
	a := applied{m: m}
	for i := span.From; i <= span.To; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if progress != nil && i%1024 == 0 {
			progress("applying the log", i-span.From, span.To-span.From+1)
		}
		var err error
		if a.entry, err = r.read(i); err != nil {
			return fmt.Errorf("read entry %d: %w", i, err)
		}
		if !a.entry.Command {
			continue
		}
		if err := m.Apply(a.entry.Index, a.entry.Term, a.entry.Data, &a.out); err != nil {
			return err
		}
		if want := r.digestAt(i); want != "" && want != m.Digest().String() {
			return fmt.Errorf("%w, first at index %d: %s, and %s was recorded", ErrDiverged, i, m.Digest(), want)
		}
		if f != nil {
			if err := f(&a); err != nil {
				return err
			}
		}
	}
	return nil
}

// digestAt returns the digest that a report recorded behind an index; "" when
// there is none.
func (r *Recording) digestAt(index uint64) string {
	if r.Report == nil {
		return ""
	}
	return r.Report.digests[index]
}

// StateOf describes a machine.
func StateOf(m *fsm.Machine, from string) State {
	c := m.Counts()
	s := State{
		From: from, Index: m.Index(), Term: m.Term(), Time: m.Time(), Level: m.Level(), Epoch: m.Epoch(),
		Digest: m.Digest().String(), Jobs: c.Jobs, Leases: c.Leases,
	}
	for _, n := range c.Nodes {
		s.Nodes += n
	}
	return s
}
