package jobfile

import (
	"fmt"
	"strings"

	"github.com/gpuai/gpuai"
)

// A Problem is one thing that is wrong with a file.
type Problem struct {
	gpuai.FieldError        // Pointer is into the file's form; Line and Column count from 1, 0 when not known
	Excerpt          string // the line and a mark under the column; two lines, or empty
}

// Errors is everything that is wrong with one file, in the file's order.
type Errors struct {
	Name string // of the file
	List []Problem
}

// Error returns every problem as "file:line:col: pointer: what", each followed
// by its excerpt.
func (e *Errors) Error() string {
	var b strings.Builder
	for i, p := range e.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%d:%d: ", e.Name, p.Line, p.Column)
		if p.Pointer != "" {
			b.WriteString(p.Pointer + ": ")
		}
		b.WriteString(p.Detail)
		if p.Excerpt != "" {
			b.WriteString("\n" + p.Excerpt)
		}
	}
	return b.String()
}

// Fields returns the problems in the form of the HTTP API.
func (e *Errors) Fields() []gpuai.FieldError {
	out := make([]gpuai.FieldError, len(e.List))
	for i, p := range e.List {
		out[i] = p.FieldError
	}
	return out
}
