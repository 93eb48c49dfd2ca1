package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// errFull is what fails for want of room.
var errFull = errors.New("the image cache is full")

// kept reports whether an entry must stay: an image that is held, a blob that
// a fetch is about to unpack. mu is held.
func (s *Store) kept(e *entry) bool {
	if e.pins > 0 {
		return true
	}
	key, ok := strings.CutPrefix(e.path, imagesDir+"/")
	if !ok {
		return false
	}
	for _, held := range s.holds {
		if held == key {
			return true
		}
	}
	return false
}

// evict makes room for n more bytes: it takes the entries that were not used
// for longest, moves them out of sight and returns where they are now. mu is
// held; the caller removes them without it.
func (s *Store) evict(n int64) (doomed []string, err error) {
	total := s.reserved + n
	free := freeBytes(s.cfg.Dir)
	missing := s.cfg.KeepFree + n - free // on the disk
	if free < 0 {
		missing = 0
	}
	var candidates []*entry
	for _, e := range s.entries {
		total += e.bytes
		if !s.kept(e) {
			candidates = append(candidates, e)
		}
	}
	slices.SortFunc(candidates, func(a, b *entry) int {
		if c := a.used.Compare(b.used); c != 0 {
			return c
		}
		return strings.Compare(a.path, b.path) // blobs before images
	})
	for _, e := range candidates {
		if total <= s.cfg.MaxBytes && missing <= 0 {
			return doomed, nil
		}
		to, err := s.bury(e)
		if err != nil {
			return doomed, err
		}
		doomed = append(doomed, to)
		total -= e.bytes
		missing -= e.bytes
	}
	switch {
	case n == 0:
		return doomed, nil
	case total > s.cfg.MaxBytes:
		return doomed, fmt.Errorf("%w: %d bytes are needed, and running tasks and fetches leave %d of %d: give the node a larger image cache, or wait until other tasks end", errFull, n, s.cfg.MaxBytes-(total-n), s.cfg.MaxBytes)
	case missing > 0:
		return doomed, fmt.Errorf("%w: %d bytes are needed, and the disk of the node's image cache has %d free, of which %d stay free: its operator has to free some, or to give the agent another directory", errFull, n, free, s.cfg.KeepFree)
	}
	return doomed, nil
}

// bury takes an entry out of the cache. mu is held.
func (s *Store) bury(e *entry) (string, error) {
	to, err := os.MkdirTemp(s.path(tmpDir), "old-")
	if err == nil {
		err = os.Rename(s.path(e.path), filepath.Join(to, "gone"))
	}
	if err != nil {
		return "", fmt.Errorf("evict an image: %w", err)
	}
	delete(s.entries, e.path)
	if key, ok := strings.CutPrefix(e.path, imagesDir+"/"); ok {
		for name, k := range s.aliases {
			if k == key {
				delete(s.aliases, name)
			}
		}
	}
	return to, nil
}

// remove deletes what was evicted.
func (s *Store) remove(doomed []string) {
	for _, d := range doomed {
		_ = os.RemoveAll(d) // what stays is removed by the next Open
	}
}

// reserve promises n bytes of room, evicting what it must.
func (s *Store) reserve(n int64) error {
	s.mu.Lock()
	doomed, err := s.evict(n)
	if err == nil {
		s.reserved += n
	}
	s.mu.Unlock()
	s.remove(doomed)
	return err
}

// unreserve takes a promise back.
func (s *Store) unreserve(n int64) {
	s.mu.Lock()
	s.reserved -= n
	s.mu.Unlock()
}

// writeFile writes a file that is whole or not there, after a power cut too.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
