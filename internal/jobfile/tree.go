package jobfile

import (
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// Limits of a file. They bound what one file can make a client do.
const (
	maxFileBytes = 256 << 10
	maxDepth     = 32
	maxValues    = 64 << 10 // with aliases expanded
	maxProblems  = 100
)

type kind uint8

const (
	null kind = iota
	boolean
	number // text is decimal
	text
	list
	object
)

var kindNames = [...]string{"empty", "a boolean", "a number", "a string", "a list", "an object"}

// A node is one value of a file and its place. Aliases share nodes; size counts
// them each time.
type node struct {
	kind      kind
	line, col int32
	text      string // of a boolean, number or string
	items     []*node
	members   []member
	size      int
}

// A member is one field of an object.
type member struct {
	name      string
	line, col int32
	value     *node
}

// get returns the field called name, or nil. It is safe on nil and non-objects.
func (n *node) get(name string) *node {
	if n == nil {
		return nil
	}
	for i := range n.members {
		if n.members[i].name == name {
			return n.members[i].value
		}
	}
	return nil
}

// list returns the items of a list, nil for anything else.
func (n *node) list() []*node {
	if n == nil {
		return nil
	}
	return n.items
}

// plain returns n in the types that the schema's validator takes. Of a field
// given twice the first counts; the duplicate is reported elsewhere.
func (n *node) plain() any {
	switch n.kind {
	case boolean:
		return n.text == "true"
	case number:
		if i, err := strconv.ParseInt(n.text, 10, 64); err == nil {
			return i
		}
		f, _ := strconv.ParseFloat(n.text, 64) // the readers write only what parses
		return f
	case text:
		return n.text
	case list:
		out := make([]any, len(n.items))
		for i, it := range n.items {
			out[i] = it.plain()
		}
		return out
	case object:
		out := make(map[string]any, len(n.members))
		for _, m := range n.members {
			if _, dup := out[m.name]; !dup {
				out[m.name] = m.value.plain()
			}
		}
		return out
	}
	return nil
}

// A source is one file being read and what was found wrong so far.
type source struct {
	name     string
	lines    []string
	problems []Problem
	seen     map[string]bool // pointers that have a problem
	broken   map[string]bool // pointers whose value could not be read: nothing more is said of them
}

func newSource(name string, src []byte) *source {
	return &source{name: name, lines: strings.Split(string(src), "\n"), seen: map[string]bool{}, broken: map[string]bool{}}
}

// report adds a problem at a place, unless there are too many already.
func (s *source) report(pointer string, line, col int32, detail string) {
	s.seen[pointer] = true
	if len(s.problems) >= maxProblems {
		return
	}
	f := gpuai.FieldError{Pointer: pointer, Line: line, Column: col, Detail: detail}
	s.problems = append(s.problems, Problem{FieldError: f, Excerpt: s.excerpt(line, col)})
}

// unreadable reports that a value cannot be read, and returns what stands for
// it in the tree.
func (s *source) unreadable(pointer string, line, col int32, detail string) *node {
	s.report(pointer, line, col, detail)
	s.broken[pointer] = true
	return &node{line: line, col: col, size: 1}
}

// reported reports whether pointer or something that contains it has a problem.
func (s *source) reported(pointer string) bool { return within(s.seen, pointer) }

// within reports whether pointer or something that contains it is in set.
func within(set map[string]bool, pointer string) bool {
	for p := pointer; p != ""; p = p[:strings.LastIndexByte(p, '/')] {
		if set[p] {
			return true
		}
	}
	return false
}

// excerptWidth bounds the part of a line that is shown.
const excerptWidth = 100

// excerpt returns the line with a mark under the column, or nothing when there
// is no such line.
func (s *source) excerpt(line, col int32) string {
	if line < 1 || int(line) > len(s.lines) {
		return ""
	}
	from := 0
	row := []rune(strings.TrimRight(s.lines[line-1], "\r"))
	at := min(max(int(col)-1, 0), len(row))
	if at > excerptWidth-20 {
		from = at - excerptWidth/2
	}
	shown := row[from:min(len(row), from+excerptWidth)]
	pad := make([]rune, 0, len(shown))
	for _, r := range row[from:at] {
		if r != '\t' {
			r = ' '
		}
		pad = append(pad, r)
	}
	num := strconv.Itoa(int(line))
	return "  " + num + " | " + string(shown) + "\n  " + strings.Repeat(" ", len(num)) + " | " + string(pad) + "^"
}

// escape writes name as a token of a JSON pointer.
func escape(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}
