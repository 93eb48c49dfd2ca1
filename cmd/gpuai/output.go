package main

import (
	"bytes"
	"context"
	stdjson "encoding/json" // for json.Number, which gojq takes
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"

	"github.com/gpuai/gpuai/internal/jobfile"
)

// A view is how one answer is shown in the formats that are not JSON.
type view struct {
	head  []string
	wide  []string // further columns of -o wide
	rows  [][]string
	names []string // of -o name
	// text replaces the table where one table does not say it.
	text func(io.Writer) error
	more string // the next cursor; "" at the end
}

// row adds a row; its cells are head's and then wide's.
func (v *view) row(name string, cells ...string) {
	v.names = append(v.names, name)
	v.rows = append(v.rows, cells)
}

// objects reports whether answers are shown as objects, one by one, and not
// together in a table.
func (a *app) objects() bool {
	return a.api.jq != "" || a.api.output == formatJSON || a.api.output == formatYAML
}

// showEach shows the last answer when answers are shown one by one.
func (a *app) showEach(ctx context.Context, v *view) error {
	if a.objects() {
		return a.show(ctx, v)
	}
	return nil
}

// showAll shows what showEach has not.
func (a *app) showAll(ctx context.Context, v *view) error {
	if a.objects() {
		return nil
	}
	return a.show(ctx, v)
}

func (a *app) checkFormat() error {
	if !slices.Contains(formats, a.api.output) {
		return usageError{fmt.Errorf("-o is one of %s, not %q", strings.Join(formats, ", "), a.api.output)}
	}
	if a.api.jq != "" {
		if _, err := gojq.Parse(a.api.jq); err != nil {
			return usageError{fmt.Errorf("--jq is no jq expression: %w", err)}
		}
	}
	return nil
}

// show prints the last answer of the API: as it came, or as v.
func (a *app) show(ctx context.Context, v *view) error {
	return a.showRaw(ctx, a.rec.last, v)
}

// showObject prints an object that no server sent.
func (a *app) showObject(ctx context.Context, object any, v *view) error {
	raw, err := json.Marshal(object, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return a.showRaw(ctx, func() []byte { return raw }, v)
}

func (a *app) showRaw(ctx context.Context, raw func() []byte, v *view) error {
	switch {
	case a.api.jq != "":
		return a.runJQ(ctx, raw())
	case a.api.output == formatJSON:
		b := jsontext.Value(bytes.Clone(raw()))
		if err := b.Indent(jsontext.WithIndent("  ")); err != nil {
			return fmt.Errorf("the server's answer is no JSON: %w", err)
		}
		_, err := fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(b))
		return err
	case a.api.output == formatYAML:
		b, err := jobfile.FromJSON(raw())
		if err == nil {
			_, err = a.out.Write(b)
		}
		return err
	case a.api.output == formatName:
		for _, n := range v.names {
			if _, err := fmt.Fprintln(a.out, n); err != nil {
				return err
			}
		}
		return nil
	case v.text != nil:
		return v.text(a.out)
	}
	if err := v.write(a.out, a.api.output == formatWide); err != nil {
		return err
	}
	if v.more != "" {
		a.say("there are more: --cursor %s\n", v.more)
	}
	return nil
}

// write prints the table.
func (v *view) write(w io.Writer, wide bool) error {
	n := len(v.head)
	head := v.head
	if wide {
		head = slices.Concat(v.head, v.wide)
		n = len(head)
	}
	return columns(w, slices.Concat([][]string{head}, cut(v.rows, n)))
}

func cut(rows [][]string, n int) [][]string {
	out := make([][]string, len(rows))
	for i, r := range rows {
		out[i] = r[:min(n, len(r))]
	}
	return out
}

// columns prints rows in aligned columns. An empty cell is a "-", so that awk
// counts right.
func columns(w io.Writer, rows [][]string) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			if cell == "" {
				cell = "-"
			}
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, printable(cell))
		}
		fmt.Fprint(tw, "\n")
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for line := range bytes.Lines(b.Bytes()) {
		if _, err := fmt.Fprintln(w, string(bytes.TrimRight(line, " \n"))); err != nil {
			return err
		}
	}
	return nil
}

// printable replaces what would move a terminal's cursor: names come from
// others.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// runJQ prints each result of the filter: strings as they are, all else as
// compact JSON.
func (a *app) runJQ(ctx context.Context, raw []byte) error {
	dec := stdjson.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var in any
	if err := dec.Decode(&in); err != nil {
		return fmt.Errorf("the server's answer is no JSON: %w", err)
	}
	q, err := gojq.Parse(a.api.jq)
	if err != nil {
		return usageError{fmt.Errorf("--jq is no jq expression: %w", err)}
	}
	it := q.RunWithContext(ctx, in)
	for {
		v, ok := it.Next()
		if !ok {
			return nil
		}
		if err, bad := v.(error); bad {
			return usageError{fmt.Errorf("--jq: %w", err)}
		}
		out, isText := v.(string)
		if !isText {
			b, err := gojq.Marshal(v)
			if err != nil {
				return fmt.Errorf("writing what --jq found: %w", err)
			}
			out = string(b)
		}
		if _, err := fmt.Fprintln(a.out, out); err != nil {
			return err
		}
	}
}
