package sim

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A book holds the reservations, on disk before they count. The caller locks.
type book struct {
	path string
	page
}

// A page is the book's form on disk.
type page struct {
	Newest gpuai.Incarnation `json:"newest_incarnation"`
	Held   map[string]entry  `json:"held"`
}

// An entry is one reservation.
type entry struct {
	Devices []gpuai.DeviceID `json:"devices"`
	Share   gpuai.Milli      `json:"share_milli"`
}

// openBook reads the book of a state directory, or begins one.
func openBook(dir string) (*book, error) {
	b := &book{path: filepath.Join(dir, "reservations.json"), page: page{Held: map[string]entry{}}}
	src, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the reservations: %w", err)
	}
	if err := json.Unmarshal(src, &b.page, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w: the reservations in %s are damaged (%w): stop the node's tasks and remove the file", plugins.ErrInvalid, b.path, err)
	}
	if b.Held == nil {
		b.Held = map[string]entry{}
	}
	return b, nil
}

// reserve enters r, which is not held yet. conflicts gives the devices that
// exclude one.
func (b *book) reserve(r plugins.Reservation, conflicts func(gpuai.DeviceID) []gpuai.DeviceID) error {
	for _, id := range r.Devices {
		used := gpuai.Milli(0)
		for other, e := range b.Held {
			if slices.Contains(e.Devices, id) {
				used += e.Share
			}
			for _, c := range conflicts(id) {
				if slices.Contains(e.Devices, c) {
					return fmt.Errorf("%w: %s excludes %s, which reservation %s holds", plugins.ErrHeld, id, c, other)
				}
			}
		}
		if used+r.Share > gpuai.WholeDevice {
			return fmt.Errorf("%w: %s has %d/1000 free, reservation %s asks for %d/1000",
				plugins.ErrHeld, id, gpuai.WholeDevice-used, r.ID, r.Share)
		}
	}
	next := page{Newest: r.Incarnation, Held: maps.Clone(b.Held)}
	next.Held[r.ID] = entry{Devices: r.Devices, Share: r.Share}
	return b.write(next)
}

// held answers a repeated reservation: whether its ID is held, and as what.
func (b *book) held(r plugins.Reservation) (bool, error) {
	if r.Incarnation < b.Newest {
		return false, fmt.Errorf("%w: reservation %s is of incarnation %d, %d has reserved since", plugins.ErrStale, r.ID, r.Incarnation, b.Newest)
	}
	e, ok := b.Held[r.ID]
	if !ok {
		return false, nil
	}
	if e.Share != r.Share || !slices.Equal(e.Devices, r.Devices) {
		return true, fmt.Errorf("%w: %s holds %d/1000 of %v", plugins.ErrMismatch, r.ID, e.Share, e.Devices)
	}
	if r.Incarnation == b.Newest {
		return true, nil
	}
	return true, b.write(page{Newest: r.Incarnation, Held: b.Held})
}

// release strikes id out and returns what it held.
func (b *book) release(id string) (entry, error) {
	e, ok := b.Held[id]
	if !ok {
		return entry{}, nil
	}
	next := page{Newest: b.Newest, Held: maps.Clone(b.Held)}
	delete(next.Held, id)
	return e, b.write(next)
}

// split sorts what is held into what ids name and the rest.
func (b *book) split(ids []string) (known, orphaned []string) {
	for _, id := range slices.Sorted(maps.Keys(b.Held)) {
		if slices.Contains(ids, id) {
			known = append(known, id)
		} else {
			orphaned = append(orphaned, id)
		}
	}
	return known, orphaned
}

// share is how much of a device is held.
func (b *book) share(id gpuai.DeviceID) gpuai.Milli {
	used := gpuai.Milli(0)
	for _, e := range b.Held {
		if slices.Contains(e.Devices, id) {
			used += e.Share
		}
	}
	return used
}

// write makes next the book, on disk first.
func (b *book) write(next page) error {
	src, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("writing the reservations: %w", err)
	}
	if err := replace(b.path, src); err != nil {
		return fmt.Errorf("writing the reservations: %w", err)
	}
	b.page = next
	return nil
}

// replace writes a file so that after a crash there is the old or the new one.
func replace(path string, src []byte) error {
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
