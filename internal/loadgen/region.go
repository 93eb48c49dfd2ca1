package loadgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
)

// A local region has a keeper: a process that starts the servers, and kills
// them and removes their files when its standard input ends. So they are gone
// even when the one that measures was killed.

// A Member is one server of a local region.
type Member struct {
	ID         string
	Data       string // directory
	HTTP, Raft string // host:port
	// JoinToken, where set, is that with which it joins the first member's region:
	// one with authentication, which the first forms alone.
	JoinToken gpuai.Secret
}

// A KeepConfig says which region to keep.
type KeepConfig struct {
	Dir     string // removed in the end
	Servers int
	// Server makes the command of one member. Its output is kept in Dir.
	Server func(m Member, all []Member) *exec.Cmd
	// Operator, where set, is called once the first member runs, and returns its CA
	// and the token of the region's first operator: the region has authentication. It
	// may block until there is a region.
	Operator func(ctx context.Context, m Member) (ca []byte, token gpuai.Secret, err error)
}

const (
	readyTimeout = 60 * time.Second
	pollReady    = 20 * time.Millisecond
	// regionTries is how often new ports are tried: between the moment at
	// which a free one is found and the server's start, another may take it.
	regionTries = 3
	logTail     = 4 << 10
)

// KeepRegion is what a keeper does: it runs the servers until in ends, and
// writes one line, "ready" and their URLs, when all are ready.
func KeepRegion(ctx context.Context, cfg KeepConfig, in io.Reader, out io.Writer) error {
	// A server dies with the thread that started it, so that thread stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer os.RemoveAll(cfg.Dir)
	ctx, cancel := untilEOF(ctx, in)
	defer cancel()
	var ms members
	var err error
	for try := range regionTries {
		if ms, err = cfg.start(ctx, filepath.Join(cfg.Dir, fmt.Sprint(try))); err == nil || ctx.Err() != nil {
			break
		}
	}
	defer ms.kill()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, wordReady, strings.Join(ms.urls(cfg.scheme()), " "))
	select {
	case <-ctx.Done():
		return nil
	case m := <-ms.ended(ctx):
		return m.problem("ended during the measurement")
	}
}

// A member is a server that runs.
type member struct {
	Member
	cmd  *exec.Cmd
	log  string
	gone chan struct{} // closed when it has ended
}

type members []*member

// start starts the servers in a directory and waits until all are ready. On an
// error none is left.
func (cfg *KeepConfig) start(ctx context.Context, dir string) (ms members, err error) {
	all, err := pick(dir, cfg.Servers)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ms.kill()
		}
	}()
	var acc Access
	for i, m := range all {
		if i > 0 && cfg.Operator != nil {
			if m.JoinToken, err = acc.joinToken(ctx, all[0]); err != nil {
				return ms, err
			}
		}
		started, err := begin(cfg.Server(m, all), m)
		if err != nil {
			return ms, err
		}
		if ms = append(ms, started); i == 0 && cfg.Operator != nil {
			if acc, err = cfg.operator(ctx, started); err != nil {
				return ms, err
			}
		}
	}
	if err := ms.ready(ctx, acc, cfg.scheme()); err != nil || cfg.Operator == nil {
		return ms, err
	}
	return ms, ms.voting(ctx, acc)
}

func (cfg *KeepConfig) scheme() string {
	if cfg.Operator != nil {
		return "https://"
	}
	return "http://"
}

// pick finds free ports for n members.
func pick(dir string, n int) ([]Member, error) {
	var all []Member
	for i := range n {
		m := Member{ID: fmt.Sprintf("bench-%d", i+1)}
		m.Data = filepath.Join(dir, m.ID)
		for _, addr := range []*string{&m.HTTP, &m.Raft} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, fmt.Errorf("looking for a free port: %w", err)
			}
			defer l.Close() // when all are chosen
			*addr = l.Addr().String()
		}
		all = append(all, m)
	}
	return all, os.MkdirAll(dir, 0o700)
}

// begin starts a server that dies with the calling thread.
func begin(cmd *exec.Cmd, m Member) (*member, error) {
	out := &member{Member: m, cmd: cmd, log: m.Data + ".log", gone: make(chan struct{})}
	f, err := os.Create(out.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting server %s: %w", m.ID, err)
	}
	go func() {
		defer close(out.gone)
		_ = cmd.Wait() // how it ended is in its log
	}()
	return out, nil
}

// ready waits until every server says that it is ready.
func (ms members) ready(ctx context.Context, acc Access, scheme string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, m := range ms {
		c, err := acc.client(&http.Transport{DisableKeepAlives: true}, []string{scheme + m.HTTP})
		if err != nil {
			return err
		}
		for err = c.Ready(ctx); err != nil; err = c.Ready(ctx) {
			select {
			case <-m.gone:
				return m.problem("ended at its start")
			case <-ctx.Done():
				return fmt.Errorf("server %s is not ready: %w", m.ID, err)
			case <-time.After(pollReady):
			}
		}
	}
	return nil
}

// ended delivers the first server that ends before ctx does.
func (ms members) ended(ctx context.Context) <-chan *member {
	out := make(chan *member, len(ms))
	for _, m := range ms {
		go func() {
			select {
			case <-m.gone:
				out <- m
			case <-ctx.Done():
			}
		}()
	}
	return out
}

// problem says what became of a server, with the end of its log.
func (m *member) problem(what string) error {
	b, err := os.ReadFile(m.log)
	if err != nil {
		return fmt.Errorf("server %s %s", m.ID, what)
	}
	return fmt.Errorf("server %s %s; it wrote:\n%s", m.ID, what, b[max(0, len(b)-logTail):])
}

// kill ends what runs. Nothing is lost: the files go as well.
func (ms members) kill() {
	for _, m := range ms {
		m.cmd.Process.Kill()
		<-m.gone
	}
}

func (ms members) urls(scheme string) (out []string) {
	for _, m := range ms {
		out = append(out, scheme+m.HTTP)
	}
	return out
}

// A Region is a region that a keeper keeps for this process.
type Region struct {
	Addrs  []string // URLs of its servers
	Access Access   // to them, as an operator
	Dir    string   // its directory
	CA     string   // file of its CA; "" in a region without authentication
	keeper *child
}

// StartRegion starts a region in a new temporary directory and returns once all
// its servers are ready. keeper makes the command of the keeper, which must
// call KeepRegion for that directory with its standard input and output.
func StartRegion(ctx context.Context, keeper func(dir string) *exec.Cmd) (*Region, error) {
	dir, err := os.MkdirTemp("", "gpuai-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for the servers: %w", err)
	}
	r := &Region{Dir: dir}
	if r.keeper, err = startChild(keeper(dir)); err == nil {
		var line string
		if line, err = r.keeper.first(ctx); err == nil {
			go r.keeper.follow(func(string) {})
			r.Addrs = strings.Fields(strings.TrimPrefix(line, wordReady))
		}
		if err == nil && strings.HasPrefix(r.Addrs[0], "https:") {
			r.CA = filepath.Join(dir, accessCA)
			if r.Access, err = readAccess(dir); err != nil {
				err = errors.Join(err, r.keeper.stop())
			}
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the servers: %w", err), os.RemoveAll(dir))
	}
	return r, nil
}

// Stop ends the region and removes its files. Its error says why the region did
// not last until then.
func (r *Region) Stop() error {
	err := r.keeper.stop()
	return errors.Join(err, os.RemoveAll(r.Dir))
}
