package clock

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("CLOCK_TEST_CHILD") != "" {
		tell()
	}
	os.Exit(m.Run())
}

// tell prints its clocks at each line that it reads: the wall in nanoseconds,
// the time since its start, and both clocks of the kernel.
func tell() {
	start := time.Now()
	began := kernel(Monotonic)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		now := time.Now()
		fmt.Println(now.UnixNano()-kernel(Wall), int64(now.Sub(start))-(kernel(Monotonic)-began), kernel(Monotonic)-began)
	}
	os.Exit(0)
}

func kernel(k Kind) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(k), &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// TestBend bends the clocks of a child, which tells how they differ from the
// kernel's, and of no other process.
func TestBend(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "CLOCK_TEST_CHILD=1")
	in, errIn := c.StdinPipe()
	out, errOut := c.StdoutPipe()
	if errIn != nil || errOut != nil || c.Start() != nil {
		t.Fatal(errIn, errOut)
	}
	defer func() { in.Close(); _ = c.Wait() }()
	lines := bufio.NewScanner(out)
	ask := func() (wall, mono, elapsed time.Duration) {
		fmt.Fprintln(in)
		if !lines.Scan() {
			t.Fatal("the child is gone")
		}
		if _, err := fmt.Sscan(lines.Text(), &wall, &mono, &elapsed); err != nil {
			t.Fatal(err)
		}
		return wall, mono, elapsed
	}
	const near = 50 * time.Millisecond // the machine may be busy between two looks
	expect := func(what string, wall, mono time.Duration) {
		t.Helper()
		if w, m, _ := ask(); (w-wall).Abs() > near || (m-mono).Abs() > near {
			t.Errorf("%s: wall off by %v, want %v; monotonic by %v, want %v", what, w, wall, m, mono)
		}
	}
	expect("as it is", 0, 0)
	b, err := Bend(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	expect("taken over", 0, 0)
	for _, by := range []time.Duration{time.Hour, -2 * time.Hour, -23 * time.Hour} {
		if err := b.Step(Wall, by); err != nil {
			t.Fatal(err)
		}
	}
	expect("a day back", -24*time.Hour, 0)
	// Fast by the whole: it has gained as much as has passed.
	_, _, before := ask()
	if err := b.Rate(Monotonic, 1_000_000); err != nil {
		t.Fatal(err)
	}
	gained := time.Duration(0)
	for deadline := time.Now().Add(10 * time.Second); gained < 400*time.Millisecond && time.Now().Before(deadline); {
		_, m, elapsed := ask()
		gained = m
		if (m - (elapsed - before)).Abs() > near {
			t.Fatalf("gained %v in %v at twice the rate", m, elapsed-before)
		}
	}
	if err := b.Rate(Monotonic, 0); err != nil {
		t.Fatal(err)
	}
	_, kept, _ := ask()
	if kept < gained {
		t.Errorf("lost again what was gained: %v, then %v", gained, kept)
	}
	expect("as fast as before", -24*time.Hour, kept)
	if off := time.Now().UnixNano() - kernel(Wall); time.Duration(off).Abs() > near {
		t.Errorf("this process's clock is off by %v", time.Duration(off))
	}
}
