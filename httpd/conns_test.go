package httpd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Connections that are idle, or send headers that never end, make way for those
// that are worked for: whoever opens many takes nobody's place.
func TestIdleConnectionsMakeWay(t *testing.T) {
	g := NewConns(20)
	h := New(Config{Hosts: testHosts, Backend: newTwin()})
	s := httptest.NewUnstartedServer(g.Handler(h))
	s.Config.ConnState, s.Config.ConnContext = g.Track, g.Context
	s.Start()
	defer s.Close()
	addr := s.Listener.Addr().String()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	get := func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}
	kept := dial()
	if err := get(kept); err != nil {
		t.Fatal(err)
	}
	var loris []net.Conn
	for i := range 60 {
		c := dial()
		if i%2 == 0 {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nX: ")
		}
		loris = append(loris, c)
		if i < 15 {
			if err := get(kept); err != nil { // in use now and then, it is not the oldest
				t.Fatalf("beside %d connections: %v", i+1, err)
			}
		}
		if err := get(dial()); err != nil {
			t.Fatalf("a new one beside %d: %v", i+1, err)
		}
	}
	if _, err := io.ReadAll(loris[0]); err != nil {
		t.Errorf("the oldest was not closed: %v", err)
	}
	g.mu.Lock()
	open, evicted := len(g.open), g.evicted
	g.mu.Unlock()
	if open > 20 || evicted < 90 {
		t.Errorf("%d are open, %d were closed", open, evicted)
	}
}
