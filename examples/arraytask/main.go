// Command arraytask is the smallest task of an array: it computes for a while,
// prints what it found, and exits. Each element searches its own part of the
// numbers for primes, told by GPUAI_ARRAY_INDEX and GPUAI_ARRAY_SIZE.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

// errStopped is returned by run when it was told to stop.
var errStopped = errors.New("told to stop")

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	switch {
	case errors.Is(err, errStopped):
		os.Exit(128 + int(syscall.SIGTERM))
	case err != nil:
		fmt.Fprintln(os.Stderr, "arraytask:", err)
		os.Exit(1)
	}
}

// run does the work of one element. The work is bounded by time, not by the
// size of its part, so that a slow machine takes no longer.
func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) (err error) {
	w, err := beat.StartFromEnv(getenv)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Stop()) }()
	f := flag.NewFlagSet("arraytask", flag.ContinueOnError)
	work := f.Duration("work", 2*time.Second, "how long to compute")
	if err := f.Parse(args); err != nil {
		return err
	}
	index, size, err := element(getenv)
	if err != nil {
		return err
	}
	found, tried, err := search(ctx, index, size, *work)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "element %d of %d: %d primes among %d numbers\n", index, size, found, tried)
	return err
}

// element says which element of which array this is.
func element(getenv func(string) string) (index, size uint64, err error) {
	index, err = strconv.ParseUint(getenv(gpuai.EnvArrayIndex), 10, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("%s is %q, and must be a number: is this a task of an array?", gpuai.EnvArrayIndex, getenv(gpuai.EnvArrayIndex))
	}
	size, err = strconv.ParseUint(getenv(gpuai.EnvArraySize), 10, 32)
	if err != nil || index >= size {
		return 0, 0, fmt.Errorf("%s is %q, and must be a number above %s, which is %d", gpuai.EnvArraySize, getenv(gpuai.EnvArraySize), gpuai.EnvArrayIndex, index)
	}
	return index, size, nil
}

// search looks for primes among index+2, index+2+size, … until the time is up,
// a little in each tick, to leave the machine to others.
func search(ctx context.Context, index, size uint64, work time.Duration) (found, tried int, err error) {
	const perTick = 20
	end := time.NewTimer(work)
	defer end.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	n := index + 2
	for {
		for range perTick {
			if prime(n) {
				found++
			}
			tried++
			n += size
		}
		select {
		case <-ctx.Done():
			return 0, 0, errStopped
		case <-end.C:
			return found, tried, nil
		case <-tick.C:
		}
	}
}

func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n >= 2
}
