package mesh

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"github.com/gpuai/gpuai"
)

// Files that the program finds open.
const (
	spaceFD  = 3 // the gang's namespace
	listenFD = 4 // where agents call
)

const (
	// lookEvery is how often the program looks whether it has members, and lonely
	// how long it goes on without.
	lookEvery = 2 * time.Second
	lonely    = 10 * time.Second
	// meetTime bounds how long peers are awaited, looked for every meetAgain.
	meetTime  = 2 * time.Second
	meetAgain = 10 * time.Millisecond
	// maxLines bounds what it says in its life.
	maxLines = 200
	// maxRequest bounds what an agent says at a time: all peers of a large gang.
	maxRequest = 1 << 20
)

// What keeps the buffers of a busy device, of 64 KiB each, from piling up as garbage:
// there is a process for each gang, and the host's memory is its tasks'.
const (
	gcPercent  = 25
	softMemory = 64 << 20
)

// nobody is who the program is once its device is there.
const nobody = 65534

// A request is what an agent says, one JSON value after the other.
type request struct {
	Peers *[]Peer `json:"peers,omitempty"` // the only ones from now on
	Await bool    `json:"await,omitempty"` // answer when all peers are met, or after meetTime
	Quit  bool    `json:"quit,omitempty"`
}

// An answer follows each request, and the first one goes before all.
type answer struct {
	Point *gpuai.MeshPoint `json:"point,omitempty"` // of the first
	Error string           `json:"error,omitempty"`
}

// Main is the program gpuai-mesh; it returns the exit code. args are those after the
// program's name.
func Main(args []string) int {
	flags := flag.NewFlagSet("gpuai-mesh", flag.ContinueOnError)
	ports := flags.String("ports", "0-0", "UDP ports MIN-MAX to take one of")
	mtu := flags.Int("mtu", DefaultMTU, "of the device")
	members := flags.String("members", "", "beginning of the names of the members' links")
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	p, errPorts := ParsePorts(*ports)
	if err != nil || errPorts != nil || *members == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "gpuai-mesh links a gang's network with those on other hosts; the agent starts it")
		return 2
	}
	if err := serve(p, *mtu, *members); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A server is the program.
type server struct {
	mu   sync.Mutex // guards wire's peers
	wire *wire
	end  chan error
}

func serve(ports Ports, mtu int, members string) error {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(softMemory)
	space := os.NewFile(spaceFD, "the gang's network")
	file := os.NewFile(listenFD, "socket")
	l, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("the agent's socket: %w", err)
	}
	_ = file.Close()
	links, err := openLinks(space)
	if err != nil {
		return err
	}
	s := &server{end: make(chan error, 1)}
	if s.wire, err = newWire(space, ports, mtu, logger()); err != nil {
		return err
	}
	defer s.wire.close()
	_ = space.Close() // the device holds it
	if err := giveUpPrivileges(); err != nil {
		return err
	}
	go s.accept(l)
	go s.watch(links, members)
	return <-s.end
}

// logger writes errors, up to a bound.
func logger() *device.Logger {
	var lines atomic.Int64
	return &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		if lines.Add(1) <= maxLines {
			fmt.Fprintf(os.Stderr, format+"\n", args...)
		}
	}}
}

// openLinks returns what lists the links of a namespace, from anywhere.
func openLinks(space *os.File) (*netlink.Handle, error) {
	links, err := handleIn(space)
	if err != nil {
		return nil, fmt.Errorf("the gang's network: %w", err)
	}
	return links, nil
}

// giveUpPrivileges makes the program nobody: what it parses comes from a network.
// Nobody else can read its memory.
func giveUpPrivileges() error {
	if os.Geteuid() != 0 {
		return nil
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if errno != 0 {
		return fmt.Errorf("take no new privileges: %w", errno)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(nobody, nobody, nobody), syscall.Setresuid(nobody, nobody, nobody)); err != nil {
		return fmt.Errorf("give privileges up: %w", err)
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// watch ends the program when nobody is in the gang's network any more.
func (s *server) watch(links *netlink.Handle, members string) {
	for seen := time.Now(); time.Since(seen) < lonely; time.Sleep(lookEvery) {
		all, err := links.LinkList()
		for _, l := range all {
			if err != nil || strings.HasPrefix(l.Attrs().Name, members) {
				seen = time.Now()
			}
		}
	}
	s.end <- nil
}

func (s *server) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			s.end <- fmt.Errorf("the agent's socket: %w", err)
			return
		}
		go s.answer(c)
	}
}

// answer serves one agent.
func (s *server) answer(c net.Conn) {
	defer c.Close()
	out := json.NewEncoder(c)
	if out.Encode(answer{Point: &s.wire.point}) != nil {
		return
	}
	limited := &io.LimitedReader{R: c}
	for in := json.NewDecoder(limited); ; {
		limited.N = maxRequest
		var r request
		if in.Decode(&r) != nil {
			return
		}
		if out.Encode(s.do(&r)) != nil {
			return
		}
		if r.Quit {
			s.end <- nil
			return
		}
	}
}

func (s *server) do(r *request) (a answer) {
	if r.Peers != nil {
		if err := s.set(*r.Peers); err != nil {
			a.Error = err.Error()
		}
	}
	if r.Await {
		for end := time.Now().Add(meetTime); !s.wire.met() && time.Now().Before(end); {
			time.Sleep(meetAgain)
		}
	}
	return a
}

func (s *server) set(peers []Peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	late, err := s.wire.set(peers)
	if len(late) > 0 {
		time.AfterFunc(greetLate, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			_ = s.wire.greet(late) // what is sent to them greets them, too
		})
	}
	return err
}
