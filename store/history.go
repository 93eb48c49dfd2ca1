package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

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
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	var snapshot uint64
	if len(list) > 0 {
		snapshot = list[0].Index
	} else if id.Epoch > 0 {
		return lost("it has no snapshot that can be read, but it was restored from a backup (epoch %d)", id.Epoch)
	}
	if err := CheckSnapshot(d, l, snapshot); err != nil {
		return err
	}
	return checkTerm(l, id)
}

// CheckSnapshot reports whether a snapshot that ends at an index and the log
// behind it are all that this server has applied. A newer snapshot that cannot
// be read says how far that is, too: what is in it was committed. Without this
// check an older snapshot beside an empty log would pass for the whole.
func CheckSnapshot(d *Dir, l *Log, index uint64) error {
	id, _ := d.Identity()
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	need := max(id.Applied, newestName(d))
	if end := max(last, index); end == 0 || end < need {
		return lost("its log ends at %d and its snapshot at %d, but it had applied %d", last, index, need)
	}
	if first > index+1 {
		return lost("its log begins at %d and its snapshot ends at %d", first, index)
	}
	return nil
}

// newestName returns the newest index that a snapshot's directory, which is
// called <term>-<index>-<time>, is named after; 0 for none.
func newestName(d *Dir) (newest uint64) {
	entries, _ := os.ReadDir(d.Path(snapshotDir)) // without it there are none
	for _, e := range entries {
		if index, ok := nameIndex(e); ok {
			newest = max(newest, index)
		}
	}
	return newest
}

// nameIndex returns the index in a snapshot's name.
func nameIndex(e fs.DirEntry) (uint64, bool) {
	parts := strings.Split(e.Name(), "-")
	if len(parts) != 3 || !e.IsDir() || strings.HasSuffix(e.Name(), ".tmp") {
		return 0, false
	}
	index, err := strconv.ParseUint(parts[1], 10, 64)
	return index, err == nil
}

// checkTerm finds another server's log, or another past of this one, that is
// long enough to pass for ours.
func checkTerm(l *Log, id Identity) error {
	term, err := l.GetUint64(keyCurrentTerm)
	if err != nil && err.Error() != "not found" {
		return fmt.Errorf("read the current term: %w", err)
	}
	if term < id.AppliedTerm {
		return lost("its log knows term %d, but it had applied an entry of term %d", term, id.AppliedTerm)
	}
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil || id.Applied == 0 || id.Applied < first || id.Applied > last {
		return err
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
