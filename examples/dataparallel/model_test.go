package main

import (
	"math"
	"slices"
	"testing"
)

// The gradient agrees with differences of the loss.
func TestGradient(t *testing.T) {
	part := moons(40, 3)
	m := newModel(5, 3)
	grad := make([]float64, len(m.weights))
	m.gradient(part, grad)
	const h = 1e-6
	scratch := make([]float64, len(grad))
	for i := range m.weights {
		w := m.weights[i]
		m.weights[i] = w + h
		up := m.gradient(part, scratch)
		m.weights[i] = w - h
		down := m.gradient(part, scratch)
		m.weights[i] = w
		if diff := (up - down) / (2 * h); math.Abs(diff-grad[i]) > 1e-4*(1+math.Abs(diff)) {
			t.Errorf("weight %d: gradient %v, difference %v", i, grad[i], diff)
		}
	}
}

func TestShardsArePartsOfAll(t *testing.T) {
	all := moons(103, 1)
	if !slices.Equal(all, moons(103, 1)) || slices.Equal(all, moons(103, 2)) {
		t.Error("the data is not that of its seed")
	}
	n := 0
	for r := range 4 {
		part := shard(all, r, 4)
		if len(part) < 25 || len(part) > 26 {
			t.Errorf("rank %d has %d samples", r, len(part))
		}
		n += len(part)
	}
	if n != len(all) {
		t.Errorf("%d of %d samples", n, len(all))
	}
}
