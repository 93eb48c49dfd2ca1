package watchdog

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Version 2 says what it has in a file, version 1 by what is mounted; what cannot
// be written to limits nothing.
func TestSurveyOfControlGroups(t *testing.T) {
	dir := t.TempDir()
	two := cgroupMount{path: dir, v2: true}
	one := func(name string) cgroupMount { return cgroupMount{path: dir, controllers: []string{name}} }
	for name, c := range map[string]struct {
		controllers string // of version 2
		mounts      []cgroupMount
		version     string
		limits      []string
		why         bool
	}{
		"Two":         {"cpuset cpu io memory pids\n", []cgroupMount{two}, "2", []string{"cpu", "memory", "pids"}, false},
		"TwoNoMemory": {"cpu pids\n", []cgroupMount{two}, "2", []string{"cpu", "pids"}, false},
		"One":         {"", []cgroupMount{one("memory"), one("pids"), one("cpu")}, "1", []string{"cpu", "memory", "pids"}, false},
		"Hybrid":      {"", []cgroupMount{one("memory"), two, one("pids"), {path: dir, extra: true}}, "hybrid", []string{"memory", "pids"}, false},
		"Gone":        {"", []cgroupMount{{path: filepath.Join(dir, "none"), controllers: []string{"cpu"}}}, "1", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(c.controllers), 0o644); err != nil {
				t.Fatal(err)
			}
			got := survey(c.mounts)
			if got.Version != c.version || !slices.Equal(got.Limits, c.limits) || len(got.Why) > 0 != c.why {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestStaticPrograms(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{text, "/bin/sh", filepath.Join(t.TempDir(), "none")} {
		if Static(path) == nil {
			t.Errorf("%s is static", path)
		}
	}
}
