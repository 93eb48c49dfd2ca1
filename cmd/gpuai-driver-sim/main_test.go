package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gpuai/gpuai/plugins/conformance"
)

// The binary that is shipped passes what every driver must.
func TestConformance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuai-driver-sim")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the driver: %v\n%s", err, out)
	}
	conformance.Run(t, conformance.Subject{
		Path: path,
		Config: []byte(`{"seed":"conformance","devices":[
			{"vendor":"nvidia","model":"H100-SXM5-80GB","memory_bytes":85899345920,"count":3,"link":"nvlink","link_width":18},
			{"vendor":"amd","model":"MI300X","memory_bytes":206158430208,"count":1},
			{"vendor":"nvidia","model":"A100-40GB","memory_bytes":42949672960,"count":1,"partitions":2}]}`),
		Refused: map[string][]byte{
			"no devices":        []byte(`{"seed":"x","devices":[]}`),
			"too many devices":  []byte(`{"seed":"x","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":65}]}`),
			"an unknown fault":  []byte(`{"seed":"x","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":1}],"faults":[{"kind":"fire"}]}`),
			"a negative memory": []byte(`{"seed":"x","devices":[{"vendor":"v","model":"m","memory_bytes":-1,"count":1}]}`),
		},
	})
}
