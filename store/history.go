package store

import (
	"errors"
	"fmt"
	"io"

	hraft "github.com/hashicorp/raft"
)

const (
	snapshotDir = "snapshots"
	// retainSnapshots is how many snapshots are kept: a newer one that turns
	// out damaged is passed over for an older.
	retainSnapshots = 3
)

// keyCurrentTerm is hraft's stable key of the term (hraft/raft.go).
var keyCurrentTerm = []byte("CurrentTerm")

// OpenSnapshots opens the snapshots in d, which are files with a checksum
// each; see hraft.FileSnapshotStore. What the library logs goes to log, a line
// a write.
func OpenSnapshots(d *Dir, log io.Writer) (hraft.SnapshotStore, error) {
	s, err := hraft.NewFileSnapshotStore(d.Path(), retainSnapshots, log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return s, nil
}

// CheckHistory compares what is on disk with the recorded identity, before
// Raft starts: a log and snapshots that end before what this server has
// applied would let it vote and lead as if it had never seen the rest. The
// error matches ErrLost or ErrDamaged.
func CheckHistory(d *Dir, l *Log, snaps hraft.SnapshotStore) error {
	id, _ := d.Identity()
	if !id.Formed {
		return nil
	}
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	var snapshot uint64
	if len(list) > 0 {
		snapshot = list[0].Index
	}
	if end := max(last, snapshot); end == 0 || end < id.Applied {
		return lost("its log ends at %d and its newest snapshot at %d, but it had applied %d", last, snapshot, id.Applied)
	}
	if first > snapshot+1 {
		return lost("its log begins at %d and its newest snapshot ends at %d", first, snapshot)
	}
	return checkTerm(l, id, first, last)
}

// checkTerm finds another server's log, or another past of this one, that is
// long enough to pass for ours.
func checkTerm(l *Log, id Identity, first, last uint64) error {
	term, err := l.GetUint64(keyCurrentTerm)
	if err != nil && err.Error() != "not found" {
		return fmt.Errorf("read the current term: %w", err)
	}
	if term < id.AppliedTerm {
		return lost("its log knows term %d, but it had applied an entry of term %d", term, id.AppliedTerm)
	}
	if id.Applied == 0 || id.Applied < first || id.Applied > last {
		return nil
	}
	var e hraft.Log
	err = l.GetLog(id.Applied, &e)
	if errors.Is(err, hraft.ErrLogNotFound) {
		return lost("its log has no entry %d", id.Applied)
	}
	if err != nil {
		return err
	}
	if e.Term != id.AppliedTerm {
		return lost("its log has term %d at index %d, but it had applied term %d there", e.Term, id.Applied, id.AppliedTerm)
	}
	return nil
}
