package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/gpuai/gpuai"
)

const archiveFile = "archive.db"

// ErrArchiveDamaged is returned, wrapped, when the history archive cannot be
// what was written. SetArchiveAside makes room for a new one.
var ErrArchiveDamaged = errors.New("the history archive is damaged")

// Buckets of the archive. Those that are marked are made from the others.
var (
	bucketState     = []byte("state")
	bucketEntries   = []byte("entries")   // index → its events
	bucketJobEvents = []byte("jobevents") // job, index → nothing, but for its submit; derived
	bucketJobs      = []byte("jobs")      // job → jobRow
	bucketRetired   = []byte("retired")   // index, ordinal → job; derived
	bucketTasks     = []byte("tasks")     // job, group, task → taskRow
	bucketTokens    = []byte("tokens")    // lease → key of its taskRow; derived
	bucketNames     = []byte("names")     // name, 0, job → nothing; derived
	bucketAudit     = []byte("audit")     // index → its link of the audit

	archiveBuckets = [][]byte{
		bucketState, bucketEntries, bucketJobEvents, bucketJobs, bucketRetired, bucketTasks, bucketTokens, bucketNames, bucketAudit,
	}
	stateKey = []byte("state")
)

// An ArchiveEntry is what one log entry did, as far as the archive keeps it.
type ArchiveEntry struct {
	// Prev is the index of the entry before it, Upto that up to which nothing
	// else happened; Upto ≥ Index > Prev.
	Prev, Index, Upto uint64
	Events            []gpuai.Event // of Index
	Retired           []gpuai.RetiredJob
	Audit             []byte // of Index: its link of the audit, which the archive does not read
}

// An ArchiveState says which log indexes an archive knows of.
type ArchiveState struct {
	// Covered are the indexes whose entries were seen.
	Covered []gpuai.IndexRange `json:"covered"`
	// Missing are those that no server has, as far as could be found.
	Missing []gpuai.IndexRange `json:"missing,omitempty"`
	// Dropped is the index up to which rows may have made way for newer ones.
	Dropped uint64 `json:"dropped,omitzero"`
	// Seen is an index that the region has reached, covered or not.
	Seen uint64 `json:"seen,omitzero"`
}

// End is the newest index that the state knows of.
func (s *ArchiveState) End() uint64 {
	if n := len(s.Covered); n > 0 {
		return max(s.Seen, s.Covered[n-1].To)
	}
	return s.Seen
}

// Gaps are the indexes up to End that are neither covered nor given up.
func (s *ArchiveState) Gaps() []gpuai.IndexRange {
	if s.End() == 0 {
		return nil
	}
	all := []gpuai.IndexRange{{From: 1, To: s.End()}}
	return subtractRanges(subtractRanges(all, s.Covered), s.Missing)
}

// Has are the indexes whose rows the archive has.
func (s *ArchiveState) Has() []gpuai.IndexRange {
	return subtractRanges(s.Covered, []gpuai.IndexRange{{From: 0, To: s.Dropped}})
}

// An Archive is a server's history: jobs that have left the machine, with their
// tasks and leases, the events of all, and the links of the audit. It is written from the machine's
// outputs, in any order and as often as one likes: rows are named by log index
// and by ID, so what comes twice is there once.
//
// Everything that returned without error is on disk. Methods are safe for
// concurrent use. An error that matches ErrArchiveDamaged means that no other
// call will do any good.
type Archive struct {
	path string
	db   *bbolt.DB
	page int64 // bytes of a page; DB.Info is not safe beside a writer

	mu    sync.Mutex // guards below
	state ArchiveState

	closing sync.Once
	closed  error
}

// OpenArchive opens the history archive in d, or makes it. A file of which most
// is free is written anew, smaller.
func OpenArchive(d *Dir) (*Archive, error) { return openArchive(d.Path(archiveFile)) }

func openArchive(path string) (*Archive, error) {
	a := &Archive{path: path}
	if err := a.guard(a.open); err != nil {
		return nil, err
	}
	if err := a.guard(func() error { return a.compact(compactFrom) }); err != nil {
		go a.Close() // over a damaged page it may not come back
		return nil, err
	}
	return a, nil
}

func (a *Archive) open() error {
	if fi, err := os.Stat(a.path); err == nil && fi.Size() > 0 && fi.Size() < journalLeast { // for which bbolt has an error without a name
		return a.damaged(fmt.Errorf("the file has only %d bytes", fi.Size()))
	}
	db, err := bbolt.Open(a.path, 0o600, &bbolt.Options{Timeout: openTimeout, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return a.damaged(err)
	case err != nil:
		return fmt.Errorf("open the history archive %s: %w", a.path, err)
	}
	a.db, a.page = db, int64(db.Info().PageSize)
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range archiveBuckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		raw := tx.Bucket(bucketState).Get(stateKey)
		if raw == nil {
			return nil
		}
		if err := openJSON(stateKey, raw, &a.state); err != nil {
			return a.damaged(err)
		}
		return nil
	})
	if err != nil {
		go db.Close()
		return err
	}
	return syncDir(filepath.Dir(a.path))
}

// Compaction is worth it for a file of at least compactFrom bytes of which
// half is free: bbolt gives free pages to later rows, never back to the disk.
const (
	compactFrom = 64 << 20
	compactTx   = 4 << 20 // bytes of one transaction
)

func (a *Archive) compact(from int64) error {
	used, file := a.size()
	if file < from || used > file/2 {
		return nil
	}
	tmp := a.path + ".compact"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("compact the history archive: %w", err)
	}
	dst, err := bbolt.Open(tmp, 0o600, &bbolt.Options{Timeout: openTimeout, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("compact the history archive: %w", err)
	}
	err = errors.Join(bbolt.Compact(dst, a.db, compactTx), dst.Close())
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("compact the history archive into %s: %w", tmp, err)
	}
	if err := a.db.Close(); err != nil {
		return fmt.Errorf("compact the history archive: %w", err)
	}
	if err := os.Rename(tmp, a.path); err != nil {
		return fmt.Errorf("compact the history archive: %w", err)
	}
	return a.open()
}

// SetArchiveAside renames a damaged archive, whose Archive need not be closed,
// and returns its new name. One that was set aside before is replaced.
func SetArchiveAside(d *Dir) (string, error) {
	path := d.Path(archiveFile)
	aside := path + ".damaged"
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set the damaged history archive aside: %w", err)
	}
	return aside, syncDir(filepath.Dir(path))
}

// guard turns what bbolt does about a damaged page, a panic or a fault in its
// memory map, into ErrArchiveDamaged.
func (a *Archive) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = a.damaged(fmt.Errorf("%v", r))
		}
	}()
	return f()
}

func (a *Archive) damaged(cause error) error {
	return fmt.Errorf("%w (%s: %w)", ErrArchiveDamaged, a.path, cause)
}

// view calls f within a reading transaction. What f returns is damage, but for
// errors of this package's callers, which f does not have.
func (a *Archive) view(f func(tx *bbolt.Tx) error) error {
	return a.guard(func() error {
		err := a.db.View(f)
		if err == nil || errors.Is(err, ErrArchiveDamaged) || errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
			return err
		}
		return a.damaged(err)
	})
}

// update calls f within a writing transaction with a copy of the state, which
// is stored with what f wrote.
func (a *Archive) update(f func(tx *bbolt.Tx, s *ArchiveState) error) error {
	return a.guard(func() error {
		var s ArchiveState
		err := a.db.Update(func(tx *bbolt.Tx) error {
			s = a.State() // writers are serialised
			if err := f(tx, &s); err != nil {
				return err
			}
			raw, err := sealJSON(stateKey, &s)
			if err != nil {
				return err
			}
			return tx.Bucket(bucketState).Put(stateKey, raw)
		})
		if err != nil && !errors.Is(err, ErrArchiveDamaged) {
			return fmt.Errorf("write the history archive %s: %w", a.path, err)
		}
		if err == nil {
			a.mu.Lock()
			a.state = s
			a.mu.Unlock()
		}
		return err
	})
}

// State returns which indexes the archive knows of.
func (a *Archive) State() ArchiveState {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state
	s.Covered, s.Missing = slices.Clone(s.Covered), slices.Clone(s.Missing)
	return s
}

// Reached notes that the region has reached an index: what is not covered up
// to it is a gap.
func (a *Archive) Reached(index uint64) error {
	if s := a.State(); index <= s.End() {
		return nil
	}
	return a.update(func(_ *bbolt.Tx, s *ArchiveState) error {
		s.Seen = max(s.Seen, index)
		return nil
	})
}

// GiveUp notes that no server has the history of some indexes.
func (a *Archive) GiveUp(r gpuai.IndexRange) error {
	return a.update(func(_ *bbolt.Tx, s *ArchiveState) error {
		s.Missing = addRange(s.Missing, r)
		return nil
	})
}

// Append stores entries in one step. Those that are covered are passed over.
func (a *Archive) Append(entries []ArchiveEntry) error {
	return a.update(func(tx *bbolt.Tx, s *ArchiveState) error {
		w := rowWriter{tx: tx}
		for i := range entries {
			e := &entries[i]
			if !inRanges(s.Covered, e.Index) {
				w.entry(e)
			}
			s.Covered = addRange(s.Covered, gpuai.IndexRange{From: e.Prev + 1, To: e.Upto})
		}
		return w.finish()
	})
}

// A rowWriter writes rows with all that is derived from them. Keys of jobs'
// events are put in order at the end: it is what bbolt is good at.
type rowWriter struct {
	tx        *bbolt.Tx
	jobEvents []jobEventRef
	submitted gpuai.JobID // in this entry, last
	err       error
}

// A jobEventRef says that an entry has events of a job.
type jobEventRef [24]byte

// fillPercent is how full bbolt leaves a page that it splits. Most rows come in
// the order of their keys.
const fillPercent = 0.9

func (w *rowWriter) put(bucket, key, value []byte) {
	if w.err == nil {
		b := w.tx.Bucket(bucket)
		b.FillPercent = fillPercent
		w.err = b.Put(key, value)
	}
}

func (w *rowWriter) entry(e *ArchiveEntry) {
	w.submitted = gpuai.JobID{}
	if len(e.Events) > 0 {
		key := indexKey(e.Index)
		w.put(bucketEntries, key, sealEvents(key, e.Events))
		for i := range e.Events {
			w.jobEvent(&e.Events[i])
		}
	}
	if e.Audit != nil {
		key := indexKey(e.Index)
		w.put(bucketAudit, key, sealRow(key, append(make([]byte, rowHeader, rowHeader+len(e.Audit)), e.Audit...)))
	}
	for i := range e.Retired {
		w.retired(e.Index, uint32(i), &e.Retired[i])
	}
}

// jobEvent files an event under its job, once an entry. What happened with the
// submit needs none: the job itself says when that was.
func (w *rowWriter) jobEvent(e *gpuai.Event) {
	if e.Kind == gpuai.JobSubmitted {
		w.submitted = e.Job
	}
	if e.Job.IsZero() || e.Job == w.submitted {
		return
	}
	key := jobEventRef(jobEventKey(e.Job, e.Index))
	if n := len(w.jobEvents); n == 0 || w.jobEvents[n-1] != key {
		w.jobEvents = append(w.jobEvents, key)
	}
}

func (w *rowWriter) retired(index uint64, ordinal uint32, r *gpuai.RetiredJob) {
	row := jobRow{Index: index, Ordinal: ordinal, Job: r.Job}
	raw, err := sealJSON(r.Job.ID[:], &row)
	w.fail(err)
	w.job(&row, raw)
	for i := range r.Tasks {
		t := taskRow{Task: r.Tasks[i], Lease: r.Leases[i]}
		raw, err := sealJSON(taskKey(t.Task.TaskRef), &t)
		w.fail(err)
		w.task(&t, raw)
	}
}

func (w *rowWriter) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *rowWriter) job(r *jobRow, raw []byte) {
	id := slices.Clone(r.Job.ID[:])
	w.put(bucketJobs, id, raw)
	w.put(bucketRetired, retiredKey(r.Index, r.Ordinal), id)
	w.put(bucketNames, nameKey(r.Job.Name, r.Job.ID), nil)
}

func (w *rowWriter) task(r *taskRow, raw []byte) {
	key := taskKey(r.Task.TaskRef)
	w.put(bucketTasks, key, raw)
	w.put(bucketTokens, indexKey(uint64(r.Lease.ID)), key)
}

func (w *rowWriter) finish() error {
	slices.SortFunc(w.jobEvents, func(a, b jobEventRef) int { return bytes.Compare(a[:], b[:]) })
	for i := range w.jobEvents {
		w.put(bucketJobEvents, w.jobEvents[i][:], nil)
	}
	return w.err
}

// Size returns the bytes that rows take in the file, and the file's size. The
// difference is free for later rows.
func (a *Archive) Size() (used, file int64) {
	_ = a.guard(func() error { used, file = a.size(); return nil })
	return used, file
}

func (a *Archive) size() (used, file int64) {
	s := a.db.Stats()
	_ = a.db.View(func(tx *bbolt.Tx) error { file = tx.Size(); return nil })
	return file - int64(s.FreePageN+s.PendingPageN)*a.page, file
}

// Path is the archive's file.
func (a *Archive) Path() string { return a.path }

// Close closes the file. Idempotent.
func (a *Archive) Close() error {
	a.closing.Do(func() {
		a.closed = a.guard(func() error {
			if err := a.db.Close(); err != nil {
				return fmt.Errorf("close the history archive: %w", err)
			}
			return nil
		})
	})
	return a.closed
}

// closeWait bounds the wait for a damaged archive to close.
const closeWait = time.Second

// Abandon closes a damaged archive as far as that can be done: bbolt may wait
// for ever for a transaction that a damaged page ended.
func (a *Archive) Abandon() {
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Close() }()
	select {
	case <-done:
	case <-time.After(closeWait):
	}
}
