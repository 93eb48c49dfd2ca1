package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestVaultKeepsTheNewest(t *testing.T) {
	v := &vault{path: filepath.Join(t.TempDir(), "state"), token: 5}
	if c, err := v.claim(2); c != nil || err != nil {
		t.Fatalf("an empty vault has %v, %v", c, err)
	}
	for step := range 3 {
		if err := v.save(&checkpoint{step: step, state: []float64{float64(step), -0.1}}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := (&vault{path: v.path, token: 6}).claim(2)
	if err != nil || c.step != 2 || !slices.Equal(c.state, []float64{2, -0.1}) {
		t.Fatalf("%+v, %v", c, err)
	}
}

func TestVaultRefusesOldTokens(t *testing.T) {
	old := &vault{path: filepath.Join(t.TempDir(), "state"), token: 5}
	if err := old.save(&checkpoint{step: 10, state: []float64{1}}); err != nil {
		t.Fatal(err)
	}
	next := &vault{path: old.path, token: 6}
	if _, err := next.claim(1); err != nil {
		t.Fatal(err)
	}
	// Before the newer runner has saved anything.
	if err := old.save(&checkpoint{step: 20, state: []float64{2}}); !errors.Is(err, errReplaced) {
		t.Errorf("an old runner's save: %v", err)
	}
	if _, err := old.claim(1); !errors.Is(err, errReplaced) {
		t.Errorf("an old runner's claim: %v", err)
	}
	if c, err := next.claim(1); err != nil || c.step != 10 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestVaultFindsDamage(t *testing.T) {
	v := &vault{path: filepath.Join(t.TempDir(), "state")}
	if err := v.save(&checkpoint{step: 1, state: []float64{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(v.path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(whole)
	flipped[len(flipped)/2] ^= 4
	cases := map[string][]byte{
		"empty": {}, "cut": whole[:len(whole)-8], "cut to the head": whole[:20], "flipped": flipped, "other": []byte("hello"),
	}
	for name, b := range cases {
		if err := os.WriteFile(v.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := v.claim(3); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: %v", name, err)
		}
		if err := v.save(&checkpoint{state: []float64{1, 2, 3}}); err == nil {
			t.Errorf("%s: was written over", name)
		}
	}
	if err := os.WriteFile(v.path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.claim(4); err == nil || !strings.Contains(err.Error(), "other flags") {
		t.Errorf("another length: %v", err)
	}
}

func TestVaultWithoutAPlace(t *testing.T) {
	v := &vault{path: "/nonexistent/dir/state"}
	if _, err := v.claim(1); err == nil {
		t.Error("claimed nothing")
	}
	none := new(vault)
	if c, err := none.claim(1); c != nil || err != nil || none.save(new(checkpoint)) != nil {
		t.Errorf("the vault without a path: %v, %v", c, err)
	}
}

// What a runner publishes its next one goes on from; the agent takes the
// directories away.
func TestVaultPublishes(t *testing.T) {
	dir := t.TempDir()
	v := &vault{publish: dir, token: 5}
	if c, err := v.claim(1); c != nil || err != nil {
		t.Fatalf("the first run has %v, %v", c, err)
	}
	for _, x := range []float64{1, 2} { // at the same step again
		if err := v.save(&checkpoint{step: 10, state: []float64{x}}); err != nil {
			t.Fatal(err)
		}
	}
	next := &vault{publish: t.TempDir(), from: filepath.Join(dir, "step-10"), token: 6}
	if c, err := next.claim(1); err != nil || c.step != 10 || c.state[0] != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := next.claim(2); err == nil || !strings.Contains(err.Error(), "other flags") {
		t.Errorf("another length: %v", err)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 {
		t.Errorf("%v are left", left)
	}
}
