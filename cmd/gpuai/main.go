// The gpuai command is the whole of GPUAI on the command line: it submits and
// watches jobs, and runs servers, agents and a region for development.
//
// Standard output carries data, standard error talk. The exit codes are those
// of exit.go. Everything below cmd only reads flags and wires packages up.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() { os.Exit(realMain()) }

// realMain runs the command in this process's surroundings. The first SIGINT or
// SIGTERM cancels the context: a long-running command then stops in order. A
// second one ends the process at once.
func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, name: os.Args[0], getenv: os.Getenv, now: time.Now}
	return a.run(ctx, os.Args[1:])
}

// An app is the surroundings of one run of the command, and its flags.
type app struct {
	in     io.Reader
	out    io.Writer // data
	err    io.Writer // talk
	name   string    // how this binary was called
	getenv func(string) string
	now    func() time.Time // for ages in tables only
	api    apiFlags
	file   string    // the job file, for what to do next
	rec    *recorder // nil until a command talks to a server
}

// run runs the command with args and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	return a.exit(ctx, root.ExecuteContext(ctx))
}
