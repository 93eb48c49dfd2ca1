package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gpuai/gpuai/integration/chaos/loopfs"
)

const (
	// volumeBytes is the size of a server's disk; its file is sparse.
	volumeBytes = 256 << 20
	// canary is a file that is written and not synced before each power cut: it
	// must not survive, or the cut showed nothing.
	canary = "canary"
)

// playPowerCuts takes the power from one server, and from all at once.
func playPowerCuts(s *scene) error {
	const expected = "after the disks are mounted again and the servers started nothing is lost, keys answer as before, the digests are equal"
	one := s.row("3", "power cut of one server", expected)
	if err := loopfs.Available(); err != nil {
		s.skip(one, err)
		s.skip(s.row("3", "power cut of all servers", expected), err)
		return nil
	}
	one.Recovered = "from the cut to the first lease of a job submitted after it"
	err := s.powerCuts(one, s.counts.powerOne, func(r *region) []*member { return []*member{r.members[s.rng.IntN(3)]} })
	if err != nil {
		return err
	}
	all := s.row("3", "power cut of all servers", expected)
	all.Recovered = "from the cut to the first lease of a job submitted after it"
	return s.powerCuts(all, s.counts.powerAll, func(r *region) []*member { return r.members })
}

// powerCuts cuts the power of those that pick returns, round after round.
func (s *scene) powerCuts(w *row, rounds int, pick func(*region) []*member) error {
	volumes := map[string]*loopfs.Volume{}
	canaries := 0
	shape := func(_ int, m *member) error {
		v, err := loopfs.New(m.dir+".img", m.dir+".disk", volumeBytes)
		if err != nil {
			return err
		}
		s.cleanup(func() error {
			if _, err := os.Stat(filepath.Join(v.Dir, "data")); err != nil {
				return nil // it is not mounted
			}
			return v.Unmount()
		})
		m.dir = filepath.Join(v.Dir, "data")
		volumes[m.dir] = v
		return nil
	}
	err := s.inRegionsOf(w, rounds, shape, func(r *region, round int) error {
		if err := r.ledger.await(20); err != nil {
			return err
		}
		victims := pick(r)
		var of []*loopfs.Volume
		for _, m := range victims {
			m.proc.MayEnd() // it may see its disk fail before it is killed
			of = append(of, volumes[m.dir])
		}
		cut := time.Now()
		lost, err := powerCycle(victims, of)
		if err != nil {
			return err
		}
		canaries += lost
		if err := r.startAll(); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		took, err := r.ledger.firstPlacement(cut, r.members)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		w.recovered(took)
		s.say("%s, round %d of %d: %d canaries lost, first new placement after %d ms", w.Fault, round+1, rounds, lost, took.Milliseconds())
		return nil
	})
	w.note("%d files that were written and not synced before the cuts were gone after them", canaries)
	if err == nil && canaries == 0 {
		w.fail("every canary survived: the cuts lost nothing at all, so they show nothing")
	}
	return err
}

// powerCycle cuts the power of servers' volumes, kills the servers, and mounts
// the volumes again. It returns how many canaries were lost.
func powerCycle(servers []*member, volumes []*loopfs.Volume) (lost int, err error) {
	for _, v := range volumes {
		if err := os.WriteFile(filepath.Join(v.Dir, canary), []byte("not synced\n"), 0o600); err != nil {
			return 0, fmt.Errorf("write a canary: %w", err)
		}
	}
	var errs []error
	for _, v := range volumes {
		errs = append(errs, v.Cut())
	}
	for _, m := range servers {
		errs = append(errs, m.proc.Kill())
	}
	for _, v := range volumes {
		errs = append(errs, v.Unmount(), v.Mount())
		file := filepath.Join(v.Dir, canary)
		if b, err := os.ReadFile(file); err != nil || len(b) == 0 {
			lost++
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return lost, errors.Join(errs...)
}
