package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"

	"github.com/gpuai/gpuai"
)

// OpenArchiveToRead opens the history archive at a path that no server has
// open, and changes nothing; the methods that write do not work on it. It
// visits every page. The error wraps fs.ErrNotExist when there is none, and
// matches ErrArchiveDamaged when it cannot be read.
func OpenArchiveToRead(path string) (*Archive, error) {
	a := &Archive{path: path}
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open the history archive: %w", err)
	} else if info.Size() == 0 {
		return nil, a.damaged(errors.New("the file is empty"))
	}
	if err := a.guard(a.openToRead); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Archive) openToRead() error {
	if err := walkPages(a.path); err != nil {
		return a.damaged(err)
	}
	db, err := bbolt.Open(a.path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: openTimeout})
	if err != nil {
		return a.damaged(err)
	}
	a.db, a.page = db, int64(db.Info().PageSize)
	err = a.view(func(tx *bbolt.Tx) error {
		for _, name := range archiveBuckets {
			if tx.Bucket(name) == nil && !bytes.Equal(name, bucketAudit) { // which older versions do not make
				return fmt.Errorf("it has no bucket %q", name)
			}
		}
		if raw := tx.Bucket(bucketState).Get(stateKey); raw != nil {
			return openJSON(stateKey, raw, &a.state)
		}
		return nil
	})
	if err != nil {
		a.Abandon()
	}
	return err
}

// OpenArchive opens the directory's history archive for reading.
func (k *Look) OpenArchive() (*Archive, error) { return OpenArchiveToRead(k.Path(archiveFile)) }

// ArchiveCounts are the rows of an archive.
type ArchiveCounts struct {
	Entries uint64 `json:"entries"` // log indexes with events
	Jobs    uint64 `json:"jobs"`
	Tasks   uint64 `json:"tasks"` // with their latest leases
	Audit   uint64 `json:"audit"` // log indexes with links of the audit
}

// Check reads all that the archive holds: every row is checked against its
// checksum and what it is filed under, and what is derived from rows against
// them. It calls found for everything that is wrong. The error is ctx's, or
// matches ErrArchiveDamaged when it could not be read to its end.
func (a *Archive) Check(ctx context.Context, found func(place string, err error)) (c ArchiveCounts, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		k := archiveCheck{tx: tx, found: found}
		for _, b := range []struct {
			name  []byte
			check func(k, v []byte) error
			rows  *uint64
		}{
			{bucketEntries, k.entry, &c.Entries}, {bucketJobs, k.job, &c.Jobs}, {bucketTasks, k.task, &c.Tasks},
			{bucketRetired, k.retired, nil}, {bucketTokens, k.token, nil}, {bucketNames, k.name, nil}, {bucketJobEvents, k.jobEvent, nil}, {bucketAudit, checkAuditRow, &c.Audit},
		} {
			n := k.bucket(ctx, b.name, b.check)
			if b.rows != nil {
				*b.rows = n
			}
		}
		return nil
	})
	return c, errors.Join(ctx.Err(), err)
}

func checkAuditRow(k, v []byte) error {
	r := ArchiveRow{Kind: ArchiveAudit, Key: k, Value: v}
	return r.check()
}

type archiveCheck struct {
	tx    *bbolt.Tx
	found func(string, error)
}

func (c *archiveCheck) bucket(ctx context.Context, name []byte, check func(k, v []byte) error) (rows uint64) {
	b := c.tx.Bucket(name)
	if b == nil {
		return 0
	}
	at := b.Cursor()
	for k, v := at.First(); k != nil && ctx.Err() == nil; k, v = at.Next() {
		rows++
		if err := check(k, v); err != nil {
			c.found(fmt.Sprintf("%s, key %x", name, k), err)
		}
	}
	return rows
}

// has reports a row that should be there.
func (c *archiveCheck) has(bucket, key []byte, what string) error {
	if c.tx.Bucket(bucket).Get(key) == nil {
		return fmt.Errorf("%s is missing", what)
	}
	return nil
}

func (c *archiveCheck) entry(k, v []byte) error {
	w := rowWriter{}
	if err := openEvents(k, v, func(e *gpuai.Event) bool { w.jobEvent(e); return true }); err != nil {
		return err
	}
	for i := range w.jobEvents {
		if err := c.has(bucketJobEvents, w.jobEvents[i][:], "what files its events under their job"); err != nil {
			return err
		}
	}
	return nil
}

func (c *archiveCheck) job(k, v []byte) error {
	r, err := openJobRow(k, v)
	if err != nil {
		return err
	}
	if !bytes.Equal(c.tx.Bucket(bucketRetired).Get(retiredKey(r.Index, r.Ordinal)), k) {
		return fmt.Errorf("it left at index %d, and another job or none is filed there", r.Index)
	}
	return c.has(bucketNames, nameKey(r.Job.Name, r.Job.ID), "what files it under its name")
}

func (c *archiveCheck) task(k, v []byte) error {
	r, err := openTaskRow(k, v)
	switch {
	case err != nil:
		return err
	case r.Task.Lease != r.Lease.ID || r.Task.TaskRef != r.Lease.TaskRef:
		return fmt.Errorf("its latest lease is %d, and it has lease %d of another task", r.Task.Lease, r.Lease.ID)
	case !bytes.Equal(c.tx.Bucket(bucketTokens).Get(indexKey(uint64(r.Lease.ID))), k):
		return errors.New("what files it under its lease is missing, or names another")
	}
	return c.has(bucketJobs, k[:len(gpuai.JobID{})], "its job")
}

func (c *archiveCheck) retired(_, v []byte) error {
	return c.has(bucketJobs, v, "the job that left there")
}
func (c *archiveCheck) token(_, v []byte) error { return c.has(bucketTasks, v, "the lease's task") }

func (c *archiveCheck) name(k, _ []byte) error {
	id := k[max(0, len(k)-len(gpuai.JobID{})):]
	return c.has(bucketJobs, id, "the job of that name")
}

func (c *archiveCheck) jobEvent(k, _ []byte) error {
	return c.has(bucketEntries, k[max(0, len(k)-8):], "the entry with the job's events")
}

// Knows reports whether the archive has the rows of an index.
func (s *ArchiveState) Knows(index uint64) bool { return inRanges(s.Has(), index) }

// Within returns how many indexes up to one the archive has rows of.
func (s *ArchiveState) Within(upto uint64) (n uint64) {
	for _, r := range s.Has() {
		if r.From <= upto {
			n += min(r.To, upto) - r.From + 1
		}
	}
	return n
}

// until is the state of an archive that ends at an index.
func (s *ArchiveState) until(upto uint64) ArchiveState {
	beyond := []gpuai.IndexRange{{From: upto + 1, To: math.MaxInt64}}
	return ArchiveState{
		Covered: subtractRanges(s.Covered, beyond), Missing: subtractRanges(s.Missing, beyond), Dropped: min(s.Dropped, upto), Seen: upto,
	}
}

// keepPage is about how many bytes of rows keepHistory moves at once.
const keepPage = 4 << 20

// keepHistory makes the archive of a directory out of another file's rows up to
// an index; "" has none.
func keepHistory(d *Dir, h *History) error {
	if h.From == "" && len(h.Begun.Events) == 0 {
		return nil
	}
	dst, err := OpenArchive(d)
	if err != nil {
		return err
	}
	dst.db.NoSync = true // a file that is half written is written anew
	err = dst.keep(h)
	if err == nil {
		err = dst.Append([]ArchiveEntry{h.Begun})
	}
	if err == nil {
		err = dst.db.Sync()
	}
	return errors.Join(err, dst.Close())
}

func (a *Archive) keep(h *History) error {
	if h.From == "" {
		return nil
	}
	src, err := OpenArchiveToRead(h.From)
	if err != nil {
		return err
	}
	defer src.Close()
	for at, done := (ArchivePlace{}), false; !done; {
		var rows []ArchiveRow
		if rows, at, done, err = src.Rows(at, h.Upto, keepPage); err != nil {
			return err
		}
		if err := a.Fill(rows, gpuai.IndexRange{From: 1}); err != nil {
			return err
		}
	}
	return a.update(func(_ *bbolt.Tx, s *ArchiveState) error {
		*s = src.state.until(h.Upto)
		return nil
	})
}

// A Past is a history archive in a data directory, or in what a restore has set
// aside there, with the identity of the server that wrote it.
type Past struct {
	Path     string
	Identity Identity
}

// Pasts returns the history archives in a directory whose owners are known.
func Pasts(dir string) (out []Past) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil
	}
	aside, _ := filepath.Glob(filepath.Join(dir, AsidePrefix+"*")) // the pattern is sound but for what is in dir
	for _, d := range append([]string{dir}, aside...) {
		p := Past{Path: filepath.Join(d, archiveFile)}
		id, err := readIdentity(filepath.Join(d, identityFile))
		if err != nil {
			continue
		}
		if _, err := os.Stat(p.Path); err == nil {
			p.Identity = id
			out = append(out, p)
		}
	}
	return out
}

// A History is what the archive of a restored server begins with.
type History struct {
	From  string       // the archive whose rows are kept, after it was set aside; "" = none
	Upto  uint64       // up to this index
	Begun ArchiveEntry // what the restore itself did
}
