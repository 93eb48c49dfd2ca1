package beat

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	// Every is the time between two beats of a Writer.
	Every = 50 * time.Millisecond
	// EnvDir names the directory of the traces; unset means that a program
	// beats nowhere.
	EnvDir = "BEAT_DIR"
	// ToStdout in the place of a directory is for programs whose files nobody
	// sees, as in a sandbox: their beats are lines of their standard output.
	ToStdout = "-"

	suffix = ".beats"
	// prefix begins the beats among other lines of output.
	prefix = "beat "
)

// clockBoottime is CLOCK_BOOTTIME of linux/time.h.
const clockBoottime = 7

// Boottime returns CLOCK_BOOTTIME in nanoseconds.
func Boottime() int64 {
	var ts syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		panic("clock_gettime(CLOCK_BOOTTIME): " + errno.Error()) // Linux 2.6.39 has it
	}
	return ts.Nano()
}

// A Writer beats until it is stopped. The nil Writer does nothing.
type Writer struct {
	id   Identity
	lead string // of each line
	file *os.File
	stop chan struct{}
	done chan struct{}
	once sync.Once
	err  error // of the beats; read after done is closed
}

// StartFromEnv starts a Writer as the environment says, with the first beat
// written. Without EnvDir it returns nil, which is a Writer that does nothing.
func StartFromEnv(getenv func(string) string) (*Writer, error) {
	dir := getenv(EnvDir)
	if dir == "" {
		return nil, nil
	}
	id, err := FromEnv(getenv)
	if err != nil {
		return nil, err
	}
	if dir == ToStdout {
		return begin(&Writer{id: id, lead: prefix, file: os.Stdout})
	}
	return Start(dir, id)
}

// Start begins a new trace in dir, which must exist, and has written its first
// beat when it returns.
func Start(dir string, id Identity) (*Writer, error) {
	name := fmt.Sprintf("%s-%d-%d%s", id.Token, os.Getpid(), Boottime(), suffix)
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start a trace of beats: %w", err)
	}
	return begin(&Writer{id: id, file: f})
}

// begin writes the first beat, and has the others follow.
func begin(w *Writer) (*Writer, error) {
	w.stop, w.done = make(chan struct{}), make(chan struct{})
	if err := w.beat(); err != nil {
		w.close()
		return nil, err
	}
	go w.run()
	return w, nil
}

// close ends the trace's own file.
func (w *Writer) close() {
	if w.file != os.Stdout {
		w.file.Close()
	}
}

// Stop writes the last beat and ends the trace. It returns the first error of
// any beat: a trace with gaps proves nothing. Idempotent.
func (w *Writer) Stop() error {
	if w == nil {
		return nil
	}
	w.once.Do(func() { close(w.stop) })
	<-w.done
	return w.err
}

func (w *Writer) run() {
	defer close(w.done)
	defer w.close()
	t := time.NewTicker(Every)
	defer t.Stop()
	for w.err == nil {
		select {
		case <-t.C:
			w.err = w.beat()
		case <-w.stop:
			w.err = w.beat()
			return
		}
	}
}

// beat appends one line in one write, so that a kill leaves whole lines.
func (w *Writer) beat() error {
	line := make([]byte, 0, 128)
	line = append(line, w.lead...)
	line = append(line, w.id.Token.String()...)
	line = append(append(line, ' '), w.id.Job...)
	line = append(append(line, ' '), w.id.Group...)
	line = strconv.AppendUint(append(line, ' '), uint64(w.id.Task), 10)
	line = strconv.AppendInt(append(line, ' '), Boottime(), 10)
	if _, err := w.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write a beat: %w", err)
	}
	return nil
}
