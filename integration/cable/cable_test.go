package cable

import (
	"bufio"
	"net"
	"testing"
	"time"
)

// echo serves one line back at a time.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if _, err := c.Write([]byte(line)); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestCutAndMend sends a line through a whole cable, one into a cut cable,
// which stays silent, and reads that line's answer once the cable is mended.
func TestCutAndMend(t *testing.T) {
	c, err := To(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, err := net.Dial("tcp", c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	say := func(s string) {
		if _, err := conn.Write([]byte(s + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(within time.Duration) (string, error) {
		if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		return r.ReadString('\n')
	}
	say("one")
	if got, err := hear(10 * time.Second); got != "one\n" || err != nil {
		t.Fatalf("whole: %q, %v", got, err)
	}
	c.Set(true)
	say("two")
	if got, err := hear(50 * time.Millisecond); err == nil {
		t.Fatalf("a cut cable carried %q", got)
	}
	c.Set(false)
	if got, err := hear(10 * time.Second); got != "two\n" || err != nil {
		t.Fatalf("mended: %q, %v", got, err)
	}
	c.Close()
	if got, err := hear(10 * time.Second); err == nil {
		t.Fatalf("a cable that is gone carried %q", got)
	}
}
