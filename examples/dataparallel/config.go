package main

import (
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"net"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
)

// A config says what this rank does. All ranks of a gang are given the same
// but for rank and token.
type config struct {
	rank, size int
	least      int         // of an elastic gang, whose size is the most that it may have; else 0
	master     string      // host:port of rank 0; "" when there is one rank
	job        string      // "" outside of a region
	token      gpuai.Token // of this rank's lease; 0 outside of a region

	steps       int
	pace        time.Duration // least time of a step; 0: none
	peerTimeout time.Duration // patience with the start, and with one step, of a peer
	samples     int           // over all ranks
	hidden      int           // neurons
	rate        float64
	seed        uint64

	checkpoint string // file; "": they are published, if there is where
	publish    string // directory that GPUAI gives the task for its checkpoints
	from       string // directory of the last one
	every      int    // steps between two checkpoints
	report     int    // steps between two printed lines
}

// A usageError is a mistake of who started the program.
type usageError struct{ error }

// Unwrap returns the mistake.
func (e usageError) Unwrap() error { return e.error }

// parseConfig reads flags and environment. Its errors are usageErrors.
func parseConfig(args []string, getenv func(string) string) (*config, error) {
	c := new(config)
	f := flag.NewFlagSet("dataparallel", flag.ContinueOnError)
	f.IntVar(&c.steps, "steps", 300, "steps to train")
	f.DurationVar(&c.pace, "pace", 0, "least time of one step")
	f.DurationVar(&c.peerTimeout, "peer-timeout", time.Minute, "longest wait for a peer to start, and beyond the pace for a step")
	f.IntVar(&c.samples, "samples", 2048, "samples, over all ranks")
	f.IntVar(&c.hidden, "hidden", 24, "neurons of the hidden layer")
	f.Float64Var(&c.rate, "rate", 0.4, "learning rate")
	f.Uint64Var(&c.seed, "seed", 1, "seed of the data and the first weights")
	f.StringVar(&c.checkpoint, "checkpoint", getenv("CHECKPOINT"), "file for checkpoints, on storage that all hosts share (default $CHECKPOINT; without it GPUAI keeps them where the region has a checkpoint store)")
	f.IntVar(&c.every, "checkpoint-every", 10, "steps between two checkpoints")
	f.IntVar(&c.report, "report-every", 10, "steps between two lines of output")
	if err := f.Parse(args); err != nil {
		return nil, usageError{err}
	}
	if f.NArg() > 0 {
		return nil, usageError{fmt.Errorf("%q is no flag, and there are no arguments", f.Arg(0))}
	}
	if err := errors.Join(c.fromEnv(getenv), c.check()); err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// fromEnv reads what the agent tells a gang's member.
func (c *config) fromEnv(getenv func(string) string) (err error) {
	c.publish, c.from = getenv(gpuai.EnvCheckpointDir), getenv(gpuai.EnvResumeOwn)
	name := gpuai.EnvNodes
	if getenv(gpuai.EnvNodesMax) != "" {
		name = gpuai.EnvNodesMax
	}
	if c.size, err = number(getenv, name, 1, gpuai.MaxGangTasks); err != nil {
		return fmt.Errorf("%w: run this as a gang, or set %s=1 and %s=0 for one process", err, gpuai.EnvNodes, gpuai.EnvNodeRank)
	}
	if c.rank, err = number(getenv, gpuai.EnvNodeRank, 0, c.size-1); err != nil {
		return err
	}
	if name == gpuai.EnvNodesMax {
		if c.least, err = number(getenv, gpuai.EnvNodesMin, 1, c.size); err != nil {
			return err
		}
		if c.least == c.size {
			c.least = 0 // it is not elastic
		}
	}
	c.job = getenv(gpuai.EnvJob)
	if t := getenv(gpuai.EnvToken); t != "" {
		if err := c.token.UnmarshalText([]byte(t)); err != nil {
			return fmt.Errorf("%s is %q: %w", gpuai.EnvToken, t, err)
		}
	}
	if c.size == 1 {
		return nil
	}
	port, err := number(getenv, gpuai.EnvMasterPort, 1, 1<<16-1)
	if err != nil {
		return err
	}
	host := getenv(gpuai.EnvMasterAddr)
	if host == "" {
		return fmt.Errorf("%s is not set, and must be where rank 0 runs", gpuai.EnvMasterAddr)
	}
	c.master = net.JoinHostPort(host, strconv.Itoa(port))
	return nil
}

// fingerprint tells one training from another: all ranks of a gang have the
// same.
func (c *config) fingerprint() uint64 {
	h := fnv.New64a()
	fmt.Fprintln(h, c.job, c.size, c.steps, c.samples, c.hidden, c.rate, c.seed)
	return h.Sum64()
}

// number reads a variable that must be a number from lo to hi.
func number(getenv func(string) string, name string, lo, hi int) (int, error) {
	s := getenv(name)
	n, err := strconv.Atoi(s)
	switch {
	case s == "":
		return 0, fmt.Errorf("%s is not set", name)
	case err != nil || n < lo || n > hi:
		return 0, fmt.Errorf("%s is %q, and must be a number from %d to %d", name, s, lo, hi)
	}
	return n, nil
}

func (c *config) check() error {
	switch {
	case c.steps < 1:
		return fmt.Errorf("-steps is %d, and must be at least 1", c.steps)
	case c.samples < max(c.size, 1):
		return fmt.Errorf("-samples is %d, and must be at least one for each of %d ranks", c.samples, c.size)
	case c.hidden < 1 || c.hidden > 1<<16:
		return fmt.Errorf("-hidden is %d, and must be from 1 to %d", c.hidden, 1<<16)
	case !(c.rate > 0):
		return fmt.Errorf("-rate is %v, and must be above 0", c.rate)
	case c.every < 1 || c.report < 1:
		return fmt.Errorf("-checkpoint-every is %d and -report-every %d, and both must be at least 1", c.every, c.report)
	case c.pace < 0 || c.peerTimeout <= 0:
		return fmt.Errorf("-pace is %v and -peer-timeout %v, and may not be below, or at, 0", c.pace, c.peerTimeout)
	}
	return nil
}
