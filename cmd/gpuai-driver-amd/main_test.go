package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gpuai/gpuai/plugins/amd/amdtest"
	"github.com/gpuai/gpuai/plugins/conformance"
)

// The binary that is shipped passes what every driver must, on a host of eight
// MI300X and on one with partitions.
func TestConformance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuai-driver-amd")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the driver: %v\n%s", err, out)
	}
	subject := func(tr *amdtest.Tree) conformance.Subject {
		config, err := json.Marshal(map[string]any{"root": tr.Root, "period_ms": 200})
		if err != nil {
			t.Fatal(err)
		}
		return conformance.Subject{
			Path: path, Config: config,
			Refused: map[string][]byte{
				"a relative root":    []byte(`{"root":"sys"}`),
				"no PCI address":     []byte(`{"exclude":["card0"]}`),
				"a period too short": []byte(`{"period_ms":1}`),
			},
		}
	}
	conformance.Run(t, subject(amdtest.MI300X(t)))
	for _, c := range conformance.Checks() {
		if c.Name == "partitions" {
			c.Func(t, subject(amdtest.MI300XParts(t)))
		}
	}
}
