package probe

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Probe is one attempt.
type Probe struct {
	Name string
	// Control is the row of docs/isolation.md that it is about.
	Control string
	// Want are the outcomes of a closed sandbox: the name of an errno, or what
	// the attempt prints.
	Want []string
	try  func() (string, error)
}

// A Result is what came of a probe.
type Result struct {
	Name    string   `json:"name"`
	Control string   `json:"control"`
	Want    []string `json:"expected"`
	// Got is the name of an errno, "open" if the attempt worked, or what was
	// read.
	Got  string `json:"got"`
	Open bool   `json:"open"`
}

// Run makes the attempt.
func (p *Probe) Run() Result {
	r := Result{Name: p.Name, Control: p.Control, Want: p.Want}
	got, err := p.try()
	var no syscall.Errno
	switch {
	case errors.As(err, &no):
		if r.Got = unix.ErrnoName(no); r.Got == "" {
			r.Got = fmt.Sprintf("errno %d", int(no))
		}
	case err != nil:
		r.Got = err.Error()
	case got != "":
		r.Got = got
	default:
		r.Got = "open"
	}
	r.Open = !slices.Contains(p.Want, r.Got)
	return r
}

// Main is the program gpuai-probe; it returns the exit code: 0 if nothing is
// open, 3 if something is.
func Main(args []string) int {
	if len(args) == 0 {
		return try(All())
	}
	switch f := loads[args[0]]; {
	case args[0] == "say":
		return say(args[1:])
	case args[0] == "digest":
		return digests(args[1:])
	case args[0] == "open":
		return open(args[1:])
	case args[0] == "egress":
		list, err := Egress(args[1:])
		if err == nil {
			return try(list)
		}
		fmt.Fprintln(os.Stderr, "gpuai-probe egress:", err)
		return 2
	case args[0] == "dial" && len(args) == 2:
		return dial(args[1])
	case args[0] == "listen" && len(args) == 2:
		return listen(args[1], 1)
	case args[0] == "meet" && len(args) == 1:
		return meet(os.Getenv)
	case f != nil && len(args) == 1:
		return f()
	}
	fmt.Fprintln(os.Stderr, "gpuai-probe [egress [+]WHAT=ADDRESS:PORT … | say ARGS, of which @PATH is a file to show | digest NAMES, or @PATHS | open PATHS | forks | memory | disk | dial ADDRESS:PORT | listen ADDRESS:PORT | meet] tries what a sandbox forbids, without a network or with egress, says what it is given, uses up what it limits, connects, or meets its gang; run it in one")
	return 2
}

// try makes every attempt and prints what came of it.
func try(list []Probe) int {
	out, code := json.NewEncoder(os.Stdout), 0
	for _, p := range list {
		r := p.Run()
		if r.Open {
			code = 3
		}
		if err := out.Encode(r); err != nil {
			return 1
		}
	}
	return code
}

// sayFile prints a file with its mode and owner.
func sayFile(path string) {
	b, err := os.ReadFile(path)
	info, err2 := os.Stat(path)
	if err = errors.Join(err, err2); err != nil {
		fmt.Println("file", path, err)
		return
	}
	owner := "?"
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = fmt.Sprint(st.Uid, ":", st.Gid)
	}
	fmt.Println("file", path, info.Mode(), owner, string(b))
}

// digests prints SHA-256 of variables and, behind @, of files: what a task was
// given can be compared without it being told.
func digests(args []string) int {
	for _, a := range args {
		value := []byte(os.Getenv(a))
		if path, ok := strings.CutPrefix(a, "@"); ok {
			var err error
			if value, err = os.ReadFile(path); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		fmt.Printf("%s %x\n", a, sha256.Sum256(value))
	}
	return 0
}

// open opens files to read and write, and prints each with what came of it.
func open(paths []string) int {
	for _, path := range paths {
		got := "open"
		if fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
			got = err.Error()
			if no, ok := err.(syscall.Errno); ok {
				got = unix.ErrnoName(no)
			}
		} else {
			unix.Close(fd)
		}
		fmt.Println(path, got)
	}
	return 0
}

// say prints what the task was given: its arguments, place, user and
// environment.
func say(args []string) int {
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("args %q\ndir %s\nuser %d:%d\n", args, dir, os.Getuid(), os.Getgid())
	for _, v := range slices.Sorted(slices.Values(os.Environ())) {
		fmt.Println("env", v)
	}
	for _, a := range args {
		if path, ok := strings.CutPrefix(a, "@"); ok {
			sayFile(path)
		}
	}
	return 0
}
