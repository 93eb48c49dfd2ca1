package plugins

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func reservation(id string, share gpuai.Milli, ds ...gpuai.DeviceID) Reservation {
	return Reservation{ID: id, Devices: ds, Share: share, Incarnation: 1}
}

func openBook(t *testing.T, dir string) *Book {
	t.Helper()
	b, err := OpenBook(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBookSurvives(t *testing.T) {
	dir := t.TempDir()
	b := openBook(t, dir)
	if err := b.Reserve(reservation("1", 400, "a"), nil); err != nil {
		t.Fatal(err)
	}
	next := openBook(t, dir)
	if !reflect.DeepEqual(next.now, b.now) {
		t.Errorf("wrote %+v, read %+v", b.now, next.now)
	}
	if e, held := next.Lookup("1"); !held || e.SinceBoot <= 0 {
		t.Errorf("the entry is %+v, %t", e, held)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("the directory has %v, %v", files, err)
	}
}

func TestBookRules(t *testing.T) {
	b := openBook(t, t.TempDir())
	excludes := func(id gpuai.DeviceID) []gpuai.DeviceID {
		return map[gpuai.DeviceID][]gpuai.DeviceID{"a": {"a1"}, "a1": {"a"}}[id]
	}
	for i, c := range []struct {
		r    Reservation
		want error
	}{
		{reservation("1", 1000, "a", "b"), nil},
		{reservation("2", 1000, "b", "c"), ErrHeld},
		{reservation("2", 1, "b"), ErrHeld},
		{reservation("2", 1000, "a1"), ErrHeld},
		{reservation("2", 1000, "c"), nil},
	} {
		if err := b.Reserve(c.r, excludes); !errors.Is(err, c.want) {
			t.Errorf("%d: %v, want %v", i, err, c.want)
		}
	}
	if held, err := b.Answer(reservation("1", 1000, "a", "b")); !held || err != nil {
		t.Errorf("the same again: %t, %v", held, err)
	}
	if _, err := b.Answer(reservation("1", 1000, "a")); !errors.Is(err, ErrMismatch) {
		t.Errorf("another device: %v", err)
	}
	newer := reservation("1", 1000, "a", "b")
	newer.Incarnation = 2
	if held, err := b.Answer(newer); !held || err != nil {
		t.Errorf("by the next incarnation: %t, %v", held, err)
	}
	if _, err := b.Answer(reservation("9", 1000, "d")); !errors.Is(err, ErrStale) {
		t.Errorf("by the one before: %v", err)
	}
	if e, err := b.Release("1"); err != nil || !slices.Equal(e.Devices, []gpuai.DeviceID{"a", "b"}) {
		t.Errorf("released %+v, %v", e, err)
	}
	if e, err := b.Release("1"); err != nil || len(e.Devices) > 0 {
		t.Errorf("released again %+v, %v", e, err)
	}
	if known, orphaned := b.Recover([]string{"3", "1"}); len(known) > 0 || !slices.Equal(orphaned, []string{"2"}) {
		t.Errorf("recovered %v, %v", known, orphaned)
	}
}

func TestDamagedBook(t *testing.T) {
	for _, src := range []string{"", "{", `{"held":{},"more":1}`, `{"held":{}} x`} {
		dir := t.TempDir()
		path := filepath.Join(dir, "reservations.json")
		if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenBook(dir); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", src, err)
		}
	}
}

// A reservation that cannot be written down is refused and not held.
func TestBookCannotBeWritten(t *testing.T) {
	b := openBook(t, t.TempDir())
	b.path = filepath.Join(t.TempDir(), "none", "reservations.json")
	if err := b.Reserve(reservation("1", 1000, "a"), nil); err == nil {
		t.Error("reserved without writing it down")
	}
	if b.Share("a") > 0 {
		t.Errorf("it holds %v", b.now.Held)
	}
}
