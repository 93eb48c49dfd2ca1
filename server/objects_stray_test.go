package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// What a server that died left of an object half stored does not keep its lease from
// deleting what it lists: one key that is none of its own would be the refusal of all.
func TestStrayFileDoesNotStopDeletes(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	m, l := e.leader(), storeLease(&e.lease)
	if err := use(t, m, l, storePut(chunkOf(&e.lease), 8)); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(strings.TrimPrefix(e.url, "file://"), filepath.FromSlash(chunkOf(&e.lease))) + ".18d2f.tmp"
	if err := os.WriteFile(stray, []byte("xx"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := gpuai.StoreDelete{StoreLease: l}
	for _, o := range list(t, m, l) {
		d.Keys = append(d.Keys, o.Key)
	}
	if err := m.DeleteObjects(t.Context(), &d); err != nil || len(d.Keys) == 0 {
		t.Errorf("delete %v: %v", d.Keys, err)
	}
	if left := list(t, m, l); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}
