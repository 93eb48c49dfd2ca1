package oracle

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

func aRun(token gpuai.Token, task uint32, first, last int64) beat.Run {
	return beat.Run{
		Identity: beat.Identity{Token: token, Job: "job", Group: "main", Task: task},
		First:    first, Last: last, Beats: 3,
	}
}

func TestOneRunner(t *testing.T) {
	other := aRun(9, 0, 100, 900)
	other.Group = "second"
	cases := []struct {
		name string
		runs []beat.Run
		err  string
		want Runners
	}{
		{"none", nil, "", Runners{}},
		{"one after the other", []beat.Run{aRun(7, 0, 500, 900), aRun(5, 0, 100, 499)}, "", Runners{Tasks: 1, Runs: 2, Beats: 6}},
		{"different tasks at once", []beat.Run{aRun(7, 0, 100, 900), aRun(8, 1, 100, 900), other}, "", Runners{Tasks: 3, Runs: 3, Beats: 9}},
		{"two at once", []beat.Run{aRun(5, 0, 100, 500), aRun(7, 0, 499, 900)}, "had two runners", Runners{}},
		{"two at the same instant", []beat.Run{aRun(5, 0, 100, 500), aRun(7, 0, 500, 900)}, "had two runners", Runners{}},
		{"one within the other", []beat.Run{aRun(5, 0, 100, 500), aRun(7, 0, 200, 300)}, "had two runners", Runners{}},
		{"the third within the first", []beat.Run{aRun(5, 0, 100, 250), aRun(7, 0, 300, 400), aRun(8, 0, 350, 600)}, "had two runners", Runners{}},
		{"the old token last", []beat.Run{aRun(7, 0, 100, 200), aRun(5, 0, 300, 400)}, "after it had run under the greater", Runners{}},
		{"a token twice", []beat.Run{aRun(5, 0, 100, 200), aRun(5, 0, 300, 400)}, "twice under the token 5", Runners{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := OneRunner(c.runs)
			if c.err == "" && (err != nil || got != c.want) {
				t.Errorf("%+v, %v, want %+v", got, err, c.want)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}
