package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/integration/access"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/store"
)

// A spoil is done to the newest of a server's snapshots while it is down.
type spoil struct {
	fault string
	all   bool // do it to all snapshots
	do    func(dir string) error
}

var spoils = []spoil{
	{"one bit of the newest snapshot flipped", false, func(dir string) error {
		return rewrite(filepath.Join(dir, "state.bin"), func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
	}},
	{"the newest snapshot cut in half", false, func(dir string) error {
		return rewrite(filepath.Join(dir, "state.bin"), func(b []byte) []byte { return b[:len(b)/2] })
	}},
	{"the newest snapshot of another format", false, func(dir string) error {
		return rewrite(filepath.Join(dir, "state.bin"), func([]byte) []byte { return []byte("GPUAI snapshot of a version yet to come\n") })
	}},
	{"the newest snapshot's description damaged", false, func(dir string) error {
		return rewrite(filepath.Join(dir, "meta.json"), func([]byte) []byte { return []byte("{") })
	}},
	{"every snapshot damaged", true, func(dir string) error {
		return rewrite(filepath.Join(dir, "state.bin"), func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
	}},
}

// playSnapshots spoils the snapshots of one server after the other.
func playSnapshots(s *scene) error {
	r, err := s.startRegion(3, nil)
	if err != nil {
		return err
	}
	for i := range 2 { // an older one, and the newest
		if err := r.ledger.load(fmt.Sprintf("snap%d", i)); err != nil {
			return err
		}
		if err := r.ledger.await(50); err != nil {
			return err
		}
		r.ledger.halt()
		if err := r.snapshotAll(); err != nil {
			return fmt.Errorf("make snapshots: %w", err)
		}
	}
	if err := r.ledger.load("snap"); err != nil {
		return err
	}
	for _, p := range spoils {
		expected := "the server starts from an older snapshot and the log behind it, with the same digest; or it refuses with a sentence; it is never half restored"
		w := s.row("11", p.fault, expected)
		for range s.counts.damages {
			if err := r.spoiled(w, &p); err != nil {
				return fmt.Errorf("%s: %w", p.fault, err)
			}
		}
		if err := r.ledger.account(w); err != nil {
			return err
		}
		if err := r.digests(w, r.ledger.newest()); err != nil {
			return err
		}
		s.end(w)
	}
	return nil
}

// spoiled kills a follower, spoils its snapshots and starts it.
func (r *region) spoiled(w *row, p *spoil) error {
	m, err := r.follower()
	if err != nil {
		return err
	}
	if err := m.proc.Kill(); err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(m.dir, "snapshots", "*-*"))
	if err != nil || len(dirs) < 2 {
		return fmt.Errorf("server %s has %d snapshots: %w", m.id, len(dirs), err)
	}
	slices.Sort(dirs)
	if !p.all {
		dirs = dirs[len(dirs)-1:]
	}
	for _, d := range dirs {
		for _, name := range []string{"state.bin", "meta.json"} {
			if err := copyFile(filepath.Join(d, name), filepath.Join(m.dir, filepath.Base(d)+name+".good")); err != nil {
				return err
			}
		}
		if err := p.do(d); err != nil {
			return err
		}
	}
	w.Injected++
	r.say("%s, of server %s", p.fault, m.id)
	if err := r.startsOrRefuses(w, m); err != nil {
		return err
	}
	for _, d := range dirs {
		for _, name := range []string{"state.bin", "meta.json"} {
			if err := copyFile(filepath.Join(m.dir, filepath.Base(d)+name+".good"), filepath.Join(d, name)); err != nil {
				return err
			}
		}
	}
	return r.startAll()
}

// startsOrRefuses starts a server that must become ready, or end with a
// sentence. It is down afterwards.
func (r *region) startsOrRefuses(w *row, m *member) error {
	if err := r.start(m); err != nil {
		return err
	}
	m.proc.MayEnd()
	if err := r.ledger.await(10); err != nil {
		return fmt.Errorf("the others do not go on: %w", err)
	}
	err := r.until(refusal, "server "+m.id+" to be ready, or to end", func(ctx context.Context) error {
		if !m.proc.Alive() {
			return nil
		}
		return m.api.Ready(ctx)
	})
	if err != nil {
		w.fail("%v", err)
	} else if m.proc.Alive() {
		w.note("%s: it started, from an older snapshot or the log", m.id)
		if err := r.digests(w, r.ledger.newest()); err != nil {
			return err
		}
	} else {
		r.judgeEnd(w, m, "snapshot")
	}
	return m.proc.Kill()
}

// snapshotAll stops the servers and has each write a snapshot: a server makes
// one by itself only after a million commands. The code is the servers' own,
// run in this process on their directories and ports.
func (r *region) snapshotAll() error {
	newest := r.ledger.newest()
	var errs []error
	for _, m := range r.members {
		errs = append(errs, m.proc.Kill())
	}
	var nodes []*raft.Node
	var dirs []io.Closer
	for _, m := range r.members {
		n, dir, err := r.openNode(m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		nodes, dirs = append(nodes, n), append(dirs, dir)
	}
	for _, n := range nodes {
		ctx, cancel := context.WithTimeout(r, patience)
		err := n.WaitApplied(ctx, newest)
		cancel()
		if err == nil {
			err = n.Snapshot()
		}
		errs = append(errs, err)
	}
	for _, n := range nodes {
		errs = append(errs, n.Close())
	}
	for _, d := range dirs {
		errs = append(errs, d.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return r.startAll()
}

// openNode opens a member's directory in this process.
func (r *region) openNode(m *member) (*raft.Node, io.Closer, error) {
	dir, err := store.OpenDir(m.dir)
	if err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", m.raft)
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	cfg := raft.Config{ID: gpuai.ServerID(m.id), Region: gpuai.DefaultRegion, Dir: dir, Listener: l}
	if r.access != nil {
		if cfg.Identity, err = access.Source(m.dir); err != nil {
			return nil, nil, errors.Join(err, l.Close(), dir.Close())
		}
	}
	for _, p := range r.members {
		cfg.Peers = append(cfg.Peers, raft.Peer{ID: gpuai.ServerID(p.id), Addr: p.raft})
	}
	n, err := raft.Open(cfg)
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	return n, dir, nil
}

// rewrite changes a file's bytes.
func rewrite(file string, change func([]byte) []byte) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, change(b), 0o600)
}

// without shortens paths of the run's directory for people.
func (s *scene) without(text string) string { return strings.ReplaceAll(text, s.dir, "") }
