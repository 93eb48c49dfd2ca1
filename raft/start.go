package raft

import (
	"errors"
	"fmt"
	"io"
	"strings"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// startSnapshots is the snapshot store that hraft starts on. The library tries
// the snapshots from the newest to the oldest and takes the first that can be
// restored, whatever the log behind it: here one is refused behind which the
// log does not reach as far as this server has come.
type startSnapshots struct {
	hraft.SnapshotStore
	node   *Node
	why    []string // why each was refused
	level  error    // one was of a newer level: no older one may be taken
	opened string   // ID of the one tried last
	none   bool     // none will do, and the log reaches back to its beginning
}

// List returns the snapshots to try, while the server starts.
func (s *startSnapshots) List() ([]*hraft.SnapshotMeta, error) {
	if s.none && !s.node.replica.running.Load() {
		return nil, nil
	}
	return s.SnapshotStore.List()
}

// passOver reports whether this server can start without a snapshot, from the
// log alone, and has List return none then. The first state of an epoch is in
// no log.
func (s *startSnapshots) passOver() bool {
	id, _ := s.node.cfg.Dir.Identity()
	if s.level != nil || id.Epoch > 0 || store.CheckSnapshot(s.node.cfg.Dir, s.node.log.Log, 0) != nil {
		return false
	}
	s.node.cfg.Logger.Warn("none of the snapshots can be used: this server starts from its log, which reaches back to its beginning",
		"snapshots", s.node.cfg.Dir.Path("snapshots"), "why", strings.Join(s.why, "; "))
	s.none = true
	return true
}

// Open opens a snapshot, while the server starts only one that will do.
func (s *startSnapshots) Open(id string) (*hraft.SnapshotMeta, io.ReadCloser, error) {
	if s.node.replica.running.Load() {
		return s.SnapshotStore.Open(id)
	}
	s.opened = id
	if s.level != nil {
		return nil, nil, s.level
	}
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		s.note(err)
		return nil, nil, err
	}
	if err := store.CheckSnapshot(s.node.cfg.Dir, s.node.log.Log, meta.Index); err != nil {
		r.Close()
		s.note(err)
		return nil, nil, err
	}
	return meta, r, nil
}

// judge says whether a machine that was restored is of the epoch that this
// server has lived in.
func (s *startSnapshots) judge(m *fsm.Machine) error {
	if id, _ := s.node.cfg.Dir.Identity(); m.Epoch() < id.Epoch {
		return fmt.Errorf("it is of epoch %d, from before the region was restored into epoch %d", m.Epoch(), id.Epoch)
	}
	return nil
}

// note remembers why the snapshot that was opened last will not do.
func (s *startSnapshots) note(err error) {
	s.why = append(s.why, fmt.Sprintf("%s: %v", s.opened, err))
	if errors.Is(err, fsm.ErrLevel) {
		s.level = err
	}
}

// failure is the operator's sentence when no snapshot would do.
func (s *startSnapshots) failure() error {
	if s.level != nil {
		return s.level
	}
	return fmt.Errorf("%w: none of the snapshots in %s can be used (%s); rebuild this server with 'gpuai server rejoin --wipe'",
		store.ErrLost, s.node.cfg.Dir.Path("snapshots"), strings.Join(s.why, "; "))
}

// checkLevel refuses a server that is older than the state it has held, before
// anything is read.
func (c *Config) checkLevel() error {
	if id, _ := c.Dir.Identity(); id.Level > c.MaxFeatureLevel {
		return fmt.Errorf("data directory %s: %w (its state has feature level %d, this server goes to %d)", c.Dir.Path(), fsm.ErrLevel, id.Level, c.MaxFeatureLevel)
	}
	return nil
}
