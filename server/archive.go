package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

const (
	// archiveEvery is how long what happened may wait to be archived, idleEvery
	// the same when it was nothing but time passing.
	archiveEvery = time.Second
	idleEvery    = time.Minute
	// maxArchiveTx is how much goes into one transaction, in events and tasks,
	// and wakes the writer before its time.
	maxArchiveTx = 16_384
	// maxArchiveQueue bounds what waits; what finds it full is fetched from
	// the other servers later.
	maxArchiveQueue = 1 << 18
	// snapshotWait bounds how long a snapshot waits for the archive.
	snapshotWait = 20 * time.Second
	// scrubPause is between the portions in which the archive is checked.
	scrubPause = 20 * time.Millisecond
)

// An archiver writes this server's history archive from the machine's outputs,
// off the path of Apply. It never makes Apply wait: an output that finds the
// queue full is a gap, like those that a restored snapshot or a damaged file
// leave, and gaps are filled from the other servers (archive_fill.go).
//
// A snapshot waits until the archive is durable up to its index, so a restart
// applies again, and offers again, all that was not durable.
type archiver struct {
	s    *Server
	dir  *store.Dir
	max  int64         // bytes
	work chan struct{} // there is something to write
	gaps chan struct{} // there may be something to fetch

	mu      sync.Mutex // guards below
	queue   []store.ArchiveEntry
	weight  int                  // of queue, in events and tasks
	jobs    int                  // retired, in queue or being written
	urgent  bool                 // somebody waits
	offered uint64               // newest output seen
	lost    uint64               // newest index whose outputs are not in queue; 0: none
	written uint64               // nothing up to it is in queue or being written
	known   gpuai.IndexRange     // written before this start
	waiters []archiveWaiter      //
	pending []store.ArchiveEntry // being written, by the writer alone
	since   time.Time            // that queue is not empty

	dbMu    sync.RWMutex // guards below; held for reading while db is used
	db      *store.Archive
	trouble string // told last

	wg                           sync.WaitGroup
	stop                         context.CancelFunc
	hopeless                     atomic.Bool // no server that answers has what is missing
	dropped, overflows, rebuilds atomic.Uint64
}

type archiveWaiter struct {
	index uint64
	done  chan struct{}
}

// openArchive makes the archiver. An archive that cannot be opened keeps no
// server from serving.
func (s *Server) openArchive(dir *store.Dir) {
	a := &archiver{s: s, dir: dir, max: s.cfg.ArchiveMax, work: make(chan struct{}, 1), gaps: make(chan struct{}, 1)}
	s.archive = a
	db, err := store.OpenArchive(dir)
	if err != nil {
		a.fix(nil, err)
		return
	}
	a.db = db
	st := db.State()
	if n := len(st.Covered); n > 0 {
		a.known = st.Covered[n-1]
	}
}

// start begins to write; the machine was made from a snapshot at an index.
func (a *archiver) start(restored uint64) {
	a.missed(restored)
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	a.wg.Go(func() { a.run(ctx) })
	a.wg.Go(func() { a.scrub(ctx) })
	a.s.wg.Go(func() { a.fill(a.s.ctx) }) // which reads the log: it must end before the node does
}

// close writes what is there and ends. No output may come any more.
func (a *archiver) close() error {
	if a.stop != nil {
		a.stop()
		a.wg.Wait()
		a.flush(true)
	}
	a.dbMu.Lock()
	defer a.dbMu.Unlock()
	if a.db == nil {
		return nil
	}
	db := a.db
	a.db = nil
	return db.Close()
}

// offer takes an output. It does not block.
func (a *archiver) offer(out *fsm.Output) {
	weight := weightOf(out.Events, out.Retired, out.Audit)
	a.mu.Lock()
	a.offered = max(a.offered, out.Index)
	n := len(a.queue)
	switch {
	case a.known.From <= out.Prev+1 && out.Index <= a.known.To: // applied again
		if n == 0 && a.pending == nil {
			a.written = max(a.written, out.Index)
		} else {
			a.lost = max(a.lost, out.Index)
		}
	case n > 0 && a.weight+weight > maxArchiveQueue:
		a.lost = max(a.lost, out.Index)
		a.overflows.Add(1)
	case weight == 0 && n > 0 && a.queue[n-1].Upto == out.Prev:
		a.queue[n-1].Upto = out.Index
	default:
		if n == 0 {
			a.since = time.Now()
		}
		a.queue = append(a.queue, store.ArchiveEntry{
			Prev: out.Prev, Index: out.Index, Upto: out.Index, Events: out.Events, Retired: out.Retired, Audit: out.Audit,
		})
		a.weight += weight
		a.jobs += len(out.Retired)
	}
	full := a.weight >= maxArchiveTx
	a.mu.Unlock()
	if full {
		nudge(a.work)
	}
}

// auditWeight is how many bytes of the audit count as one event.
const auditWeight = 64

// weightOf is what an entry counts, in events, jobs and tasks.
func weightOf(events []gpuai.Event, retired []gpuai.RetiredJob, audit []byte) int {
	n := len(events) + (len(audit)+auditWeight-1)/auditWeight
	for i := range retired {
		n += 1 + len(retired[i].Tasks)
	}
	return n
}

// missed notes that outputs up to an index were never offered.
func (a *archiver) missed(index uint64) {
	a.mu.Lock()
	a.offered, a.lost = max(a.offered, index), max(a.lost, index)
	a.urgent = true
	a.mu.Unlock()
	nudge(a.work)
}

// await returns once everything up to an index that was offered is durable.
func (a *archiver) await(ctx context.Context, index uint64) error {
	a.mu.Lock()
	if a.written >= index {
		a.mu.Unlock()
		return nil
	}
	w := archiveWaiter{index: index, done: make(chan struct{})}
	a.waiters = append(a.waiters, w)
	a.urgent = true
	a.mu.Unlock()
	nudge(a.work)
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		a.mu.Lock()
		defer a.mu.Unlock()
		for i := range a.waiters {
			if a.waiters[i].done == w.done {
				a.waiters = append(a.waiters[:i], a.waiters[i+1:]...)
				break
			}
		}
		return fmt.Errorf("wait for the history archive to reach index %d: %w", index, ctx.Err())
	}
}

// settle waits, for a moment, until the archive has every job that a state at
// an index no longer has.
func (a *archiver) settle(ctx context.Context, index uint64) {
	a.mu.Lock()
	behind, to := a.jobs > 0 || a.offered < index, max(a.offered, index)
	a.mu.Unlock()
	if behind {
		a.awaitFor(ctx, to)
	}
}

// awaitAll waits, for a moment, until all that was offered is durable.
func (a *archiver) awaitAll(ctx context.Context) {
	a.mu.Lock()
	to := a.offered
	a.mu.Unlock()
	a.awaitFor(ctx, to)
}

func (a *archiver) awaitFor(ctx context.Context, to uint64) {
	ctx, cancel := context.WithTimeout(ctx, 2*archiveEvery)
	defer cancel()
	_ = a.await(ctx, to) // what can be read will be
}

// beforeSnapshot is raft's BeforeSnapshot.
func (a *archiver) beforeSnapshot(index uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotWait)
	defer cancel()
	if err := a.await(ctx, index); err != nil {
		a.s.log.Error("a snapshot is written before the history archive is: should this server crash now, it will fetch what is missing from the others", "index", index, "error", err)
	}
}

// run writes until ctx ends.
func (a *archiver) run(ctx context.Context) {
	every := time.NewTicker(archiveEvery)
	defer every.Stop()
	for {
		select {
		case <-a.work:
			a.flush(false)
		case <-every.C:
			a.flush(false)
		case <-ctx.Done():
			return
		}
	}
}

// flush writes what waits, if it is due. What could not be written is tried
// again the next time.
func (a *archiver) flush(now bool) {
	entries, lost, ok := a.take(now)
	if !ok {
		return
	}
	err := a.use(func(db *store.Archive) error {
		for len(entries) > 0 {
			n := portion(entries)
			if err := db.Append(entries[:n]); err != nil {
				return err
			}
			entries = entries[n:]
		}
		if err := db.Reached(lost); err != nil {
			return err
		}
		jobs, err := db.Trim(a.max)
		a.dropped.Add(uint64(jobs))
		return err
	})
	a.done(entries, lost, err)
}

// portion is how many entries go into one transaction.
func portion(entries []store.ArchiveEntry) int {
	weight := 0
	for i := range entries {
		if weight >= maxArchiveTx {
			return i
		}
		weight += weightOf(entries[i].Events, entries[i].Retired, entries[i].Audit)
	}
	return len(entries)
}

// take moves the queue to the writer, if it is due.
func (a *archiver) take(now bool) (entries []store.ArchiveEntry, lost uint64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	idle := a.weight == 0 && time.Since(a.since) < idleEvery
	if !now && !a.urgent && a.pending == nil && (len(a.queue) == 0 || idle) {
		return nil, 0, false
	}
	a.pending = append(a.pending, a.queue...)
	a.queue, a.weight, a.urgent = nil, 0, false
	return a.pending, a.lost, true
}

// done notes how far the writer came: what is left of the entries was not
// written.
func (a *archiver) done(left []store.ArchiveEntry, lost uint64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.pending[:len(a.pending)-len(left)] {
		a.jobs -= len(e.Retired)
		a.written = max(a.written, e.Upto)
	}
	a.pending = left
	if err != nil {
		a.giveUpSome()
		return
	}
	a.pending, a.written = nil, max(a.written, lost)
	if a.lost == lost {
		a.lost = 0
	}
	if lost > 0 {
		nudge(a.gaps)
	}
	kept := a.waiters[:0]
	for _, w := range a.waiters {
		if w.index <= a.written {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	a.waiters = kept
}

// giveUpSome bounds what waits while nothing can be written: the other servers
// have it. The caller holds a.mu.
func (a *archiver) giveUpSome() {
	weight := 0
	for i := range a.pending {
		weight += weightOf(a.pending[i].Events, a.pending[i].Retired, a.pending[i].Audit)
	}
	if weight < maxArchiveQueue {
		return
	}
	for i := range a.pending {
		a.jobs -= len(a.pending[i].Retired)
		a.lost = max(a.lost, a.pending[i].Upto)
	}
	a.pending = nil
	a.overflows.Add(1)
}

// errNoArchive is returned while there is no archive to read or write.
var errNoArchive = errors.New("the history archive cannot be opened")

// use calls f with the archive. One that turns out damaged is replaced, and one
// that could not be opened is tried again.
func (a *archiver) use(f func(db *store.Archive) error) error {
	a.dbMu.RLock()
	db := a.db
	err := errNoArchive
	if db != nil {
		err = f(db)
	}
	a.dbMu.RUnlock()
	if errors.Is(err, store.ErrArchiveDamaged) || db == nil {
		a.fix(db, err)
	}
	return err
}

// fix replaces an archive that is damaged, or opens one where there is none.
func (a *archiver) fix(bad *store.Archive, cause error) {
	a.dbMu.Lock()
	defer a.dbMu.Unlock()
	if a.db != bad {
		return // somebody was faster
	}
	if errors.Is(cause, store.ErrArchiveDamaged) {
		if bad != nil {
			bad.Abandon()
		}
		a.db = nil
		aside, err := store.SetArchiveAside(a.dir)
		if err != nil {
			a.tell("a damaged history archive cannot be replaced", err)
			return
		}
		a.rebuilds.Add(1)
		a.s.log.Error("the history archive was damaged: it is set aside, and rebuilt from the other servers", "set_aside", aside, "damage", cause)
	}
	db, err := store.OpenArchive(a.dir)
	if err != nil {
		a.tell("the history archive cannot be opened: jobs stay in the region's memory meanwhile", err)
		return
	}
	a.db, a.trouble = db, ""
	a.mu.Lock()
	a.known = gpuai.IndexRange{}
	reached := a.written
	a.mu.Unlock()
	if err := db.Reached(reached); err != nil {
		a.s.log.Error("the new history archive cannot be written", "error", err)
	}
	nudge(a.gaps)
}

// tell logs a trouble once. The caller holds dbMu.
func (a *archiver) tell(what string, err error) {
	if now := what + err.Error(); a.trouble != now {
		a.trouble = now
		a.s.log.Error(what, "error", err)
	}
}

// current returns the archive, nil when there is none. It may be closed any
// time.
func (a *archiver) current() *store.Archive {
	a.dbMu.RLock()
	defer a.dbMu.RUnlock()
	return a.db
}

// scrub reads the archive once after a start, so that damage is found while the
// other servers still have what was lost. It holds nothing meanwhile.
func (a *archiver) scrub(ctx context.Context) {
	db := a.current()
	if db == nil {
		return
	}
	err := db.Scrub(ctx, func() {
		select {
		case <-time.After(scrubPause):
		case <-ctx.Done():
		}
	})
	if errors.Is(err, store.ErrArchiveDamaged) {
		a.fix(db, err)
	}
}
