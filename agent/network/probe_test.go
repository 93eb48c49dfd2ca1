package network

import (
	"os"
	"testing"

	"github.com/gpuai/gpuai/agent/network/mesh"
)

// Whether a host can have meshes is the same each time it is asked, though a
// device's closing ends by chance in one of two ways.
func TestMeshIsProbedAlikeEachTime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("devices are made by root")
	}
	h, err := newHub()
	if err != nil {
		t.Skip("no network namespace: ", err)
	}
	defer h.leave()
	first := mesh.Probe(h.space)
	for i := range 60 {
		if err := mesh.Probe(h.space); (err == nil) != (first == nil) {
			t.Fatalf("probe %d: %v, the first: %v", i, err, first)
		}
	}
}
