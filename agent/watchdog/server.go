package watchdog

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

const (
	socketName = "watchdog.sock"
	lockName   = "watchdog.lock"
	// linger is how long a watchdog waits for an agent with nothing to do,
	// keep how long with exit codes that no agent has taken.
	linger = 10 * time.Second
	keep   = 10 * time.Minute
)

// errQuit ends a Server that was asked to.
var errQuit = errors.New("asked to end")

// A Server is a watchdog: there is one in its process.
type Server struct {
	dir     string
	log     *slog.Logger
	pid     int
	cgroups *cgroups
	forks   chan func() // run by Run's own thread
	quit    chan error

	mu          sync.Mutex // guards below and every task
	incarnation gpuai.Incarnation
	tasks       map[gpuai.Token]*task
	byPID       map[int]*task      // by first process, until it is reaped
	execs       map[int]*execution // likewise
	agent       *agentConn         // the newest connection; nil when it is gone
	idle        int64              // CLOCK_BOOTTIME since when there is no agent
}

// Run serves the data directory dir until there has been no agent and nothing
// to do for a while, or until it is told to end by SIGTERM: then it kills every
// task first, since nothing may run without a watchdog. Call it from the main
// goroutine: its thread forks the tasks.
func Run(dir string, log *slog.Logger) error {
	runtime.LockOSThread()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the subreaper of the tasks: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	l, err := listen(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	// Under memory pressure the tasks go first, not who fences them.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0) // needs root
	s := &Server{
		dir: dir, log: log, pid: os.Getpid(), cgroups: openCgroups(dir),
		forks: make(chan func()), quit: make(chan error, 1),
		tasks: map[gpuai.Token]*task{}, byPID: map[int]*task{}, execs: map[int]*execution{}, idle: Boottime(),
	}
	defer s.cgroups.close()
	return s.run(l)
}

func (s *Server) run(l net.Listener) error {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	children := make(chan struct{}, 1)
	go s.reap(children)
	go s.accept(l)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case f := <-s.forks:
			f()
			continue
		case sig := <-signals:
			if sig == syscall.SIGTERM {
				go s.endAll()
			}
		case <-tick.C:
			if s.bored() {
				return nil
			}
		case err := <-s.quit:
			if errors.Is(err, errQuit) {
				return nil
			}
			return err
		}
		select {
		case children <- struct{}{}: // a merged signal, or none: looking is cheap
		default:
		}
	}
}

// bored reports whether the watchdog has had no agent and nothing to do.
func (s *Server) bored() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent != nil {
		return false
	}
	since := time.Duration(Boottime() - s.idle)
	for _, t := range s.tasks {
		if t.State != Exited {
			s.idle = Boottime()
			return false
		}
	}
	return since > keep || since > linger && len(s.tasks) == 0
}

// endAll kills every task and ends the watchdog when all are gone.
func (s *Server) endAll() {
	s.log.Warn("told to end, killing every task")
	for {
		left := 0
		for _, t := range s.all() {
			if t.State != Exited {
				left++
				s.end(t, ByKill, t.spec.KillBudget)
			}
		}
		if left == 0 {
			s.quit <- errQuit
			return
		}
		time.Sleep(huntAgain)
	}
}

func (s *Server) all() (out []*task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		out = append(out, t)
	}
	return out
}

// views returns every task, by token.
func (s *Server) views() (out []Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if t.failed == "" {
			out = append(out, t.Task)
		}
	}
	slices.SortFunc(out, func(a, b Task) int {
		if a.Lease < b.Lease {
			return -1
		}
		return 1
	})
	return out
}

// tell sends news of a task to the agent, if there is one. An agent that
// connects later sees it in the list.
func (s *Server) tell(t Task) {
	s.mu.Lock()
	a := s.agent
	s.mu.Unlock()
	if a != nil {
		a.send(reply{Tasks: []Task{t}})
	}
}

// An agentConn is one connection of the agent.
type agentConn struct {
	conn net.Conn
	out  chan reply
	done chan struct{}
	once sync.Once
}

func (a *agentConn) send(r reply) {
	select {
	case a.out <- r:
	case <-a.done:
	default:
		a.close() // it does not read: it will see all in the next list
	}
}

func (a *agentConn) close() {
	a.once.Do(func() {
		close(a.done)
		a.conn.Close()
	})
}

func (a *agentConn) write() {
	defer a.close()
	for {
		select {
		case r := <-a.out:
			if a.conn.SetWriteDeadline(time.Now().Add(5*time.Second)) != nil || writeMessage(a.conn, r) != nil {
				return
			}
		case <-a.done:
			return
		}
	}
}

func (s *Server) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			s.quit <- fmt.Errorf("watchdog socket: %w", err)
			return
		}
		if u, ok := conn.(*net.UnixConn); ok {
			conn = &passConn{UnixConn: u}
		}
		a := &agentConn{conn: conn, out: make(chan reply, 1024), done: make(chan struct{})}
		go a.write()
		go s.serve(a)
	}
}

// serve answers one agent. Orders are taken in the order they come; a start
// goes on in the background.
func (s *Server) serve(a *agentConn) {
	defer s.left(a)
	for {
		var r request
		if readMessage(a.conn, &r) != nil {
			return
		}
		switch r.Op {
		case opExec:
			s.serveExec(a, &r)
			return
		case opStart:
			go func() { a.send(s.answerStart(&r)) }()
		case opHello:
			s.mu.Lock()
			if old := s.agent; old != nil && old != a {
				old.close()
			}
			s.agent = a
			s.mu.Unlock()
			a.send(s.answer(&r))
		default:
			a.send(s.answer(&r))
		}
	}
}

func (s *Server) left(a *agentConn) {
	a.close()
	if pass, ok := a.conn.(*passConn); ok {
		pass.closeFiles()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == a {
		s.agent, s.idle = nil, Boottime()
	}
}

func (s *Server) answerStart(r *request) reply {
	if r.Spec == nil {
		return reply{ID: r.ID, Error: "a start needs a spec"}
	}
	t, err := s.start(r.Spec)
	if err != nil {
		return reply{ID: r.ID, Error: err.Error()}
	}
	return reply{ID: r.ID, Tasks: []Task{t}}
}

func (s *Server) answer(r *request) reply {
	out := reply{ID: r.ID}
	var err error
	switch r.Op {
	case opHello:
		err = s.hello(r.Incarnation)
		out.Tasks, out.Notes = s.views(), s.cgroups.notes
	case opList:
		out.Tasks = s.views()
	case opQuit:
		err = s.tryQuit()
	case opDeadline, opStop, opKill, opAck:
		if t := s.find(r.Lease); t != nil {
			err = s.order(t, r)
		} else if r.Op != opAck && r.Op != opKill {
			err = errors.New("no task of that lease")
		}
	default:
		err = errors.New("unknown request " + string(r.Op))
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}

func (s *Server) order(t *task, r *request) error {
	switch r.Op {
	case opDeadline:
		return s.extend(t, r.At)
	case opStop:
		go s.stop(t, *r)
	case opKill:
		s.end(t, ByKill, r.Span)
	default:
		return s.forget(t)
	}
	return nil
}

// hello learns the node's incarnation, which never goes back; 0 says nothing.
func (s *Server) hello(inc gpuai.Incarnation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if inc == 0 {
		return nil
	}
	if inc < s.incarnation {
		return fmt.Errorf("this host's node has incarnation %s, not %s", s.incarnation, inc)
	}
	s.incarnation = inc
	return nil
}

// extend moves a deadline to a later time. One that has passed has passed.
func (s *Server) extend(t *task, at int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.State == Exited || t.hunted || Boottime() >= t.Deadline {
		return errors.New("the task is over")
	}
	if at <= t.Deadline {
		return nil
	}
	t.Deadline = at
	return t.timer.set(at)
}

func (s *Server) forget(t *task) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.State != Exited {
		return errors.New("the task has not ended")
	}
	delete(s.tasks, t.Lease)
	return nil
}

func (s *Server) tryQuit() error {
	for _, t := range s.views() {
		if t.State != Exited {
			return errors.New("a task is running")
		}
	}
	select {
	case s.quit <- errQuit:
	default:
	}
	return nil
}

// lockDir makes sure that dir has one watchdog.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the watchdog's directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s has a watchdog already: %w", dir, err)
	}
	return f, nil
}

// listen makes the socket. Its path may be longer than the 107 bytes that the
// kernel takes, so the directory is named by a descriptor.
func listen(dir string) (net.Listener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("watchdog socket: %w", err)
	}
	defer d.Close()
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("watchdog socket: %w", err)
	}
	l, err := net.Listen("unix", socketIn(d))
	if err != nil {
		return nil, fmt.Errorf("watchdog socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, os.Chmod(filepath.Join(dir, socketName), 0o600)
}

func socketIn(d *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName)
}
