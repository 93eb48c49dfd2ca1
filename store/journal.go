package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/gpuai/gpuai"
)

// ErrJournalInUse is returned by OpenJournal, wrapped, when another agent holds
// the file.
var ErrJournalInUse = errors.New("is already in use by another agent")

// ErrJournalDamaged is returned, wrapped, when a journal cannot be what was
// written.
var ErrJournalDamaged = errors.New("agent's journal is damaged")

// journalLockWait is how long OpenJournal waits for an agent that is ending.
const journalLockWait = time.Second

// journalLeast is less than any journal has: bbolt makes it of four pages.
const journalLeast = 4 * 4096

var (
	journalIdentityBucket = []byte("identity")
	journalLeaseBucket    = []byte("leases")
	journalIdentityKey    = []byte("self")
)

// A JournalIdentity is who an agent is, across its restarts.
type JournalIdentity struct {
	Node gpuai.NodeID `json:"node"`
	// Nonce names this life of the identity; it lasts as long as the journal.
	Nonce string `json:"nonce"`
	// Incarnation is the newest that the region gave, BootID the boot that it
	// was given in.
	Incarnation gpuai.Incarnation `json:"incarnation,omitzero"`
	BootID      string            `json:"boot_id,omitzero"`
	// Epoch and RestoreID are the newest that a server told.
	Epoch     uint8  `json:"epoch,omitzero"`
	RestoreID string `json:"restore_id,omitzero"`
	// Unclean are the devices that could not be cleaned, with the reason; they
	// stay out of use until BootID changes or they are seen clean.
	Unclean map[gpuai.DeviceID]string `json:"unclean,omitempty"`
}

// JournalState is how far a lease has come on its node.
type JournalState uint8

// The states. A lease is journaled before anything is done for it.
const (
	JournalStarting JournalState = iota + 1
	JournalRunning
	// JournalEnded: the task is gone, its last report may be unanswered.
	JournalEnded
	// JournalUnkillable: reported so, but the task is still there.
	JournalUnkillable
)

// A JournalLease is one lease that an agent has taken up.
type JournalLease struct {
	Assignment gpuai.Assignment `json:"assignment"`
	State      JournalState     `json:"state"`
	BootID     string           `json:"boot_id"` // the boot in which the task was started
	Cgroup     string           `json:"cgroup,omitzero"`
	PID        int32            `json:"pid,omitzero"`
	// PIDStart is the process's start in clock ticks since the boot: with it a
	// PID is not mistaken for a later process.
	PIDStart uint64         `json:"pid_start,omitzero"`
	Seq      uint32         `json:"seq,omitzero"`     // of the last report made
	Unsent   []gpuai.Report `json:"unsent,omitempty"` // made and not answered
}

// A JournalChange is what one Commit makes durable, all or nothing.
type JournalChange struct {
	Identity *JournalIdentity
	Put      []JournalLease
	Delete   []gpuai.Token
}

// Empty reports whether there is nothing to commit.
func (c *JournalChange) Empty() bool {
	return c.Identity == nil && len(c.Put) == 0 && len(c.Delete) == 0
}

// A Journal is an agent's memory: who it is, which leases it holds and which
// reports are unanswered. The file is locked against a second agent. Safe for
// concurrent use.
type Journal struct {
	path string
	db   *bbolt.DB

	closing sync.Once
	closed  error
}

// OpenJournal opens the journal at path, creating it where there is none, and
// checks all of it. The error is a sentence for the operator: ErrJournalInUse,
// ErrJournalDamaged or of the file system. A damaged journal is left as it is.
func OpenJournal(path string) (*Journal, error) {
	switch fi, err := os.Stat(path); {
	case err == nil && fi.Size() < journalLeast: // bbolt has an error without a name for some, and takes an empty file for a new one
		return nil, damagedJournal(path, fmt.Errorf("the file has only %d bytes", fi.Size()))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open the agent's journal: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create the agent's data directory: %w", err)
	}
	j := &Journal{path: path}
	if err := j.guard(j.open); err != nil {
		if j.db != nil {
			err = errors.Join(err, j.db.Close())
		}
		return nil, err
	}
	return j, nil
}

// open does without NoFreelistSync and tx.Check: both walk the pages in
// goroutines of bbolt's own, where its panic about a damaged page cannot be
// caught. Reading every record finds what matters.
func (j *Journal) open() error {
	db, err := bbolt.Open(j.path, 0o600, &bbolt.Options{
		Timeout: journalLockWait, FreelistType: bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("data directory %s %w: stop that agent, or give this one another directory",
			filepath.Dir(j.path), ErrJournalInUse)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return damagedJournal(j.path, err)
	case err != nil:
		return fmt.Errorf("open the agent's journal %s: %w", j.path, err)
	}
	j.db = db
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{journalIdentityBucket, journalLeaseBucket} {
			if _, e := tx.CreateBucketIfNotExists(name); e != nil {
				return e
			}
		}
		return nil
	})
	if err != nil {
		return damagedJournal(j.path, err)
	}
	if _, _, err := j.read(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(j.path))
}

// Load returns the identity (zero in a new journal) and the leases by token.
func (j *Journal) Load() (id JournalIdentity, leases []JournalLease, err error) {
	err = j.guard(func() error {
		id, leases, err = j.read()
		return err
	})
	return id, leases, err
}

func (j *Journal) read() (id JournalIdentity, leases []JournalLease, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(journalIdentityBucket).Get(journalIdentityKey); b != nil {
			if err := journalDecode(b, &id); err != nil {
				return damagedJournal(j.path, err)
			}
		}
		return tx.Bucket(journalLeaseBucket).ForEach(func(k, v []byte) error {
			var l JournalLease
			err := journalDecode(v, &l)
			if err == nil && string(journalKey(l.Assignment.Lease.ID)) != string(k) {
				err = fmt.Errorf("lease %s is filed under another key", l.Assignment.Lease.ID)
			}
			if err != nil {
				return damagedJournal(j.path, err)
			}
			leases = append(leases, l)
			return nil
		})
	})
	return id, leases, err
}

// Commit makes c durable before it returns. After an error the journal holds
// what it held before.
func (j *Journal) Commit(c JournalChange) error {
	if c.Empty() {
		return nil
	}
	return j.guard(func() error {
		err := j.db.Update(func(tx *bbolt.Tx) error { return c.apply(tx) })
		if err != nil {
			return fmt.Errorf("write the agent's journal %s: %w", j.path, err)
		}
		return nil
	})
}

func (c *JournalChange) apply(tx *bbolt.Tx) error {
	if c.Identity != nil {
		b, err := journalEncode(c.Identity)
		if err != nil {
			return err
		}
		if err := tx.Bucket(journalIdentityBucket).Put(journalIdentityKey, b); err != nil {
			return err
		}
	}
	leases := tx.Bucket(journalLeaseBucket)
	for i := range c.Put {
		b, err := journalEncode(&c.Put[i])
		if err != nil {
			return err
		}
		if err := leases.Put(journalKey(c.Put[i].Assignment.Lease.ID), b); err != nil {
			return err
		}
	}
	for _, t := range c.Delete {
		if err := leases.Delete(journalKey(t)); err != nil {
			return err
		}
	}
	return nil
}

// Path is the journal's file.
func (j *Journal) Path() string { return j.path }

// Close unlocks the journal. Idempotent.
func (j *Journal) Close() error {
	j.closing.Do(func() { j.closed = j.db.Close() })
	return j.closed
}

// guard turns what bbolt does about a damaged page, a panic or a fault in its
// memory map, into ErrJournalDamaged.
func (j *Journal) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = damagedJournal(j.path, fmt.Errorf("%v", r))
		}
	}()
	return f()
}

func damagedJournal(path string, cause error) error {
	return fmt.Errorf("the %w (%s: %w): its tasks run on to the end of their leases; move the file away and start the agent with --take-over to register anew",
		ErrJournalDamaged, path, cause)
}
