package offline

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// What to do about a finding.
const (
	nextRejoin  = "let the other servers go on and rebuild this one: gpuai server rejoin --wipe"
	nextVersion = "verify, and run, the newer version of gpuai that wrote it"
	nextArchive = "nothing before the start: the server sets a damaged archive aside, as archive.db.damaged, and fetches history from the other servers; one that is alone makes it from what its log still has"
	nextDelete  = "nothing at once: the older snapshot and the log hold the same; rebuild the server with gpuai server rejoin --wipe when it is convenient"
)

// maxFindings bounds a report; a torn log fails at every entry.
const maxFindings = 100

// A Finding is one thing that is wrong.
type Finding struct {
	File    string `json:"file"`
	Place   string `json:"place,omitzero"` // in the file
	Problem string `json:"problem"`
	Next    string `json:"next"` // what to do about it
	// Harmless says that the server starts and loses nothing all the same.
	Harmless bool `json:"harmless,omitzero"`
}

// A Report is what a data directory holds.
type Report struct {
	Dir       string           `json:"dir"`
	OK        bool             `json:"ok"` // there are no findings
	Server    gpuai.ServerID   `json:"server,omitzero"`
	Cluster   gpuai.ClusterID  `json:"cluster,omitzero"`
	Region    gpuai.RegionID   `json:"region,omitzero"`
	Applied   uint64           `json:"applied_index"` // by the identity: the state is at least this far
	Log       LogReport        `json:"log"`
	Snapshots []SnapshotReport `json:"snapshots"`
	State     *State           `json:"state,omitempty"`   // nil when none can be built
	Archive   *ArchiveReport   `json:"archive,omitempty"` // nil when there is none
	Findings  []Finding        `json:"findings"`
}

// An ArchiveReport is what the history archive holds.
type ArchiveReport struct {
	OK bool `json:"ok"`
	store.ArchiveCounts
	store.ArchiveState
	Bytes uint64 `json:"bytes"` // of the file
}

// A LogReport is what the log holds.
type LogReport struct {
	First    uint64 `json:"first_index"`
	Last     uint64 `json:"last_index"`
	Term     uint64 `json:"term"`     // Raft's current one
	Entries  uint64 `json:"entries"`  // whose checksum is right
	Commands uint64 `json:"commands"` // entries that the machine applies
	Bytes    uint64 `json:"bytes"`    // of entries
}

// A SnapshotReport is one snapshot.
type SnapshotReport struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Index  uint64 `json:"index"`
	Term   uint64 `json:"term"`
	Level  uint32 `json:"feature_level,omitzero"`
	Epoch  uint8  `json:"epoch,omitzero"`
	Digest string `json:"digest,omitzero"`
	Bytes  uint64 `json:"bytes,omitzero"`

	path string
}

// A State is what the snapshots and the log give.
type State struct {
	From   string        `json:"from"` // the snapshot that it was built from; "" for the log alone
	Index  uint64        `json:"index"`
	Term   uint64        `json:"term"`
	Time   gpuai.Instant `json:"region_time_ms"`
	Level  uint32        `json:"feature_level"`
	Epoch  uint8         `json:"epoch"`
	Digest string        `json:"digest"`
	Nodes  uint32        `json:"nodes"`
	Jobs   uint32        `json:"jobs"`
	Leases uint32        `json:"leases"`
}

// verifier is one verification.
type verifier struct {
	Report
	look     *store.Look
	log      *store.LogLook
	identity store.Identity
	good     uint64 // last entry behind the first that can be read; 0: none
	progress func(what string, done, of uint64)
}

// Verify checks the data directory of a stopped server and changes nothing in
// it: identity, every page of the log, every entry's checksum, every snapshot,
// and that the log goes on where they end; then it builds the state from the
// oldest snapshot on which the log follows, and compares it with each newer one;
// at last every row of the history archive.
// progress, which may be nil, is called now and then.
//
// The error is of a directory that cannot be looked at, of a running server for
// one; what is wrong in it is in the report.
func Verify(ctx context.Context, dir string, progress func(what string, done, of uint64)) (Report, error) {
	look, err := store.OpenLook(dir)
	if err != nil {
		return Report{}, err
	}
	defer look.Close()
	if progress == nil {
		progress = func(string, uint64, uint64) {}
	}
	v := &verifier{look: look, progress: progress}
	v.Dir, v.Findings, v.Snapshots = look.Path(), []Finding{}, []SnapshotReport{}
	v.readIdentity()
	for _, step := range []func(context.Context) error{v.readLog, v.readSnapshots, v.replay, v.readArchive} {
		if err := step(ctx); err != nil {
			return v.Report, err
		}
	}
	if v.log != nil {
		err = v.log.Close()
	}
	v.OK = len(v.Findings) == 0
	return v.Report, err
}

func (v *verifier) found(f Finding) {
	if len(v.Findings) < maxFindings {
		v.Findings = append(v.Findings, f)
	}
}

func (v *verifier) readIdentity() {
	file := v.look.Path("identity")
	if _, err := os.Stat(v.look.Path("RESTORING")); err == nil {
		v.found(Finding{File: v.look.Path("RESTORING"), Problem: store.ErrRestoring.Error(), Next: "run that command again with the epoch and restore ID that it printed"})
	}
	var err error
	v.identity, err = v.look.Identity()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.found(Finding{File: file, Problem: "it is missing", Next: "put it back from a backup of this directory, or " + nextRejoin})
	case err != nil:
		v.found(Finding{File: file, Problem: err.Error(), Next: nextRejoin})
	}
	v.Server, v.Cluster, v.Region, v.Applied = v.identity.Server, v.identity.Cluster, v.identity.Region, v.identity.Applied
}

// readLog reads every entry.
func (v *verifier) readLog(ctx context.Context) (err error) {
	file := v.look.Path("raft.db")
	if v.log, err = v.look.OpenLog(); err != nil {
		v.log = nil
		v.found(Finding{File: file, Problem: err.Error(), Next: nextRejoin})
		return nil
	}
	v.Log = LogReport{First: v.log.First, Last: v.log.Last, Term: v.log.Term}
	if v.log.First == 0 {
		return nil
	}
	var term uint64
	whole := true
	for i := v.log.First; i <= v.log.Last; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if i%1024 == 0 {
			v.progress("reading the log", i-v.log.First, v.log.Last-v.log.First+1)
		}
		e, err := v.log.Read(i)
		if err == nil && e.Command {
			v.Log.Commands++
			if err = fsm.CheckEntry(e.Data); err != nil {
				err = fmt.Errorf("log entry %d: %w", i, err)
			}
		}
		if err == nil && (e.Term < term || e.Term > v.log.Term) {
			err = fmt.Errorf("it is of term %d, the entry before it of %d, and Raft's current term is %d", e.Term, term, v.log.Term)
		}
		if err == nil && i == v.identity.Applied && e.Term != v.identity.AppliedTerm {
			err = fmt.Errorf("it is of term %d, and this server had applied one of term %d there: it is another server's log, or another past", e.Term, v.identity.AppliedTerm)
		}
		if err != nil {
			whole = false
			v.found(Finding{File: file, Place: fmt.Sprintf("entry %d", i), Problem: err.Error(), Next: nextRejoin})
			continue
		}
		v.Log.Entries++
		v.Log.Bytes += uint64(len(e.Data))
		if term = e.Term; whole {
			v.good = i
		}
	}
	return nil
}

// readSnapshots restores each snapshot into a machine of its own.
func (v *verifier) readSnapshots(ctx context.Context) error {
	list, err := v.look.Snapshots()
	if err != nil {
		v.found(Finding{File: v.look.Path("snapshots"), Problem: err.Error(), Next: nextRejoin})
	}
	for i := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		v.progress("reading the snapshots", uint64(i), uint64(len(list)))
		s := SnapshotReport{Name: list[i].Name, Index: list[i].Index, Term: list[i].Term, path: list[i].Path}
		err := list[i].Check()
		var m *fsm.Machine
		if err == nil {
			m, err = restore(s.path, v.Region)
		}
		if err == nil {
			s.OK, s.Level, s.Epoch, s.Digest = true, m.Level(), m.Epoch(), m.Digest().String()
			if info, statErr := os.Stat(s.path); statErr == nil {
				s.Bytes = uint64(info.Size())
			}
			if m.Index() > s.Index || m.Epoch() < v.identity.Epoch {
				s.OK, err = false, fmt.Errorf("it says that it ends at index %d in epoch %d, and holds the state of index %d in epoch %d", s.Index, v.identity.Epoch, m.Index(), m.Epoch())
			}
		}
		v.Snapshots = append(v.Snapshots, s)
		if err != nil {
			v.badSnapshot(&s, err)
		}
	}
	v.covered()
	return nil
}

// readArchive reads every row of the history archive. What is wrong in it keeps
// no server from starting.
func (v *verifier) readArchive(ctx context.Context) error {
	v.progress("reading the history archive", 0, 1)
	a, err := v.look.OpenArchive()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a server without history makes it when it starts
	}
	file, before := v.look.Path("archive.db"), len(v.Findings)
	if err == nil {
		_, size := a.Size()
		v.Archive = &ArchiveReport{ArchiveState: a.State(), Bytes: uint64(size)}
		v.Archive.ArchiveCounts, err = a.Check(ctx, func(place string, err error) {
			v.found(Finding{File: file, Place: place, Problem: err.Error(), Next: nextArchive})
		})
		a.Abandon()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		v.found(Finding{File: file, Problem: err.Error(), Next: nextArchive})
	}
	if v.Archive != nil {
		v.Archive.OK = len(v.Findings) == before
	}
	return nil
}

func (v *verifier) badSnapshot(s *SnapshotReport, err error) {
	f := Finding{File: s.path, Problem: err.Error(), Next: nextRejoin}
	if errors.Is(err, fsm.ErrLevel) {
		f.Next = nextVersion
	}
	v.found(f)
}

func restore(path string, region gpuai.RegionID) (*fsm.Machine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return fsm.Restore(bufio.NewReaderSize(f, 1<<20), fsm.Options{Region: region})
}

// newest returns the newest good snapshot; false when there is none.
func (v *verifier) newest() (SnapshotReport, bool) {
	i := slices.IndexFunc(v.Snapshots, func(s SnapshotReport) bool { return s.OK })
	if i < 0 {
		return SnapshotReport{}, false
	}
	return v.Snapshots[i], true
}

// covered checks that the newest good snapshot and the log behind it are all
// that the server has applied. A damaged one that the rest makes up for is
// harmless.
func (v *verifier) covered() {
	base, _ := v.newest()
	need := v.identity.Applied
	for _, s := range v.Snapshots {
		need = max(need, s.Index)
	}
	file := v.look.Path()
	switch end := max(v.good, base.Index); {
	case v.log != nil && v.log.First > base.Index+1:
		v.found(Finding{File: file, Problem: fmt.Sprintf("the log begins at index %d and the newest good snapshot ends at %d", v.log.First, base.Index), Next: nextRejoin})
	case base.Name == "" && v.identity.Epoch > 0:
		v.found(Finding{File: file, Problem: fmt.Sprintf("no snapshot can be read, and the first state of epoch %d, which a restore began, is in no log", v.identity.Epoch), Next: nextRejoin})
	case end < need:
		v.found(Finding{File: file, Problem: fmt.Sprintf("what can be read ends at index %d, and this server had applied %d", end, need), Next: nextRejoin})
	default:
		for i := range v.Findings {
			if f := &v.Findings[i]; f.Next == nextRejoin && slices.ContainsFunc(v.Snapshots, func(s SnapshotReport) bool { return s.path == f.File }) {
				f.Next, f.Harmless = nextDelete, true
			}
		}
	}
}
