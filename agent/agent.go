package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/store"
)

const (
	journalFile = "journal.db"
	tasksDir    = "tasks"
	driversDir  = "drivers"
	// startTimeout bounds the start of the watchdog and of each driver.
	startTimeout = 20 * time.Second
)

// journal is what the agent needs of store.Journal.
type journal interface {
	Load() (store.JournalIdentity, []store.JournalLease, error)
	Commit(c store.JournalChange) error
	Close() error
}

// An Agent runs one node. Open it, Run it once, Close it.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	boot   string
	dialer Dialer
	inbox  chan func() // run by the loop, in order
	ended  chan struct{}
	counts *counts

	closing sync.Once
	closed  error

	// What follows belongs to the loop, before Run to Open.
	journal  journal
	identity store.JournalIdentity
	core     *decide.Core
	acts     []decide.Action
	region   gpuai.RegionID
	records  map[gpuai.Token]*store.JournalLease
	dirty    map[gpuai.Token]bool // records to be written
	workers  map[gpuai.Token]*worker
	devices  devices
	boxes    *boxes // nil: no images; not changed after Open
	lacks    error  // why there are none, where that is known
	line     *line  // the current session, nil when there is none
	lines    uint64 // sessions so far
	vault    *vault // safe for all
	// life ends with the agent, and with it what stores checkpoints.
	life    context.Context
	endLife context.CancelFunc
	saving  sync.WaitGroup
	savers  sync.Map // of *saver, that run
	trash   *trash
	uploads *uploads
	// publishing are the checkpoints that wait for the region's answer, by lease.
	publishing map[gpuai.Token]publishing
	asking     map[gpuai.Token]asking // starts that wait for secrets
	takeOver   bool
	drained    string // why no lease is taken
	// drainedFull: that is a full disk. pressed says why no new task is to be placed
	// here meanwhile, and said what the session was told of either.
	drainedFull bool
	pressed     string
	said        *gpuai.Refusal
	halt        error // what Run ends with

	collecting sync.Mutex // one looks for old attempts at a time

	mu   sync.Mutex // guards below
	wd   *watchdog.Client
	live map[gpuai.Token]bool // tasks that may still write output
}

// Open prepares an agent: it locks its data directory, starts its drivers, and
// starts its watchdog or finds the one that is there. Tasks that run already
// go on. Each error is one sentence that says what to do.
func Open(cfg Config) (*Agent, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	cfg.DataDir = dir
	a := &Agent{
		cfg: cfg, log: cfg.Logger.With("node", string(cfg.Node)), takeOver: cfg.TakeOver,
		inbox: make(chan func(), 1024), ended: make(chan struct{}), region: gpuai.DefaultRegion,
		records: map[gpuai.Token]*store.JournalLease{}, dirty: map[gpuai.Token]bool{},
		vault: newVault(), publishing: map[gpuai.Token]publishing{}, asking: map[gpuai.Token]asking{},
		workers: map[gpuai.Token]*worker{}, live: map[gpuai.Token]bool{},
		devices: devices{unclean: map[gpuai.DeviceID]string{}, bad: map[gpuai.DeviceID]bool{}},
	}
	a.life, a.endLife = context.WithCancel(context.Background())
	a.counts = newCounts(a)
	if err := a.open(); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Agent) open() (err error) {
	if a.boot, err = bootID(); err != nil {
		return err
	}
	if a.dialer = a.cfg.Dialer; a.dialer == nil {
		if a.dialer, err = newClientDialer(&a.cfg); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(a.path(tasksDir), 0o700); err != nil {
		return fmt.Errorf("create the agent's data directory: %w", err)
	}
	// The lock comes first: what follows must be this agent's alone.
	j, err := store.OpenJournal(a.path(journalFile))
	if err != nil {
		return err
	}
	a.journal = j
	if err := a.identify(); err != nil {
		return err
	}
	if a.trash, err = newTrash(a.path(trashDir), a.log); err != nil {
		return err
	}
	a.saving.Go(func() { a.trash.run(a.life) })
	if a.uploads, err = newUploads(a); err != nil {
		return fmt.Errorf("create the agent's data directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := a.startDrivers(ctx); err != nil {
		return err
	}
	if err := a.openBoxes(ctx); err != nil {
		return err
	}
	a.offerExec()
	a.offerSecrets()
	if err := a.adopt(ctx); err != nil {
		return err
	}
	if err := a.keepBoxes(); err != nil {
		return err
	}
	for range uploaders {
		a.saving.Go(func() { a.uploads.run(a.life) })
	}
	return a.counts.register(a.cfg.Metrics)
}

// identify reads who the agent is, or makes a new identity.
func (a *Agent) identify() error {
	id, leases, err := a.journal.Load()
	if err != nil {
		return err
	}
	if id.Nonce != "" && id.Node != a.cfg.Node {
		return fmt.Errorf("data directory %s is that of node %s, not of %s: give this node another directory", a.cfg.DataDir, id.Node, a.cfg.Node)
	}
	fresh := id.Nonce == ""
	if fresh {
		id = store.JournalIdentity{Node: a.cfg.Node, Nonce: newNonce(), BootID: a.boot}
	}
	if id.BootID == a.boot {
		for d, why := range id.Unclean {
			a.devices.unclean[d] = why
		}
	} else {
		id.Unclean = nil // a reboot cleans
	}
	a.identity = id
	for i := range leases {
		a.records[leases[i].Assignment.Lease.ID] = &leases[i]
	}
	if fresh {
		return a.journal.Commit(store.JournalChange{Identity: &id})
	}
	return nil
}

func (a *Agent) startDrivers(ctx context.Context) error {
	a.devices.drivers = append(a.devices.drivers, a.cfg.testDrivers...)
	for _, c := range a.cfg.Drivers {
		if c.Logger == nil {
			c.Logger = a.log
		}
		if c.SocketDir == "" {
			c.SocketDir = a.path(driversDir)
		}
		h, err := plugins.Start(ctx, c)
		if err != nil {
			return fmt.Errorf("start driver %s: %w", c.Name, err)
		}
		a.devices.drivers = append(a.devices.drivers, driver{c.Name, h})
	}
	return nil
}

// Run runs the agent until ctx ends, and returns nil then. Another error means
// that the agent must not go on until its operator has acted: the region knows
// another agent by this node's identity, or refuses this one.
func (a *Agent) Run(ctx context.Context) error {
	// The helpers outlive ctx until the loop has wound up.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.connect(inner) })
	if a.cfg.Identity != nil {
		wg.Go(func() { a.keepIdentity(inner) })
	}
	wg.Go(func() { a.guardWatchdog(inner) })
	wg.Go(func() { a.watchClean(inner) })
	wg.Go(func() { a.watchDisk(inner) })
	if a.boxes != nil {
		wg.Go(func() { a.boxes.net.Watch(inner) })
	}
	for _, d := range a.devices.drivers {
		wg.Go(func() { a.watchDriver(inner, d) })
		if a.cfg.Metrics != nil {
			wg.Go(func() { a.measure(inner, d) })
		}
	}
	defer cancel()
	defer close(a.ended)
	return a.loop(ctx)
}

// Close ends what Open started. Tasks go on under the watchdog, unless
// Config.StopTasks ended them; with none left the watchdog ends too. Call it
// after Run has returned. Idempotent.
func (a *Agent) Close() error {
	a.closing.Do(func() {
		a.endLife()
		a.awaitSaving()
		if wd := a.watchdog(); wd != nil {
			if !a.leavesExits(wd) {
				_ = wd.Quit() // refuses while a task runs; it ends by itself later
			}
			_ = wd.Close()
		}
		for _, d := range a.devices.drivers {
			a.closed = errors.Join(a.closed, d.Close())
		}
		if a.boxes != nil {
			a.closed = errors.Join(a.closed, a.boxes.net.Close())
		}
		a.counts.close(a.cfg.Metrics)
		if a.journal != nil {
			a.closed = errors.Join(a.closed, a.journal.Close())
		}
	})
	return a.closed
}

// awaitSaving waits for what stores checkpoints, but not for a disk or a store
// that does not answer.
func (a *Agent) awaitSaving() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.saving.Wait()
	}()
	select {
	case <-done:
	case <-time.After(finishBound):
		a.log.Error("what stores checkpoints does not end, going on without it")
	}
}

// leavesExits reports whether the watchdog has exits that the next life of the
// agent is to report.
func (a *Agent) leavesExits(wd *watchdog.Client) bool {
	tasks, err := wd.List()
	return err == nil && slices.ContainsFunc(tasks, func(t watchdog.Task) bool {
		r := a.records[t.Lease]
		return r != nil && r.State != store.JournalEnded
	})
}

func (a *Agent) path(name string) string { return filepath.Join(a.cfg.DataDir, name) }

// taskDir is a lease's directory.
func (a *Agent) taskDir(t gpuai.Token) string { return filepath.Join(a.path(tasksDir), t.String()) }

// watchdog is the connection of the moment.
func (a *Agent) watchdog() *watchdog.Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wd
}

// setLive notes whether a task may still write output.
func (a *Agent) setLive(t gpuai.Token, live bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if live {
		a.live[t] = true
	} else {
		delete(a.live, t)
	}
}

func (a *Agent) isLive(t gpuai.Token) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live[t]
}

// post has the loop run f; it gives up when the loop has ended.
func (a *Agent) post(f func()) {
	select {
	case a.inbox <- f:
	case <-a.ended:
	}
}
