package plugins

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// A Book keeps a driver's reservations, on disk before they count, and the rules
// that are the same for all drivers: an ID is idempotent, an older incarnation is
// refused, a device has one holder or shares that fit. It is not for use by
// several goroutines at a time: the driver locks.
type Book struct {
	path string
	now  page
}

// A page is the book's form on disk.
type page struct {
	Newest gpuai.Incarnation `json:"newest_incarnation"`
	Held   map[string]Entry  `json:"held"`
}

// An Entry is one reservation of a Book.
type Entry struct {
	Devices []gpuai.DeviceID `json:"devices"`
	Share   gpuai.Milli      `json:"share_milli"`
	// SinceBoot is when the devices were reserved, on CLOCK_BOOTTIME.
	SinceBoot gpuai.Duration `json:"since_boot_ms,omitzero"`
}

// OpenBook reads the book of a state directory, or begins one. Its error wraps
// ErrInvalid when the file is damaged.
func OpenBook(stateDir string) (*Book, error) {
	b := &Book{path: filepath.Join(stateDir, "reservations.json"), now: page{Held: map[string]Entry{}}}
	src, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the reservations: %w", err)
	}
	if err := json.Unmarshal(src, &b.now, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w: the reservations in %s are damaged (%w): stop the node's tasks and remove the file", ErrInvalid, b.path, err)
	}
	if b.now.Held == nil {
		b.now.Held = map[string]Entry{}
	}
	return b, nil
}

// Reserve enters r, which is not held yet (see Answer). conflicts gives the
// devices that exclude one; nil means that none do. Its errors wrap ErrHeld, or
// say that the book could not be written: then nothing is held.
func (b *Book) Reserve(r Reservation, conflicts func(gpuai.DeviceID) []gpuai.DeviceID) error {
	for _, id := range r.Devices {
		used := gpuai.Milli(0)
		for other, e := range b.now.Held {
			if slices.Contains(e.Devices, id) {
				used += e.Share
			}
			for _, c := range excluding(conflicts, id) {
				if slices.Contains(e.Devices, c) {
					return fmt.Errorf("%w: %s excludes %s, which reservation %s holds", ErrHeld, id, c, other)
				}
			}
		}
		if used+r.Share > gpuai.WholeDevice {
			return fmt.Errorf("%w: %s has %d/1000 free, reservation %s asks for %d/1000",
				ErrHeld, id, gpuai.WholeDevice-used, r.ID, r.Share)
		}
	}
	next := page{Newest: r.Incarnation, Held: maps.Clone(b.now.Held)}
	next.Held[r.ID] = Entry{Devices: r.Devices, Share: r.Share, SinceBoot: sinceBoot()}
	return b.write(next)
}

// sinceBoot reads CLOCK_BOOTTIME.
func sinceBoot() gpuai.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // no kernel that runs this lacks it
	}
	return gpuai.Duration(t.Nano() / 1e6)
}

func excluding(conflicts func(gpuai.DeviceID) []gpuai.DeviceID, id gpuai.DeviceID) []gpuai.DeviceID {
	if conflicts == nil {
		return nil
	}
	return conflicts(id)
}

// Answer looks a reservation up that may be repeated: held says that its ID is
// held with just these devices. Its errors wrap ErrStale and ErrMismatch.
func (b *Book) Answer(r Reservation) (held bool, err error) {
	if r.Incarnation < b.now.Newest {
		return false, fmt.Errorf("%w: reservation %s is of incarnation %d, %d has reserved since", ErrStale, r.ID, r.Incarnation, b.now.Newest)
	}
	e, ok := b.now.Held[r.ID]
	if !ok {
		return false, nil
	}
	if e.Share != r.Share || !slices.Equal(e.Devices, r.Devices) {
		return true, fmt.Errorf("%w: %s holds %d/1000 of %v", ErrMismatch, r.ID, e.Share, e.Devices)
	}
	if r.Incarnation == b.now.Newest {
		return true, nil
	}
	return true, b.write(page{Newest: r.Incarnation, Held: b.now.Held})
}

// Release strikes id out and returns what it held: nothing, if it was not held.
func (b *Book) Release(id string) (Entry, error) {
	e, ok := b.now.Held[id]
	if !ok {
		return Entry{}, nil
	}
	next := page{Newest: b.now.Newest, Held: maps.Clone(b.now.Held)}
	delete(next.Held, id)
	return e, b.write(next)
}

// Recover splits what is held into what ids name and the rest; both are sorted.
func (b *Book) Recover(ids []string) (known, orphaned []string) {
	for _, id := range slices.Sorted(maps.Keys(b.now.Held)) {
		if slices.Contains(ids, id) {
			known = append(known, id)
		} else {
			orphaned = append(orphaned, id)
		}
	}
	return known, orphaned
}

// Lookup returns the entry of an ID.
func (b *Book) Lookup(id string) (e Entry, held bool) {
	e, held = b.now.Held[id]
	return e, held
}

// Share is how much of a device is held.
func (b *Book) Share(id gpuai.DeviceID) gpuai.Milli {
	used := gpuai.Milli(0)
	for _, e := range b.now.Held {
		if slices.Contains(e.Devices, id) {
			used += e.Share
		}
	}
	return used
}

// write makes next the book, on disk first.
func (b *Book) write(next page) error {
	src, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("writing the reservations: %w", err)
	}
	if err := ReplaceFile(b.path, src); err != nil {
		return fmt.Errorf("writing the reservations: %w", err)
	}
	b.now = next
	return nil
}

// ReplaceFile writes a file so that after a crash there is the old or the new one.
func ReplaceFile(path string, src []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(src)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
