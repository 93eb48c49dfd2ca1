package raft

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/store"
)

func TestPeersTalkOverTheRaftPort(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	c.converged()
	echo := c.nodes["b"].PeerListener()
	served := make(chan error, 1)
	go func() {
		conn, err := echo.Accept()
		if err == nil {
			_, err = io.Copy(conn, conn)
			conn.Close()
		}
		served <- err
	}()
	conn, err := c.nodes["a"].DialPeer(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("over the shared port "), 1000)
	go conn.Write(text)
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, text) {
		t.Fatalf("the echo differs, %v", err)
	}
	conn.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := c.nodes["a"].DialPeer(t.Context(), "z"); err == nil || !strings.Contains(err.Error(), "not among the members") {
		t.Errorf("a stranger: %v", err)
	}
	c.kill("b")
	if _, err := echo.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed node's listener: %v", err)
	}
	if _, err := c.nodes["a"].DialPeer(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "connect to server b at") {
		t.Errorf("a dead server: %v", err)
	}
	c.start("b")
}

func TestSwappedAddresses(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	c.converged()
	n := c.nodes["a"]
	for i := range n.cfg.Peers { // as if its operator had mixed them up
		switch n.cfg.Peers[i].ID {
		case "b":
			n.cfg.Peers[i].Addr = c.addr["c"]
		}
	}
	_, err := n.dialWithin(t.Context(), c.addr["c"], n.hello(kindPeer, "b"), 1)
	if err == nil || !strings.Contains(err.Error(), "this is server c, not b") {
		t.Errorf("got %v", err)
	}
	n.book.answered("b", c.addr["c"]) // whatever was believed
	conn, err := n.DialPeer(t.Context(), "b")
	if err != nil {
		t.Fatalf("b is found at none of its addresses: %v", err)
	}
	conn.Close()
	c.kill(c.ids...)
}

// TestPortGetsNonsense sends what scanners and lost clients send.
func TestPortGetsNonsense(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	for name, text := range map[string]string{
		"http":          "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"tls":           "\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
		"too long":      "\x01\x01\xff\xff",
		"few parts":     "\x01\x01\x00\x03abc",
		"other version": "\x01\x09\x00\x02\x00\x00",
		"other kind":    "\x07\x01\x00\x02\x00\x00",
		"nothing":       "",
	} {
		conn, err := net.Dial("tcp", c.addr["a"])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, text)
		conn.(*net.TCPConn).CloseWrite()
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(conn); len(b) > 0 || errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: answered %q, %v", name, b, err)
		}
		conn.Close()
	}
	c.submit(c.leader())
}

func FuzzHello(f *testing.F) {
	f.Add(frame([]byte{kindRaft, helloVersion}, "cluster", "a", "b"))
	f.Add([]byte{1, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := readHello(bytes.NewReader(frame([]byte{h.kind, helloVersion}, string(h.cluster), string(h.from), string(h.to))))
		if err != nil || again != h && !strings.Contains(string(h.to), "\x00") {
			t.Errorf("%+v became %+v, %v", h, again, err)
		}
	})
}

func TestClockNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		c.anchor(5000)
		steps := []struct {
			wait   time.Duration
			anchor gpuai.Instant // 0: none
			want   gpuai.Instant
		}{
			{0, 0, 5000},
			{1500 * time.Millisecond, 0, 6500},
			{400 * time.Microsecond, 0, 6500},
			{0, 9000, 9000}, // a later term, after others led
			{0, 8000, 9000}, // cannot be: still not back
			{time.Hour, 0, 8000 + 3_600_000},
		}
		for i, s := range steps {
			if s.anchor != 0 {
				c.anchor(s.anchor)
			}
			time.Sleep(s.wait) // virtual
			if got := c.now(); got != s.want {
				t.Errorf("step %d: %d, want %d", i, got, s.want)
			}
		}
	})
}

// TestGuardEndsTheReader lets a running library read a damaged entry.
func TestGuardEndsTheReader(t *testing.T) {
	t.Parallel()
	dir, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	log, err := store.OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	reported, closing := make(chan error, 1), make(chan struct{})
	g := &guard{Log: log, damage: func(err error) { reported <- err }, closing: closing}
	if err := g.GetLog(1, new(hraft.Log)); !errors.Is(err, hraft.ErrLogNotFound) {
		t.Errorf("a missing entry: %v", err)
	}
	g.running.Store(true)
	if err := g.GetLog(1, new(hraft.Log)); !errors.Is(err, hraft.ErrLogNotFound) {
		t.Errorf("a missing entry: %v", err)
	}
	ended := make(chan bool)
	go func() {
		returned := false
		defer func() { ended <- returned }()
		g.fail(&store.DamageError{Index: 1})
		returned = true
	}()
	if err := <-reported; !errors.Is(err, store.ErrDamaged) {
		t.Errorf("reported %v", err)
	}
	close(closing)
	if <-ended {
		t.Error("the reader went on")
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	dir, err := store.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cases := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no dir", func(c *Config) { c.Dir = nil }, "Dir and Listener are required"},
		{"bad id", func(c *Config) { c.ID = "A b" }, `server ID "A b" is not a name`},
		{"no region", func(c *Config) { c.Region = "" }, "Region is required"},
		{"multiplier", func(c *Config) { c.Multiplier = 11 }, "multiplier is 11"},
		{"not a peer", func(c *Config) { c.Peers = c.Peers[1:] }, "server a is not among its peers"},
		{"same id", func(c *Config) { c.Peers[1].ID = "a" }, "listed twice"},
		{"same address", func(c *Config) { c.Peers[1].Addr = c.Peers[0].Addr }, "listed twice"},
		{"no address", func(c *Config) { c.Peers[1].Addr = "" }, "needs a name and an address"},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			cfg := Config{ID: "a", Region: "local", Dir: dir, Listener: listen(t, "127.0.0.1:0"), Peers: []Peer{{"a", "x:1"}, {"b", "x:2"}}}
			k.change(&cfg)
			if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), k.want) {
				t.Errorf("got %v, want %q in it", err, k.want)
			}
			if _, err := cfg.Listener.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the listener stays open: %v", err)
			}
		})
	}
}
