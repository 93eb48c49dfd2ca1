package httpd

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A node that sends an object a byte at a time, each before the deadline, does not
// keep its place for as long as it likes: eight such nodes would have all of them.
func TestObjectThatTrickles(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(New(Config{Backend: newTwin(), BodyTimeout: 300 * time.Millisecond}))
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "PUT /v1/agent/store/object?node=gpu-1&lease=7&key=mine/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\nContent-Length: 4000000\r\n\r\n")
	go func() { // until the connection is closed
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := c.Write([]byte{'x'}); err != nil {
				return
			}
		}
	}()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("it is waited for: %v", err)
	}
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("it is answered %s", res.Status)
	}
}
