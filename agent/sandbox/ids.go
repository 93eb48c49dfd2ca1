package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// RangeSize is how many users and groups a sandbox has.
const RangeSize = 65_536

// A Range is users of the host that are a sandbox's 0, 1, …; its groups have
// the same numbers.
type Range struct{ First, Size uint32 }

// Slot is the range's number: no other task's of the host.
func (r Range) Slot() uint32 { return (r.First - firstID) / RangeSize }

func (r Range) mapping() []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: r.First, Size: r.Size}}
}

// Where ranges are: far above what hosts give to people, services and
// rootless containers (/etc/subuid begins at 100,000).
const (
	firstID   = 1 << 28
	maxRanges = 4096 // network.Slots too: a range's number is its task's address
)

// AllRanges are the users of the host that sandboxes have, all together.
var AllRanges = Range{First: firstID, Size: maxRanges * RangeSize}

// Ranges lends ranges of users to tasks: no two at a time have one in common,
// whichever agents of the host they are of. A loan is a file, so that it outlives
// the agent as the task does.
type Ranges struct {
	dir   string // of all agents of the host
	owner string

	mu   sync.Mutex // guards below
	lent map[int]string
	next int // where to look first: a range is not used again at once
	most int // how many there are
}

// OpenRanges reads which ranges of the host's directory are lent to owner, which
// names an agent. The directory must not outlive a boot, as tasks do not.
func OpenRanges(dir, owner string) (*Ranges, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ranges of users: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("ranges of users: %w", err)
	}
	r := &Ranges{dir: dir, owner: owner, lent: map[int]string{}, most: maxRanges}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil || n < 0 || n >= maxRanges {
			continue
		}
		r.next = max(r.next, n+1)
		b, err := os.ReadFile(r.path(n))
		if who, ok := strings.CutPrefix(string(b), owner+" "); err == nil && ok {
			r.lent[n] = who
		}
	}
	return r, nil
}

// Lend gives who a range, the same one until it is taken back.
func (r *Ranges) Lend(who string) (Range, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, has := range r.lent {
		if has == who {
			return rangeOf(n), nil
		}
	}
	for i := range r.most {
		n := (r.next + i) % r.most
		switch err := r.take(n, who); {
		case err == nil:
			r.lent[n], r.next = who, n+1
			return rangeOf(n), nil
		case !errors.Is(err, fs.ErrExist):
			return Range{}, fmt.Errorf("ranges of users: %w", err)
		}
	}
	return Range{}, fmt.Errorf("all %d ranges of users are lent", r.most)
}

// take makes the file of a range with its content, or finds that it is there.
func (r *Ranges) take(n int, who string) error {
	f, err := os.CreateTemp(r.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(r.owner + " " + who)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), r.path(n))
}

// Return takes back what was lent to all but those whom keep names.
func (r *Ranges) Return(keep func(who string) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for n, who := range r.lent {
		if keep(who) {
			continue
		}
		if err := os.Remove(r.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("ranges of users: %w", err))
			continue
		}
		delete(r.lent, n)
	}
	return errors.Join(errs...)
}

func (r *Ranges) path(n int) string { return filepath.Join(r.dir, strconv.Itoa(n)) }

func rangeOf(n int) Range {
	return Range{First: firstID + uint32(n)*RangeSize, Size: RangeSize}
}
