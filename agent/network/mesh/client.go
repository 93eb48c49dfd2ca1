package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network/netspace"
)

// DefaultMTU fits into the usual Ethernet with WireGuard's and either IP's headers.
const DefaultMTU = 1420

// LogSuffix is behind the path of a process's socket in that of what it says.
const LogSuffix = ".log"

// callTime bounds how long the program takes to answer: it makes keys and a device.
const callTime = 10 * time.Second

// endTime bounds how long one that gives up takes to end.
const endTime = time.Second

// A Config says how a device is made.
type Config struct {
	// Program is the path of gpuai-mesh.
	Program string
	// Socket is where agents reach the process; its directory exists.
	Socket string
	// Host is the network namespace of the sockets; nil is the process's own.
	// Space is the gang's.
	Host, Space *os.File
	Ports       Ports
	MTU         int
	// Members begins the names of the members' links in Space.
	Members string
}

// A Mesh is a process, as an agent reaches it. Its methods may be called at the same
// time.
type Mesh struct {
	// Point is what other hosts are to know of the device.
	Point gpuai.MeshPoint

	gone chan struct{}

	mu      sync.Mutex // guards below
	conn    net.Conn
	out     *json.Encoder
	answers chan answer
}

// Start starts a process. One that an earlier agent left at the socket is ended.
func Start(c *Config) (*Mesh, error) {
	if old, err := Dial(c.Socket); err == nil {
		_ = old.Quit()
	}
	l, err := listenAt(c.Socket)
	if err != nil {
		return nil, fmt.Errorf("the mesh's socket: %w", err)
	}
	defer l.Close()
	log, err := os.OpenFile(c.Socket+LogSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the mesh's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(c.Program, "--ports", c.Ports.String(), "--mtu", strconv.Itoa(c.MTU), "--members", c.Members)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{c.Space, l}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := netspace.Within(c.Host, cmd.Start); err != nil {
		return nil, fmt.Errorf("start gpuai-mesh: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // what it said is in its log
	}()
	_ = l.Close()
	m, err := Dial(c.Socket)
	if err == nil {
		return m, nil
	}
	select {
	case <-ended: // by itself, and has said why
	case <-time.After(endTime):
		_ = cmd.Process.Kill()
	}
	if said, _ := os.ReadFile(c.Socket + ".log"); len(said) > 0 {
		err = errors.New(strings.TrimSpace(string(said[:min(len(said), gpuai.MaxReasonLen)])))
	}
	return nil, fmt.Errorf("gpuai-mesh: %w", err)
}

// listenAt makes a socket for the process, in place of an old one.
func listenAt(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

// Dial reaches the process at a socket.
func Dial(socket string) (*Mesh, error) {
	conn, err := net.DialTimeout("unix", socket, callTime)
	if err != nil {
		return nil, err
	}
	m := &Mesh{gone: make(chan struct{}), conn: conn, out: json.NewEncoder(conn), answers: make(chan answer, 1)}
	in := json.NewDecoder(conn)
	var first answer
	err = errors.Join(conn.SetReadDeadline(time.Now().Add(callTime)), in.Decode(&first), conn.SetReadDeadline(time.Time{}))
	if err != nil || first.Point == nil || !first.Point.Valid() {
		_ = conn.Close()
		return nil, fmt.Errorf("the process does not say who it is: %w", err)
	}
	m.Point = *first.Point
	go m.read(in)
	return m, nil
}

// read takes answers until the process is gone.
func (m *Mesh) read(in *json.Decoder) {
	defer close(m.gone)
	for {
		var a answer
		if in.Decode(&a) != nil {
			return
		}
		select {
		case m.answers <- a:
		default:
			return // nobody asked
		}
	}
}

// Gone is closed when the process is not reached any more.
func (m *Mesh) Gone() <-chan struct{} { return m.gone }

// Set makes peers the only ones that reach the gang here, and are reached.
func (m *Mesh) Set(peers []Peer) error {
	if peers == nil {
		peers = []Peer{}
	}
	return m.call(request{Peers: &peers})
}

// Await waits until all peers are met, for a moment at most: one may not know of
// this device yet.
func (m *Mesh) Await() error { return m.call(request{Await: true}) }

// Quit ends the process and the link.
func (m *Mesh) Quit() error {
	err := m.call(request{Quit: true})
	m.Close()
	return err
}

// Close lets go of the process, which goes on.
func (m *Mesh) Close() { _ = m.conn.Close() }

func (m *Mesh) call(r request) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.conn.SetWriteDeadline(time.Now().Add(callTime)); err != nil {
		return err
	}
	if err := m.out.Encode(r); err != nil {
		return fmt.Errorf("gpuai-mesh: %w", err)
	}
	select {
	case a := <-m.answers:
		if a.Error != "" {
			return fmt.Errorf("gpuai-mesh: %s", a.Error)
		}
		return nil
	case <-m.gone:
		if r.Quit {
			return nil
		}
		return fmt.Errorf("gpuai-mesh: %w", io.ErrUnexpectedEOF)
	case <-time.After(callTime):
		m.Close()
		return errors.New("gpuai-mesh does not answer")
	}
}

// handleIn opens netlink in a namespace, to be used from any.
func handleIn(space *os.File) (h *netlink.Handle, err error) {
	err = netspace.Within(space, func() error {
		h, err = netlink.NewHandle()
		return err
	})
	return h, err
}
