package watchdog

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How often a hunt looks again: soon at first, then calmly.
const (
	huntAgain = 5 * time.Millisecond
	huntCalm  = 250 * time.Millisecond
	// logsAfter bounds the wait for the rest of a gone task's output.
	logsAfter = 2 * time.Second
	// cornerTries bounds how often a strike looks for new processes.
	cornerTries = 16
)

// end kills all of t. It returns at once; budget is how long it may take, in
// ns, before the task is reported as unkillable.
func (s *Server) end(t *task, by By, budget int64) {
	s.mu.Lock()
	if t.State == Exited {
		s.mu.Unlock()
		return
	}
	t.By, t.budget = max(t.By, by), budget
	begin := !t.hunted
	t.hunted = true
	s.mu.Unlock()
	if begin {
		go s.hunt(t)
	}
}

// gone is called when t's first process was reaped: what it left behind goes.
func (s *Server) gone(t *task) {
	s.mu.Lock()
	begin := !t.hunted
	t.hunted = true
	s.mu.Unlock()
	if begin {
		go s.hunt(t)
	}
}

// hunt kills until nothing of t is left, then settles it.
func (s *Server) hunt(t *task) {
	since, pause := Boottime(), huntAgain
	for !s.strike(t) {
		s.mu.Lock()
		over := t.State < Unkillable && Boottime()-since > t.budget
		if over {
			t.State = Unkillable
			t.Reason = fmt.Sprintf("not gone %v after SIGKILL", time.Duration(t.budget))
		}
		view := t.Task
		s.mu.Unlock()
		if over {
			s.tell(view)
		}
		time.Sleep(pause)
		pause = min(2*pause, huntCalm)
	}
	s.settle(t)
}

// strike kills what there is of t and reports whether nothing was.
func (s *Server) strike(t *task) bool {
	reaped := false
	select {
	case <-t.reaped:
		reaped = true
	default:
	}
	t.group.kill()
	left := s.members(t)
	if len(t.group.dirs) == 0 {
		left = s.corner(t, left)
	}
	for _, p := range left {
		_ = signalProcess(p, unix.SIGKILL) // the next look says if it worked
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(left) == 0 && (reaped || t.PID == 0)
}

// corner stops t's processes until no new one is found: without a control group
// one that forks as fast as the others are killed would never end.
func (s *Server) corner(t *task, found []process) []process {
	seen := map[int]uint64{}
	for range cornerTries {
		fresh := false
		for _, p := range found {
			if seen[p.pid] != p.start {
				seen[p.pid], fresh = p.start, true
				_ = signalProcess(p, unix.SIGSTOP) // the next look says if it worked
			}
		}
		if !fresh {
			break
		}
		found = s.members(t)
	}
	return found
}

// members returns the processes of t that can be found: in its groups, below
// its first process, and those that lost their parent and fell to this process,
// the subreaper, and are t's by their group or environment. An orphan that
// belongs to no known task counts too: nothing may run here without a lease.
func (s *Server) members(t *task) []process {
	all, err := processes()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in := map[int]bool{}
	for _, pid := range t.group.procs() {
		in[pid] = true
	}
	owner := map[int]bool{} // by child of ours: does it count as t's
	for pid := range all {
		root := rootOf(all, pid, s.pid)
		if root == 0 {
			continue
		}
		mine, known := owner[root]
		if !known {
			mine = s.owns(t, root)
			owner[root] = mine
		}
		in[pid] = in[pid] || mine
	}
	var out []process
	for pid, mine := range in {
		if p, ok := all[pid]; ok && mine && !p.zombie {
			out = append(out, p)
		}
	}
	return out
}

// owns reports whether the child of ours with this PID is t's. mu is held.
func (s *Server) owns(t *task, child int) bool {
	if first := s.byPID[child]; first != nil {
		return first == t
	}
	if e := s.execs[child]; e != nil {
		return e.task == t
	}
	lease := s.cgroups.leaseOf(child)
	if lease == 0 {
		lease, _ = leaseOf(child)
	}
	return lease == t.Lease || s.tasks[lease] == nil
}

// settle records the end of t and tells the agent.
func (s *Server) settle(t *task) {
	<-t.started
	logged := make(chan struct{})
	go func() { t.logs.Wait(); close(logged) }()
	late := time.NewTimer(logsAfter)
	select {
	case <-logged:
	case <-late.C:
	}
	late.Stop()
	oom, crowded := t.group.oom(), t.group.crowded()
	defer t.group.remove() // after the agent was told
	s.mu.Lock()
	t.timer.close()
	t.State = Exited
	t.Code, t.Reason = outcome(t.status, t.By, oom)
	if oom {
		t.Limit = LimitMemory
	} else if crowded {
		t.Limit = LimitProcesses
	}
	if crowded && t.By == ByItself && t.Code != 0 && !oom {
		t.Reason += fmt.Sprintf("; it reached its limit of %d processes", t.spec.PIDs)
	}
	if t.failed != "" {
		delete(s.tasks, t.Lease)
		s.mu.Unlock()
		return
	}
	view := t.Task
	s.mu.Unlock()
	s.tell(view)
}

// outcome returns a task's exit code, 128+n for signal n, and why it ended.
func outcome(w syscall.WaitStatus, by By, oom bool) (int32, string) {
	code := int32(w.ExitStatus())
	if w.Signaled() {
		code = 128 + int32(w.Signal())
	}
	switch {
	case by == ByDeadline:
		return code, "killed at the lease's deadline"
	case by == ByStop && w.Signaled() && w.Signal() == syscall.SIGKILL:
		return code, "killed after its stop grace"
	case by != ByItself:
		return code, ""
	case oom:
		return code, "out of memory: it used more than its memory limit"
	case w.Signaled():
		return code, "killed by signal " + w.Signal().String()
	case code != 0:
		return code, fmt.Sprintf("exit code %d", code)
	}
	return 0, ""
}

// reap waits for every child, the tasks' first processes and the orphans that
// fell to this process, whenever children says that there may be one.
func (s *Server) reap(children <-chan struct{}) {
	for range children {
		for {
			var w syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &w, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			s.mu.Lock()
			t := s.byPID[pid]
			if t != nil {
				delete(s.byPID, pid)
				t.status = w
				close(t.reaped)
			}
			if e := s.execs[pid]; e != nil {
				delete(s.execs, pid)
				e.status = w
				close(e.reaped)
			}
			s.mu.Unlock()
			if t != nil {
				s.gone(t)
			}
		}
	}
}
