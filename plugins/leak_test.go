package plugins_test

import (
	"os"
	"runtime"
	"testing"

	"github.com/gpuai/gpuai/plugins"
)

// Goroutines, descriptors and threads stay flat over starts, deaths and ends.
func TestHostLeaksNothing(t *testing.T) {
	cfg := config(t, "sim")
	cycle := func() {
		h, err := plugins.StartQuick(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		killAndAwait(t, h)
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		bad := cfg
		bad.Config = []byte("{}")
		if _, err := plugins.StartQuick(t.Context(), bad); err == nil {
			t.Error("it accepts an empty configuration")
		}
	}
	cycle() // what is made once
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 5 {
		cycle()
	}
	until(t, "goroutines and files to be given back", func() bool {
		return runtime.NumGoroutine() <= goroutines && openFiles(t) <= files
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
