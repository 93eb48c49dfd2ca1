package offline

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// A KeptHistory says what a restored server has of the history before.
type KeptHistory struct {
	// From is the archive that it was taken from, as it stands after the
	// restore; "" when nothing is kept, and Why then says why.
	From string `json:"from,omitempty"`
	Why  string `json:"why,omitempty"`
	Upto uint64 `json:"upto_index,omitzero"`
	// Indexes is how many log indexes up to Upto it has.
	Indexes uint64 `json:"indexes,omitzero"`
}

// proofs is how many jobs of a backup are looked for in an archive.
const proofs = fsm.MaxScan

// A pasts judges the history archives of data directories: which tells of the
// past of a backup, and can be read.
type pasts struct {
	backup *fsm.SnapshotInfo
	jobs   []gpuai.Job // of the backup, the newest
}

func pastsOf(backup *fsm.SnapshotInfo, m *fsm.Machine) *pasts {
	jobs, _ := m.Jobs(fsm.JobCursor{}, proofs, nil)
	return &pasts{backup, jobs}
}

// best returns the archive in a directory that has most of the backup's past.
func (p *pasts) best(dir string) KeptHistory {
	best := KeptHistory{Why: "there is no history archive in " + dir}
	var why []string
	for _, past := range store.Pasts(dir) {
		n, err := p.judge(&past)
		if err != nil {
			why = append(why, past.Path+" "+err.Error())
		} else if n > best.Indexes {
			best = KeptHistory{From: past.Path, Upto: p.backup.Index, Indexes: n}
		}
	}
	if best.From == "" && len(why) > 0 {
		best.Why = strings.Join(why, "; ")
	}
	return best
}

// judge says how many indexes of the backup's past an archive has, or why it is
// no archive of it. Epoch and cluster alone do not tell in epoch 0, where a
// backup knows no cluster: then its jobs, whose IDs are random, must be found.
func (p *pasts) judge(past *store.Past) (indexes uint64, err error) {
	id := &past.Identity
	switch {
	case id.Region != p.backup.Region:
		return 0, fmt.Errorf("is of region %s", id.Region)
	case id.Epoch != p.backup.Epoch || id.Epoch > 0 && string(id.Cluster) != p.backup.RestoreID:
		return 0, fmt.Errorf("is of epoch %d of cluster %s, and the backup of another", id.Epoch, id.Cluster)
	}
	a, err := store.OpenArchiveToRead(past.Path)
	if err != nil {
		return 0, fmt.Errorf("cannot be read: %w", err)
	}
	defer a.Close()
	wrong := 0
	if _, err := a.Check(context.Background(), func(string, error) { wrong++ }); err != nil || wrong > 0 {
		return 0, errors.New("is damaged: 'gpuai operator verify' says where")
	}
	found, err := p.found(a)
	switch {
	case err != nil:
		return 0, err
	case found == 0 && id.Epoch == 0:
		return 0, errors.New("has none of the backup's jobs, so nothing shows that it is of the same cluster")
	}
	st := a.State()
	return st.Within(p.backup.Index), nil
}

// found counts the backup's jobs that an archive saw submitted. One that it
// should have seen and has not tells of another past.
func (p *pasts) found(a *store.Archive) (n int, err error) {
	st := a.State()
	for i := range p.jobs {
		j := &p.jobs[i]
		if !st.Knows(j.SubmitIndex) {
			continue
		}
		events, _, _, err := a.JobEvents(store.EventQuery{Job: j.ID, Submitted: j.SubmitIndex, Limit: 1})
		if err != nil {
			return 0, fmt.Errorf("cannot be read: %w", err)
		}
		if len(events) == 0 || events[0].Index != j.SubmitIndex || events[0].Kind != gpuai.JobSubmitted {
			return 0, fmt.Errorf("knows index %d and not that job %s of the backup was submitted there: it tells of another past", j.SubmitIndex, j.ID)
		}
		n++
	}
	return n, nil
}

// after returns where an archive stands once its directory was set aside.
func (k *KeptHistory) after(dir, aside string) {
	if path, err := filepath.Abs(dir); err == nil && k.From == filepath.Join(path, "archive.db") {
		k.From = filepath.Join(path, aside, "archive.db")
	}
}
