package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// execFlags say where and how a command is run.
type execFlags struct {
	query client.ExecQuery
	stdin bool
	tty   bool
}

func newJobExecCmd(a *app) *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use: "exec JOB [flags] -- COMMAND [ARG...]", Short: "Run a command beside a task", Args: cobra.MinimumNArgs(2),
		Long: `Run a command beside a task that runs: in its sandbox, or with the process
runtime as the same user in its directory and environment. It has the task's
limits, and ends with the task at the latest. Output and exit code are the
command's. -i passes this input on, -t gives it a terminal. Without -t SIGINT,
SIGTERM and SIGHUP are passed on.

Operators deny it for the region with "gpuai operator policy set exec=deny", for
a node with --exec=deny of "gpuai agent run". Who ran one beside which task is in
the region's audit before it runs (gpuai operator audit), and with the name of the
program in the servers' logs, with audit=exec.`,
		Example: `  gpuai job exec sft-bot -- nvidia-smi
  gpuai job exec pretrain --rank 3 -it -- /bin/sh
  tar c src | gpuai job exec sft-bot -i -- tar x -C /work`,
	}
	c.Flags().Uint16Var(&f.query.Group, "group", 0, "number of the group, from 0")
	c.Flags().Uint32Var(&f.query.Task, "rank", 0, "rank of a gang's task, or number of a task in its group, from 0")
	c.Flags().BoolVarP(&f.stdin, "stdin", "i", false, "pass standard input on")
	c.Flags().BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal; with -i this one's keys")
	c.RunE = does(func(ctx context.Context, args []string) error {
		f.query.Job = args[0]
		return a.exec(ctx, args[1:], &f)
	})
	return a.talks(c)
}

// exec runs a command and ends with its exit code.
func (a *app) exec(ctx context.Context, command []string, f *execFlags) error {
	start := gpuai.ExecStart{Command: command, TTY: f.tty}
	if why := start.Validate(); why != "" {
		return usageError{errors.New(why)}
	}
	if f.tty {
		if f.stdin && !isTerminal(a.in) {
			return usageError{errors.New("-t with -i needs a terminal, and standard input is none: leave -t out")}
		}
		start.Term, start.Size = a.getenv("TERM"), terminalSize(a.out)
		if start.Validate() != "" {
			start.Term = "" // the command does without
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGWINCH)
	defer signal.Stop(signals)
	// The command's own end ends the connection, not the first signal.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	conn, err := c.Exec(ctx, f.query, start)
	if err != nil {
		return err
	}
	defer conn.Close()
	if f.tty && f.stdin {
		restore, err := rawTerminal(a.in)
		if err != nil {
			return fmt.Errorf("setting the terminal up: %w", err)
		}
		defer restore()
	}
	go a.sendSignals(ctx, conn, signals, f.tty)
	go a.sendInput(ctx, conn, f.stdin)
	return a.receive(ctx, conn)
}

// receive prints what the command writes until it has ended.
func (a *app) receive(ctx context.Context, conn *client.ExecConn) error {
	for {
		control, stream, data, err := conn.Recv(ctx)
		switch {
		case err != nil:
			return &exitError{code: exitNoServer, text: "the connection to the command broke: " + err.Error(), next: "the command was sent SIGHUP; run it again"}
		case control != nil && control.Exit != nil:
			return execResult(control.Exit)
		case stream == gpuai.ExecStdout:
			_, err = a.out.Write(data)
		case stream == gpuai.ExecStderr:
			_, err = a.err.Write(data)
		}
		if err != nil {
			return fmt.Errorf("writing the command's output: %w", err)
		}
	}
}

func execResult(x *gpuai.ExecExit) error {
	switch {
	case x.Error != "":
		return &exitError{code: exitOther, text: "the command was not run to its end: " + x.Error}
	case x.Code != 0:
		return &exitError{code: int(x.Code)}
	}
	return nil
}

// sendInput passes standard input on; without, the command's is empty.
func (a *app) sendInput(ctx context.Context, conn *client.ExecConn, stdin bool) {
	buf := make([]byte, gpuai.MaxExecData)
	for stdin {
		n, err := a.in.Read(buf)
		if n > 0 && conn.Send(ctx, gpuai.ExecStdin, buf[:n]) != nil {
			return // the other side tells of the end
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				a.say("reading standard input: %v\n", err)
			}
			break
		}
	}
	_ = conn.Send(ctx, gpuai.ExecStdin, nil) // likewise
}

var execSignals = map[os.Signal]gpuai.Signal{
	syscall.SIGINT: gpuai.SIGINT, syscall.SIGTERM: gpuai.SIGTERM, syscall.SIGHUP: gpuai.SIGHUP,
}

// sendSignals passes signals on, and the terminal's size when it changes.
func (a *app) sendSignals(ctx context.Context, conn *client.ExecConn, signals <-chan os.Signal, tty bool) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			size := terminalSize(a.out)
			switch {
			case s != syscall.SIGWINCH:
				_ = conn.Control(ctx, &gpuai.ExecControl{Signal: execSignals[s]}) // the other side tells of the end
			case tty && size.Rows > 0:
				_ = conn.Control(ctx, &gpuai.ExecControl{Resize: &size}) // likewise
			}
		}
	}
}

// terminalSize returns the size of a terminal; zero of what is none.
func terminalSize(x any) (s gpuai.ExecSize) {
	if f, ok := x.(*os.File); ok {
		if w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			s.Rows, s.Cols = w.Row, w.Col
		}
	}
	return s
}

// rawTerminal has a terminal pass every key on as it is, until restore.
func rawTerminal(x any) (restore func(), err error) {
	f, ok := x.(*os.File)
	if !ok {
		return nil, errors.New("it is no terminal")
	}
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old // as cfmakeraw(3)
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}

// readExecFlag reads --exec of agents.
func readExecFlag(s string) (deny bool, err error) {
	if s != "allow" && s != "deny" {
		err = fmt.Errorf("--exec is allow or deny, not %q", s)
	}
	return s == "deny", err
}
