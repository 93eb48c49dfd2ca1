package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loads use up what a sandbox limits.
var loads = map[string]func() int{"forks": forks, "memory": memory, "disk": disk, "wait": wait, "family": family, "orphan": orphan, "sleep": sleep, "save": save, "none": func() int { return 0 }}

// wait waits for the end of stdin.
func wait() int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// forks makes processes until it may not, and prints how many there were.
func forks() int {
	for n := 0; ; n++ {
		r, w, err := os.Pipe()
		if err == nil {
			// A child waits for the end of a pipe that ends with this process.
			_, err = syscall.ForkExec("/proc/self/exe", []string{"gpuai-probe", "wait"}, &syscall.ProcAttr{Files: []uintptr{r.Fd(), 1, 2}})
			r.Close()
			defer w.Close()
		}
		if err != nil {
			fmt.Println(n, err)
			return 4
		}
	}
}

// memory takes memory until it is killed.
func memory() int {
	var all [][]byte
	for {
		all = append(all, bytes.Repeat([]byte{1}, 1<<20))
		if len(all) > 1<<20 {
			return 0
		}
	}
}

// disk fills the task's own directory, and prints how much went in.
func disk() int {
	f, err := os.Create("fill")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	block := make([]byte, 1<<20)
	for n := 0; ; n++ {
		if _, err := f.Write(block); err != nil {
			fmt.Println(n, err)
			return 5
		}
	}
}

// save publishes a checkpoint of one step more than the one that it goes on from,
// and waits until it is told what became of it.
func save() int {
	step := 0
	if from := os.Getenv("RESUME_FROM"); from != "" {
		data, err := os.ReadFile(filepath.Join(from, "state"))
		if err == nil {
			_, err = fmt.Sscan(string(data), &step)
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("goes on from", step)
		fmt.Println(os.WriteFile(filepath.Join(from, "state"), nil, 0o600))
	}
	name := filepath.Join(os.Getenv("GPUAI_CHECKPOINT_DIR"), fmt.Sprintf("step-%d", step+1))
	if err := os.Mkdir(name+".tmp", 0o700); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := errors.Join(os.WriteFile(filepath.Join(name+".tmp", "state"), fmt.Appendln(nil, step+1), 0o600), os.Rename(name+".tmp", name)); err != nil {
		fmt.Println(err)
		return 1
	}
	for {
		if told, err := os.ReadFile(name + ".json"); err == nil {
			fmt.Printf("%s", told)
			return 0
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// family has processes that are hard to end: in a session of their own, and
// with a parent that is gone. It says that they are there.
func family() int {
	for range 3 {
		_, err := syscall.ForkExec("/proc/self/exe", []string{"gpuai-probe", "orphan"}, &syscall.ProcAttr{
			Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Println("ready")
	return sleep()
}

// sleep waits for a signal that ends it.
func sleep() int {
	for {
		_ = unix.Pause()
	}
}

// orphan leaves a child that lives on.
func orphan() int {
	r, _, err := os.Pipe()
	if err != nil {
		return 1
	}
	_, err = syscall.ForkExec("/proc/self/exe", []string{"gpuai-probe", "sleep"}, &syscall.ProcAttr{Files: []uintptr{r.Fd(), 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return 1
	}
	return 0
}
