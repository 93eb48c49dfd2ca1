package store

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/gpuai/gpuai"
)

// linked adds links of an audit to entries, to each third of them.
func linked(entries []ArchiveEntry) []ArchiveEntry {
	for i := range entries {
		if i%3 == 0 {
			entries[i].Audit = fmt.Appendf(nil, "link of %d", entries[i].Index)
		}
	}
	return entries
}

func allAudits(t *testing.T, a *Archive, to uint64) (all []ArchiveRow) {
	t.Helper()
	var at ArchivePlace
	for {
		rows, next, done, err := a.Audits(at, to, 100)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, rows...); done {
			return all
		}
		at = next
	}
}

func TestArchiveKeepsTheAudit(t *testing.T) {
	entries, _ := lives(20)
	linked(entries)
	a := openTestArchive(t, filepath.Join(t.TempDir(), "a.db"))
	for range 2 {
		if err := a.Append(entries); err != nil {
			t.Fatal(err)
		}
	}
	rows := allAudits(t, a, 1<<40)
	if len(rows) != (len(entries)+2)/3 {
		t.Fatalf("%d links of %d", len(rows), (len(entries)+2)/3)
	}
	for i, r := range rows {
		link, err := r.Audit()
		if want := fmt.Sprint("link of ", entries[3*i].Index); err != nil || string(link) != want || r.Index != entries[3*i].Index {
			t.Errorf("index %d: %q, %v, want %q", r.Index, link, err, want)
		}
	}
	if some := allAudits(t, a, entries[9].Index); len(some) != 4 {
		t.Errorf("%d links up to the fourth's index", len(some))
	}
	b := openTestArchive(t, filepath.Join(t.TempDir(), "b.db"))
	sent, err := ReadRows(AppendRows(nil, rows))
	if err != nil || b.Fill(sent, gpuai.IndexRange{From: 1}) != nil {
		t.Fatal(err)
	}
	if got := allAudits(t, b, 1<<40); len(got) != len(rows) || !bytes.Equal(got[5].Value, rows[5].Value) || len(b.State().Covered) != 0 {
		t.Errorf("%d links were copied, %+v", len(got), b.State())
	}
	sent[0].Value = bytes.Clone(sent[0].Value)
	sent[0].Value[len(sent[0].Value)-1] ^= 1
	if b.Fill(sent, gpuai.IndexRange{From: 1}) == nil {
		t.Error("a link that was damaged on the way is taken")
	}
	if counts, err := a.Check(context.Background(), func(place string, err error) { t.Error(place, err) }); err != nil || counts.Audit != uint64(len(rows)) {
		t.Errorf("%+v, %v", counts, err)
	}
	if err := a.Scrub(t.Context(), func() {}); err != nil {
		t.Error(err)
	}
}

// The audit makes room as all history does: the oldest first.
func TestArchiveDropsTheOldestAudit(t *testing.T) {
	entries, _ := lives(2_000)
	linked(entries)
	a := openTestArchive(t, filepath.Join(t.TempDir(), "a.db"))
	if err := a.Append(entries); err != nil {
		t.Fatal(err)
	}
	used, _ := a.Size()
	if _, err := a.Trim(used / 2); err != nil {
		t.Fatal(err)
	}
	rows, dropped := allAudits(t, a, 1<<40), a.State().Dropped
	if n := len(rows); n == 0 || n > len(entries)/4 || rows[0].Index < dropped {
		t.Errorf("%d links are left of %d, the first at index %d, and %d is dropped", n, (len(entries)+2)/3, rows[0].Index, dropped)
	}
	if _, err := a.Trim(0); err != nil || len(allAudits(t, a, 1<<40)) != 0 {
		t.Errorf("trimmed to nothing it has %d links, %v", len(allAudits(t, a, 1<<40)), err)
	}
}
