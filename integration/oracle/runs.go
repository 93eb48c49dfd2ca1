// Package oracle judges from outside what the region promises of its tasks:
// from the beats that the tasks leave, and from the region's events.
package oracle

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/gpuai/gpuai/examples/beat"
)

// Runners counts what OneRunner has looked at.
type Runners struct {
	Tasks int `json:"tasks"`
	Runs  int `json:"runs"`
	Beats int `json:"beats"`
}

// OneRunner checks that no task ever had two runners: of two of its runs, the
// last beat of the one comes before the first beat of the other, which has the
// greater token. The error is one of errors.Join, of all that are wrong.
func OneRunner(runs []beat.Run) (Runners, error) {
	seen, wrong := Judge(runs)
	return seen, errors.Join(wrong...)
}

// Judge is OneRunner with one error for each pair of runs that is wrong.
func Judge(runs []beat.Run) (seen Runners, wrong []error) {
	byTask := map[TaskKey][]beat.Run{}
	seen.Runs = len(runs)
	for _, r := range runs {
		key := TaskKey{r.Job + "/" + r.Group, r.Task}
		byTask[key] = append(byTask[key], r)
		seen.Beats += r.Beats
	}
	seen.Tasks = len(byTask)
	for _, of := range byTask {
		slices.SortFunc(of, func(a, b beat.Run) int { return cmp.Compare(a.First, b.First) })
		for i := 1; i < len(of); i++ {
			if err := apart(&of[i-1], &of[i]); err != nil {
				wrong = append(wrong, err)
			}
		}
	}
	return seen, wrong
}

// apart checks one run against the next of the same task.
func apart(a, b *beat.Run) error {
	at := fmt.Sprintf("task %d of job %s, group %s", a.Task, a.Job, a.Group)
	switch {
	case a.Token == b.Token:
		return fmt.Errorf("%s was started twice under the token %s", at, a.Token)
	case a.Last >= b.First:
		return fmt.Errorf("%s had two runners: token %s beat for %.0f ms after token %s had begun", at, a.Token, float64(a.Last-b.First)/1e6, b.Token)
	case a.Token > b.Token:
		return fmt.Errorf("%s ran under token %s after it had run under the greater %s", at, b.Token, a.Token)
	}
	return nil
}
