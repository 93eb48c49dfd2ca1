package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gpuai/gpuai/integration/cable"
)

// stranger is whoever is no server: clients and agents.
const stranger = -1

// A window is how late packets come: at least, and at most.
type window struct{ least, most time.Duration }

// A lateness says how late what one sends to another comes; servers are named by
// their index, all others are strangers.
type lateness func(from, to int) window

// lines are cables to every server, for clients and agents and for the other
// servers, over which packets come late.
type lines struct {
	scene   *scene
	members []*member // whose packets are told apart; the others' are strangers'

	mu    sync.Mutex // guards below
	rng   *rand.Rand
	late  lateness // nil: nothing is
	count int      // pieces that were late
	total time.Duration
	lost  int // connections of which it could not be found out whose they are
}

func (s *scene) newLines() *lines {
	return &lines{scene: s, rng: rand.New(rand.NewPCG(s.run.seed, s.rng.Uint64()))}
}

// shape has everybody reach a member over cables, before its first start.
func (l *lines) shape(i int, m *member) error {
	clients, err := l.lay(m.http, func(net.Addr) int { return stranger }, i)
	if err != nil {
		return err
	}
	servers, err := l.lay(m.raft, l.whose, i)
	if err != nil {
		return err
	}
	m.http, m.advertise = clients.Addr, servers.Addr
	l.members = append(l.members, m)
	return nil
}

// lay lays one cable to a server. whose says who has connected.
func (l *lines) lay(target string, whose func(net.Addr) int, to int) (*cable.Cable, error) {
	c, err := cable.To(target)
	if err != nil {
		return nil, err
	}
	l.scene.cleanup(func() error { c.Close(); return nil })
	c.SetLag(func(near net.Addr) func(in bool) time.Duration {
		var once sync.Once
		from := stranger
		return func(in bool) time.Duration {
			if !l.on() {
				return 0
			}
			once.Do(func() { from = whose(near) })
			if in {
				return l.hold(from, to)
			}
			return l.hold(to, from)
		}
	})
	return c, nil
}

func (l *lines) on() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.late != nil
}

// hold draws how late a piece comes.
func (l *lines) hold(from, to int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.late == nil {
		return 0
	}
	w := l.late(from, to)
	if w.most == 0 {
		return 0
	}
	d := w.least + time.Duration(l.rng.Int64N(int64(w.most-w.least)+1))
	l.count++
	l.total += d
	return d
}

// set has packets come late from now on; nil ends that.
func (l *lines) set(late lateness) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = late
}

// take returns how many pieces were late since the last call, and by how much in
// the mean.
func (l *lines) take() (n int, mean time.Duration, lost int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, lost = l.count, l.lost
	if n > 0 {
		mean = l.total / time.Duration(n)
	}
	l.count, l.total, l.lost = 0, 0, 0
	return n, mean, lost
}

// whose finds out which server has connected from an address of this host.
func (l *lines) whose(near net.Addr) int {
	socket, err := socketOf(near)
	if err == nil {
		for i, m := range l.members {
			if m.proc != nil && holds(m.proc.PID(), socket) {
				return i
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost++
	return stranger
}

// socketOf returns the name that processes have for the socket of a local address,
// as their descriptors are named: "socket:[4711]".
func socketOf(a net.Addr) (string, error) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return "", fmt.Errorf("%s is no TCP address", a)
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	port := fmt.Sprintf(":%04X", tcp.Port)
	for line := range strings.Lines(string(table)) {
		// sl local_address rem_address st queues tr retrnsmt uid timeout inode
		f := strings.Fields(line)
		if len(f) > 9 && strings.HasSuffix(f[1], port) && f[9] != "0" {
			return "socket:[" + f[9] + "]", nil
		}
	}
	return "", errors.New("there is no such socket")
}

// holds reports whether a process has a socket open.
func holds(pid int, socket string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && to == socket {
			return true
		}
	}
	return false
}
