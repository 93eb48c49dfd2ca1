package main

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

const (
	unbroken = "rank 0 of 4 starts at step 0\nstep 0 loss 0.9\nstep 10 loss 0.5\nstep 20 loss 0.1\ndone: 30 steps, loss 0.05, weights 1f\n"
	firstRun = "rank 0 of 4 starts at step 0\nstep 0 loss 0.9\nstep 10 loss 0.5\nstep 20 los"
	lastRun  = "resumed from the checkpoint of step 15\nrank 0 of 4 starts at step 15\nstep 20 loss 0.1\ndone: 30 steps, loss 0.05, weights 1f\n"
)

func TestTrainingLog(t *testing.T) {
	l := newTrainingLog()
	l.take(5, firstRun[:50])
	l.take(5, firstRun)
	if got := l.step(); got != 10 {
		t.Errorf("step %d after a line that is not whole, want 10", got)
	}
	l.take(8, lastRun)
	got, err := l.summary(unbroken)
	want := training{FirstLoss: "0.9", LastLoss: "0.1", ResumedStep: 15, Done: "30 steps, loss 0.05, weights 1f"}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func TestTrainingLogFindsBrokenClaims(t *testing.T) {
	cases := []struct {
		name, first, last, whole, err string
	}{
		{"from the start again", firstRun, unbroken, unbroken, "did not go on from a checkpoint"},
		{"rising loss", firstRun, strings.Replace(lastRun, "0.1", "0.99", 1), unbroken, "did not fall"},
		{"another way after the checkpoint", firstRun + "s 0.2\n", lastRun, unbroken, "went another way"},
		{"another way than unbroken", firstRun, lastRun, strings.Replace(unbroken, "0.5", "0.51", 1), "not broken off"},
		{"other weights", firstRun, lastRun, strings.Replace(unbroken, "1f", "2f", 1), "not broken off"},
		{"no end", firstRun, strings.Replace(lastRun, "done", "gone", 1), unbroken, "ended with \"\""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := newTrainingLog()
			for i, out := range []string{c.first, c.last} {
				l.take(gpuai.Token(i), out)
			}
			if _, err := l.summary(c.whole); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}
