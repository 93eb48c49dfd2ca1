package main

import (
	"math"
	"math/rand/v2"
)

// A sample is a point of the plane and the class it is of: 0 or 1.
type sample struct{ x, y, class float64 }

// moons returns two noisy half circles that no straight line parts: the same
// for every rank, by the seed.
func moons(n int, seed uint64) []sample {
	r := rand.New(rand.NewPCG(seed, 0x6d6f6f6e73))
	out := make([]sample, n)
	for i := range out {
		angle := math.Pi * r.Float64()
		s := sample{x: math.Cos(angle), y: math.Sin(angle)}
		if i%2 == 1 {
			s = sample{x: 1 - s.x, y: 0.5 - s.y, class: 1}
		}
		s.x += 0.1 * r.NormFloat64()
		s.y += 0.1 * r.NormFloat64()
		out[i] = s
	}
	return out
}

// shard returns the part of the samples that a rank holds.
func shard(all []sample, rank, size int) (part []sample) {
	for i := rank; i < len(all); i += size {
		part = append(part, all[i])
	}
	return part
}

// A model is a network of two inputs, one hidden layer and one output, and the
// velocity of its weights. A hidden neuron has four weights: of x, of y, its
// bias, and that of its output; the output's bias comes last.
type model struct {
	weights  []float64
	velocity []float64
}

const perNeuron = 4

// weightCount is the number of weights of a model.
func weightCount(hidden int) int { return perNeuron*hidden + 1 }

func newModel(hidden int, seed uint64) *model {
	r := rand.New(rand.NewPCG(seed, 0x77656967687473))
	m := &model{weights: make([]float64, weightCount(hidden)), velocity: make([]float64, weightCount(hidden))}
	for i := range m.weights[:perNeuron*hidden] {
		m.weights[i] = r.NormFloat64()
		if i%perNeuron == perNeuron-1 {
			m.weights[i] /= math.Sqrt(float64(hidden))
		}
	}
	return m
}

// gradient writes the sum over part of the loss's gradient into grad, as long
// as the weights, and returns the sum of the loss: the cross entropy.
func (m *model) gradient(part []sample, grad []float64) (loss float64) {
	clear(grad)
	w, bias := m.weights, len(m.weights)-1
	active := make([]float64, bias/perNeuron)
	for _, s := range part {
		z := w[bias]
		for h := range active {
			n := w[perNeuron*h : perNeuron*h+perNeuron]
			active[h] = math.Tanh(n[0]*s.x + n[1]*s.y + n[2])
			z += n[3] * active[h]
		}
		loss += math.Max(z, 0) - z*s.class + math.Log1p(math.Exp(-math.Abs(z)))
		d := 1/(1+math.Exp(-z)) - s.class
		grad[bias] += d
		for h, a := range active {
			g := grad[perNeuron*h : perNeuron*h+perNeuron]
			back := d * w[perNeuron*h+3] * (1 - a*a)
			g[0] += back * s.x
			g[1] += back * s.y
			g[2] += back
			g[3] += d * a
		}
	}
	return loss
}

// momentum is the part of its velocity that a weight keeps from step to step.
const momentum = 0.9

// descend takes one step against the gradient that was summed over n samples.
func (m *model) descend(grad []float64, n int, rate float64) {
	for i, g := range grad {
		m.velocity[i] = momentum*m.velocity[i] - rate*g/float64(n)
		m.weights[i] += m.velocity[i]
	}
}
