package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai/integration/nursery"
)

const (
	logName   = "raft.db"
	pageBytes = 4096
	// refusal bounds how long a server takes to notice its damaged file.
	refusal = 20 * time.Second
	// recordEvery is how often a server records how far it has applied, with
	// a margin: an older copy of its log is noticed after that.
	recordEvery = 5 * time.Second
)

// A damage is done to a server's log while the server is down.
type damage struct {
	number, fault string
	says          string // in the sentence with which the server refuses
	do            func(r *region, m *member) error
}

const (
	saysBehind   = "behind its recorded identity"
	saysChecksum = "fails its checksum"
)

var damages = []damage{
	{"9", "raft.db emptied", saysBehind, func(_ *region, m *member) error { return os.Truncate(m.log(), 0) }},
	{"9", "raft.db removed", saysBehind, func(_ *region, m *member) error { return os.Remove(m.log()) }},
	{"9", "an older copy of raft.db put back", saysBehind, func(_ *region, m *member) error { return copyFile(m.log()+".older", m.log()) }},
	{"10", "raft.db cut in half", saysChecksum, func(_ *region, m *member) error {
		st, err := os.Stat(m.log())
		if err != nil {
			return err
		}
		return os.Truncate(m.log(), st.Size()/2)
	}},
	{"10", "a page of raft.db that is in use is zero", saysChecksum, func(r *region, m *member) error {
		return r.overwrite(m, func(page []byte, _ int) { clear(page) })
	}},
	{"10", "a page of raft.db that is in use is random", saysChecksum, func(r *region, m *member) error {
		return r.overwrite(m, func(page []byte, _ int) {
			for i := range page {
				page[i] = byte(r.rng.Uint32())
			}
		})
	}},
	{"10", "one bit of an entry in raft.db flipped", saysChecksum, func(r *region, m *member) error {
		return r.overwrite(m, func(page []byte, at int) { page[at] ^= 1 << r.rng.IntN(8) })
	}},
}

func (m *member) log() string { return filepath.Join(m.dir, logName) }

// playDamages damages the log of one server after the other.
func playDamages(s *scene) error {
	r, err := s.startRegion(3, nil)
	if err != nil {
		return err
	}
	if err := r.ledger.load("damage"); err != nil {
		return err
	}
	for _, d := range damages {
		w := s.row(d.number, d.fault, fmt.Sprintf("the server refuses to start with a sentence that has %q, and no stack trace; the other servers go on; nothing is lost", d.says))
		for range s.counts.damages {
			if err := r.damaged(w, &d); err != nil {
				return fmt.Errorf("%s: %w", d.fault, err)
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

// damaged kills a follower, damages its log, and starts it: it must refuse.
// Then it gets its log back.
func (r *region) damaged(w *row, d *damage) error {
	m, err := r.follower()
	if err != nil {
		return err
	}
	if err := m.proc.Kill(); err != nil {
		return err
	}
	if err := copyFile(m.log(), m.log()+".older"); err != nil {
		return err
	}
	if strings.Contains(d.fault, "older") { // it must have something to be older than
		if err := r.startAll(); err != nil {
			return err
		}
		r.pause(recordEvery)
		if err := m.proc.Kill(); err != nil {
			return err
		}
	} else if err := r.ledger.await(5); err != nil {
		return err
	}
	if err := copyFile(m.log(), m.log()+".good"); err != nil {
		return err
	}
	if err := d.do(r, m); err != nil {
		return err
	}
	w.Injected++
	r.say("%s, of server %s", d.fault, m.id)
	if err := r.refuses(w, m, d.says); err != nil {
		return err
	}
	if err := copyFile(m.log()+".good", m.log()); err != nil {
		return err
	}
	return r.startAll()
}

// refuses starts a server that must end with a sentence, while the others go on.
func (r *region) refuses(w *row, m *member, says string) error {
	if err := r.start(m); err != nil {
		return err
	}
	m.proc.MayEnd()
	if err := r.ledger.await(10); err != nil {
		return fmt.Errorf("the others do not go on: %w", err)
	}
	select {
	case <-m.proc.Done:
	case <-time.After(refusal):
		w.fail("server %s ran on for %s: it did not notice", m.id, refusal)
		return m.proc.Kill()
	}
	r.judgeEnd(w, m, says)
	return nil
}

// judgeEnd looks at how a server has ended: with a sentence and an exit code.
func (r *region) judgeEnd(w *row, m *member, says string) {
	text, err := os.ReadFile(m.proc.Log)
	if err != nil {
		w.fail("read the log of %s: %v", m.id, err)
	}
	last := r.without(nursery.LastLine(m.proc.Log))
	switch {
	case bytes.Contains(text, []byte("\ngoroutine ")):
		w.fail("server %s ended with a stack trace: %s", m.id, firstPanic(string(text)))
	case m.proc.ExitCode() <= 0:
		w.fail("server %s ended with exit code %d: %s", m.id, m.proc.ExitCode(), last)
	case !bytes.Contains(text, []byte(says)):
		w.fail("server %s does not say %q but %q", m.id, says, last)
	default:
		w.note("%s: %s", m.id, last)
	}
}

// firstPanic returns the line of a log that a stack trace follows.
func firstPanic(log string) string {
	for line := range strings.Lines(log) {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "unexpected fault") {
			return strings.TrimSpace(line)
		}
	}
	return "no line says why"
}

// overwrite changes a page of a server's log in which an acknowledged job is
// named. change gets the page and the name's place in it.
func (r *region) overwrite(m *member, change func(page []byte, at int)) error {
	f, err := os.OpenFile(m.log(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	all := r.ledger.entries()
	for range 1000 {
		name := all[r.rng.IntN(len(all))].name
		at := bytes.LastIndex(data, []byte(name))
		if at < 0 {
			continue
		}
		from := at / pageBytes * pageBytes
		page := data[from : from+pageBytes]
		change(page, at-from)
		_, err := f.WriteAt(page, int64(from))
		return errors.Join(err, f.Sync())
	}
	return errors.New("no acknowledged job is named in the log")
}

// copyFile copies a file, over another perhaps.
func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}
