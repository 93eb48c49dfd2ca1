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

// TestLag sends lines through connections of a cable that is late: none comes
// sooner than it may, all come in their order, and one connection overtakes another.
func TestLag(t *testing.T) {
	c, err := To(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const late = 150 * time.Millisecond
	laid := make(chan time.Duration, 2) // how late the next connection's pieces come
	laid <- late
	laid <- 0
	known := make(chan struct{}, 2)
	c.SetLag(func(net.Addr) func(bool) time.Duration {
		d := <-laid
		known <- struct{}{}
		return func(in bool) time.Duration {
			if in {
				return d
			}
			return 0
		}
	})
	line := func(conn net.Conn) string {
		s, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			t.Error(err)
		}
		return s
	}
	slow, err := net.Dial("tcp", c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	began := time.Now()
	if _, err := slow.Write([]byte("one\n")); err != nil {
		t.Fatal(err)
	}
	came := make(chan time.Duration)
	go func() {
		if s := line(slow); s != "one\n" {
			t.Errorf("%q came late", s)
		}
		came <- time.Since(began)
	}()
	<-known // the slow one is the first
	fast, err := net.Dial("tcp", c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer fast.Close()
	if _, err := fast.Write([]byte("two\n")); err != nil {
		t.Fatal(err)
	}
	if s := line(fast); s != "two\n" {
		t.Errorf("%q came at once", s)
	}
	if d := <-came; d < late {
		t.Errorf("a piece came after %s, and is %s late", d, late)
	}
}
