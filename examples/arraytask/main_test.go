package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

func environ(dir string) func(string) string {
	vars := map[string]string{
		gpuai.EnvArrayIndex: "3", gpuai.EnvArraySize: "200", beat.EnvDir: dir,
		gpuai.EnvToken: "77", gpuai.EnvJob: "j", gpuai.EnvTaskGroup: "main", gpuai.EnvTaskIndex: "3",
	}
	return func(k string) string { return vars[k] }
}

func TestRunWorksBeatsAndExits(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-work", "120ms"}, environ(dir), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "element 3 of 200: ") {
		t.Errorf("printed %q", out.String())
	}
	runs, err := beat.ReadRuns(dir)
	if err != nil || len(runs) != 1 || runs[0].Token != 77 || runs[0].Last-runs[0].First < int64(100*time.Millisecond) {
		t.Errorf("%+v, %v", runs, err)
	}
}

func TestRunStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"-work", "1h"}, environ(t.TempDir()), new(bytes.Buffer)); !errors.Is(err, errStopped) {
		t.Errorf("got %v", err)
	}
}

func TestElement(t *testing.T) {
	cases := []struct{ index, size, err string }{
		{"0", "1", ""},
		{"", "200", gpuai.EnvArrayIndex},
		{"x", "200", gpuai.EnvArrayIndex},
		{"5", "", gpuai.EnvArraySize},
		{"5", "5", gpuai.EnvArraySize},
	}
	for _, c := range cases {
		vars := map[string]string{gpuai.EnvArrayIndex: c.index, gpuai.EnvArraySize: c.size}
		_, _, err := element(func(k string) string { return vars[k] })
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q of %q: %v, want %q", c.index, c.size, err, c.err)
		}
	}
}

func TestPrime(t *testing.T) {
	var got []uint64
	for n := range uint64(30) {
		if prime(n) {
			got = append(got, n)
		}
	}
	if want := []uint64{2, 3, 5, 7, 11, 13, 17, 19, 23, 29}; len(got) != len(want) || got[9] != want[9] {
		t.Errorf("%v, want %v", got, want)
	}
}
