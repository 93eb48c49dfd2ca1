// Command dataparallel trains a small neural network on several hosts at once:
// data-parallel training in plain Go, as a gang of tasks runs it.
//
// Every rank holds a part of the same synthetic data. In each step it computes
// the gradient on its part; rank 0 sums the gradients up, in the order of the
// ranks, and sends the sum to all, so that all take the same step. Rank 0
// listens at MASTER_PORT; the others dial MASTER_ADDR and try again while it
// starts. GPUAI_NODE_RANK and GPUAI_NODES say who is who.
//
// Rank 0 writes checkpoints, to a file or, without one, into GPUAI_CHECKPOINT_DIR for
// GPUAI to keep (docs/checkpoints.md), and, when the gang is placed again, sends the last
// one to all, so that they go on from the same step with the same weights.
// With the same number of ranks and the same build, a training that was broken
// off ends with the same weights, bit for bit, as one that was not. A
// checkpoint carries the fencing token of its writer; one with a smaller token
// is never written over it.
//
// In an elastic gang, where GPUAI_NODES_MIN is below GPUAI_NODES_MAX, members come
// and go: rank 0 listens on, takes a newcomer in between two steps, and goes on
// without one that left. The samples are in GPUAI_NODES_MAX parts, which rank 0
// deals out anew for each step, so that the weights are those of a gang that had
// all members all along. Without rank 0 all end, and the gang is placed again.
//
// It exits 0 when all steps are done, 143 when it was told to stop (after a
// checkpoint), 2 when its environment or flags are wrong, 1 otherwise: also
// when a peer is lost, for a gang is placed again as a whole; of an elastic one, when
// rank 0 is.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/gpuai/gpuai/examples/beat"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "dataparallel:", err)
	}
	cancel()
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.Is(err, errStopped):
		return 128 + int(syscall.SIGTERM)
	default:
		return 1
	}
}

// run beats, if it is told where to, and trains.
func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) (err error) {
	w, err := beat.StartFromEnv(getenv)
	if err != nil {
		return usageError{err}
	}
	defer func() { err = errors.Join(err, w.Stop()) }()
	cfg, err := parseConfig(args, getenv)
	if err != nil {
		return err
	}
	return train(ctx, cfg, out)
}
