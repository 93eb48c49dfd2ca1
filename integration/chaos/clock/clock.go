// Package clock bends the clocks of one running process. The programs under
// test have no switch for it: the code by which the kernel lets a process read
// its clocks (the vDSO) is replaced in that process's memory, as a debugger
// would, by code that asks the kernel and then adds an offset and a rate.
//
// Bent are CLOCK_REALTIME and CLOCK_MONOTONIC where they are read through the
// vDSO, as Go's time.Now and timers do. Timers sleep in the kernel, by the
// kernel's own clock. CLOCK_BOOTTIME is not bent: programs that need it ask the
// kernel by a system call, and what counts between an agent and a server is the
// rate of the one's clock against the other's, so the server's is bent.
package clock

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Kind is a clock that can be bent.
type Kind int

// The clocks, by the kernel's numbers.
const (
	Wall      Kind = unix.CLOCK_REALTIME
	Monotonic Kind = unix.CLOCK_MONOTONIC
)

// stub is the machine code of
//
//	if (syscall(clock_gettime, id, ts) == 0 && id <= 1) {
//		ns = ts->sec*1000000000 + ts->nsec;
//		ns += ((ns - d[id].base)*d[id].rate >> 20) + d[id].offset;
//		ts->sec = ns / 1000000000; ts->nsec = ns % 1000000000;
//	}
//
// for amd64. The table d follows it.
var stub = []byte{
	0x57, 0x56, 0xb8, 0xe4, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x5e, 0x5f, 0x85, 0xc0, 0x75, 0x4a, 0x83,
	0xff, 0x01, 0x77, 0x45, 0x4c, 0x8d, 0x05, 0x45, 0x00, 0x00, 0x00, 0x89, 0xf9, 0x48, 0x8d, 0x0c,
	0x49, 0x4d, 0x8d, 0x04, 0xc8, 0x48, 0x69, 0x06, 0x00, 0xca, 0x9a, 0x3b, 0x48, 0x03, 0x46, 0x08,
	0x49, 0x89, 0xc1, 0x4d, 0x2b, 0x08, 0x4d, 0x0f, 0xaf, 0x48, 0x08, 0x49, 0xc1, 0xf9, 0x14, 0x4c,
	0x01, 0xc8, 0x49, 0x03, 0x40, 0x10, 0x48, 0x99, 0xb9, 0x00, 0xca, 0x9a, 0x3b, 0x48, 0xf7, 0xf9,
	0x48, 0x89, 0x06, 0x48, 0x89, 0x56, 0x08, 0x31, 0xc0, 0xc3, 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00,
}

const (
	rowBytes   = 24 // base, rate, offset
	tableBytes = 2 * rowBytes
	jumpBytes  = 5
	rateUnit   = 1 << 20
)

// A Bent is a process whose clocks are bent. It is not safe for concurrent use.
type Bent struct {
	pid   int
	mem   *os.File
	table int64 // address
	rows  [2]struct{ base, rate, offset int64 }
}

// Available returns why clocks cannot be bent here; nil means that they can.
func Available() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("clocks are bent by machine code that there is for amd64 only, and this is %s", runtime.GOARCH)
	}
	// A process may write into its descendants as a debugger would, unless it
	// is told not to.
	scope, _ := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if s := strings.TrimSpace(string(scope)); os.Geteuid() != 0 && s > "1" {
		return fmt.Errorf("bending the clocks of children needs root where kernel.yama.ptrace_scope is %s", s)
	}
	_, err := find(os.Getpid())
	return err
}

// Bend takes the clocks of a process over, without any change to them yet.
func Bend(pid int) (*Bent, error) {
	at, err := find(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("bend the clocks of process %d: %w", pid, err)
	}
	b := &Bent{pid: pid, mem: mem, table: at.free + int64(len(stub))}
	jump := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(at.free-at.entry-jumpBytes))
	err = b.stopped(&at, func() error {
		if _, err := mem.WriteAt(append(bytes.Clone(stub), make([]byte, tableBytes)...), at.free); err != nil {
			return err
		}
		_, err := mem.WriteAt(jump, at.entry)
		return err
	})
	if err != nil {
		mem.Close()
		return nil, fmt.Errorf("bend the clocks of process %d: %w", pid, err)
	}
	return b, nil
}

// Step moves a clock by an offset, at once.
func (b *Bent) Step(k Kind, by time.Duration) error {
	b.rows[k].offset += int64(by)
	return b.write(k)
}

// Rate makes a clock run faster than the kernel's by so many parts in a
// million, from now on. A clock of rate 0 keeps what it has gained.
func (b *Bent) Rate(k Kind, ppm int64) error {
	return b.stopped(nil, func() error {
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(k), &ts); err != nil {
			return err
		}
		r := &b.rows[k]
		r.offset += (ts.Nano() - r.base) * r.rate / rateUnit
		r.base, r.rate = ts.Nano(), ppm*rateUnit/1_000_000
		return b.write(k)
	})
}

// Close lets go of the process; its clocks stay bent.
func (b *Bent) Close() error { return b.mem.Close() }

func (b *Bent) write(k Kind) error {
	r := b.rows[k]
	row := make([]byte, 0, rowBytes)
	for _, v := range [...]int64{r.base, r.rate, r.offset} {
		row = binary.LittleEndian.AppendUint64(row, uint64(v))
	}
	if _, err := b.mem.WriteAt(row, b.table+int64(k)*rowBytes); err != nil {
		return fmt.Errorf("bend the clocks of process %d: %w", b.pid, err)
	}
	return nil
}

// A place is where a process's vDSO is to be changed.
type place struct {
	entry int64 // of clock_gettime
	free  int64 // unused bytes behind the code
}

// find looks for clock_gettime in a process's vDSO, and for room.
func find(pid int) (place, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return place{}, fmt.Errorf("find the vDSO: %w", err)
	}
	var from, to int64
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				return place{}, fmt.Errorf("find the vDSO: %w", err)
			}
		}
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil || from == to {
		return place{}, fmt.Errorf("process %d has no vDSO that can be read: %w", pid, err)
	}
	defer mem.Close()
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil {
		return place{}, fmt.Errorf("read the vDSO: %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return place{}, fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return place{}, fmt.Errorf("read the vDSO: %w", err)
	}
	room := int64(len(image)-len(stub)-tableBytes) &^ 15
	if room < 0 || bytes.Trim(image[room:], "\x00") != nil {
		return place{}, errors.New("the vDSO has no room behind its code")
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			return place{entry: from + int64(s.Value), free: from + room}, nil
		}
	}
	return place{}, errors.New("the vDSO has no clock_gettime")
}

// stopped calls f while the process is stopped, with no thread within the first
// instructions of a place; nil is nowhere.
func (b *Bent) stopped(away *place, f func() error) error {
	if err := syscall.Kill(b.pid, syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { _ = syscall.Kill(b.pid, syscall.SIGCONT) }() // it has ended, or goes on
	for range 2000 {
		switch b.threads(away) {
		case stopped:
			return f()
		case inTheWay:
			_ = syscall.Kill(b.pid, syscall.SIGCONT)
			time.Sleep(time.Millisecond)
			_ = syscall.Kill(b.pid, syscall.SIGSTOP)
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("it does not stop")
}

type threads int

const (
	running threads = iota
	stopped
	inTheWay
)

// threads looks at all threads of the process.
func (b *Bent) threads(away *place) threads {
	dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", b.pid))
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue // it has ended
		}
		if rest := stat[bytes.LastIndexByte(stat, ')')+1:]; !strings.HasPrefix(string(rest), " T") {
			return running
		}
		call, err := os.ReadFile(d + "/syscall")
		if err != nil || away == nil {
			continue
		}
		f := strings.Fields(string(call))
		var pc int64
		if _, err := fmt.Sscanf(f[len(f)-1], "0x%x", &pc); err == nil && pc > away.entry && pc < away.entry+jumpBytes {
			return inTheWay
		}
	}
	return stopped
}
