package offline

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// A Target is a data directory to restore into.
type Target struct {
	Server gpuai.ServerID // "": whom the directory's identity names
	Dir    string
}

// A RestoreConfig says what to restore where.
type RestoreConfig struct {
	File    string         // the backup
	Targets []Target       // on this machine
	Members []store.Member // all servers of the restored region, with their Raft addresses
	// Epoch and RestoreID are those of a restore that was begun on another
	// machine; 0 and "" begin one.
	Epoch     uint8
	RestoreID string
	// MaxTTL is the longest TTL that a lease of the region may have had since
	// the backup; 0 is gpuai.MaxLeaseTTL.
	MaxTTL gpuai.Duration
	DryRun bool // check everything, write nothing
}

// A Restored says what a restore made.
type Restored struct {
	Backup    fsm.SnapshotInfo `json:"backup"`
	Epoch     uint8            `json:"epoch"`
	RestoreID string           `json:"restore_id"`
	// Cluster is the ID of the restored region's Raft group: a new one, so that
	// servers of the old keep away.
	Cluster gpuai.ClusterID  `json:"cluster"`
	Index   uint64           `json:"index"`
	Digest  string           `json:"digest"` // equal on all servers
	Level   uint32           `json:"feature_level"`
	Ended   uint32           `json:"leases_ended"`
	Quiet   gpuai.Duration   `json:"quiet_ms"` // from the first election: nothing is granted
	Servers []RestoredDir    `json:"servers"`
	Missing []gpuai.ServerID `json:"missing"` // members that are to be restored elsewhere
	DryRun  bool             `json:"dry_run,omitzero"`
}

// A RestoredDir is one data directory that was restored into.
type RestoredDir struct {
	Server gpuai.ServerID `json:"server"`
	Dir    string         `json:"dir"`
	Aside  string         `json:"aside"` // where what it held was moved
	// History is what the server's archive begins with.
	History KeptHistory `json:"history"`
}

// Restore rewrites a backup into the first state of a new epoch and makes it
// the state of each target. Everything is checked before the first directory is
// touched. Its errors are sentences for the operator.
func Restore(c *RestoreConfig) (Restored, error) {
	out := Restored{DryRun: c.DryRun, Missing: []gpuai.ServerID{}, Servers: []RestoredDir{}}
	if c.MaxTTL == 0 {
		c.MaxTTL = gpuai.MaxLeaseTTL
	}
	m, err := c.read(&out)
	if err != nil {
		return out, err
	}
	id, err := c.restoreID()
	if err != nil {
		return out, err
	}
	if err := c.choose(&out, m); err != nil {
		return out, err
	}
	out.Ended = m.Counts().Leases
	began, past := m.Time(), pastsOf(&out.Backup, m)
	begun, err := m.BeginEpoch(fsm.NewEpoch{Epoch: out.Epoch, RestoreID: id, MaxTTL: c.MaxTTL})
	if err != nil {
		return out, err
	}
	out.RestoreID = m.RestoreID()
	out.Cluster = gpuai.ClusterID(out.RestoreID)
	out.Index, out.Digest, out.Level = m.Index(), m.Digest().String(), m.Level()
	out.Quiet = gpuai.Duration(m.QuietUntil() - began)
	aside := store.AsidePrefix + out.RestoreID[:8]
	if err := out.stopped(); err != nil && !c.DryRun {
		return out, err
	}
	for i := range out.Servers {
		s := &out.Servers[i]
		s.Aside, s.History = filepath.Join(s.Dir, aside), past.best(s.Dir)
		s.History.after(s.Dir, aside)
	}
	if c.DryRun {
		return out, nil
	}
	return out, c.install(&out, &image{m, begun, aside})
}

// An image is the first state of the epoch, what began it, and the name of the
// directories in which old state is kept.
type image struct {
	m     *fsm.Machine
	begun *fsm.Output
	aside string
}

// stopped refuses when a server runs on one of the directories.
func (r *Restored) stopped() error {
	for _, s := range r.Servers {
		look, err := store.OpenLook(s.Dir)
		if errors.Is(err, store.ErrInUse) {
			return err
		}
		if err == nil {
			look.Close()
		}
	}
	return nil
}

// read verifies the backup and restores it into a machine.
func (c *RestoreConfig) read(out *Restored) (*fsm.Machine, error) {
	f, err := os.Open(c.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if out.Backup, err = fsm.InspectSnapshot(bufio.NewReader(f)); err != nil {
		return nil, fmt.Errorf("%s is not a whole snapshot: %w", c.File, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	m, err := fsm.Restore(bufio.NewReader(f), fsm.Options{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	return m, nil
}

// restoreID returns the ID of a restore that was begun, or a new one.
func (c *RestoreConfig) restoreID() (id [16]byte, err error) {
	if c.RestoreID == "" {
		rand.Read(id[:]) // never fails
		return id, nil
	}
	b, err := hex.DecodeString(c.RestoreID)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("the restore ID %q is not one: it has 32 hexadecimal digits, and the first restore printed it", c.RestoreID)
	}
	if c.Epoch == 0 {
		return id, errors.New("a restore ID goes with the epoch that the first restore printed beside it")
	}
	return [16]byte(b), nil
}

// choose finds out whose the targets are, and the epoch: one above everything
// that the backup or a directory at hand knows.
func (c *RestoreConfig) choose(out *Restored, m *fsm.Machine) error {
	known, by := m.Epoch(), "the backup"
	for _, t := range c.Targets {
		id, epoch, err := store.Owner(t.Dir)
		if err != nil && c.Epoch == 0 {
			return fmt.Errorf("%w; or give --epoch a number above every epoch that the region had", err)
		}
		if err == nil && id.Region != "" && id.Region != out.Backup.Region {
			return fmt.Errorf("%s belongs to region %s and the backup is of region %s: restore into a server of that region, or an empty directory", t.Dir, id.Region, out.Backup.Region)
		}
		mine := c.RestoreID != "" && string(id.Cluster) == c.RestoreID && epoch == c.Epoch // restored before: again
		if epoch > known && !mine {
			known, by = epoch, t.Dir
		}
		if err := c.assign(out, t, id.Server); err != nil {
			return err
		}
	}
	for _, p := range c.Members {
		if !slices.ContainsFunc(out.Servers, func(s RestoredDir) bool { return s.Server == p.Server }) {
			out.Missing = append(out.Missing, p.Server)
		}
	}
	switch out.Epoch = c.Epoch; {
	case c.Epoch == 0 && known == 255:
		return fmt.Errorf("%s is of epoch 255, the last there is: this region cannot be restored again", by)
	case c.Epoch == 0:
		out.Epoch = known + 1
	case c.Epoch <= known:
		return fmt.Errorf("epoch %d is too low: %s knows epoch %d; restore every server again with a later one", c.Epoch, by, known)
	}
	return nil
}

// assign decides whose directory a target is.
func (c *RestoreConfig) assign(out *Restored, t Target, owner gpuai.ServerID) error {
	id := t.Server
	switch {
	case id == "" && owner == "":
		return fmt.Errorf("%s has no identity: say whose it is, as in --data a=%s", t.Dir, t.Dir)
	case id == "":
		id = owner
	case owner != "" && owner != id:
		return fmt.Errorf("%s belongs to server %s and not to %s: use that server's own directory, or an empty one", t.Dir, owner, id)
	}
	if !slices.ContainsFunc(c.Members, func(p store.Member) bool { return p.Server == id }) {
		return fmt.Errorf("%s is of server %s, which is not among the peers", t.Dir, id)
	}
	if slices.ContainsFunc(out.Servers, func(s RestoredDir) bool { return s.Server == id }) {
		return fmt.Errorf("server %s has two directories", id)
	}
	out.Servers = append(out.Servers, RestoredDir{Server: id, Dir: t.Dir})
	return nil
}

func (c *RestoreConfig) install(out *Restored, img *image) error {
	m, b := img.m, img.begun
	for _, s := range out.Servers {
		err := store.Install(s.Dir, img.aside, &store.Image{
			Identity: store.Identity{Cluster: out.Cluster, Server: s.Server, Region: out.Backup.Region, Epoch: out.Epoch, Level: out.Level},
			Members:  c.Members, Index: out.Index, Term: max(m.Term(), 1),
			History: store.History{
				From: s.History.From, Upto: out.Backup.Index,
				Begun: store.ArchiveEntry{Prev: b.Prev, Index: b.Index, Upto: b.Index, Events: b.Events},
			},
			Write: func(w io.Writer) error {
				b := bufio.NewWriterSize(w, 1<<20)
				return errors.Join(m.WriteSnapshot(b), b.Flush())
			},
		})
		if err != nil {
			return fmt.Errorf("server %s: %w (go on with the same command and --epoch %d --restore-id %s)", s.Server, err, out.Epoch, out.RestoreID)
		}
	}
	return nil
}
