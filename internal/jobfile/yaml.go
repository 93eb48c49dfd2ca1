package jobfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// readYAML returns the tree of the one document in src; nil when there is
// none to go on with, which it has reported.
func (s *source) readYAML(src []byte) (root *node) {
	// The parser is a third party's and its input a person's: whatever it does
	// on odd bytes is an error of the file, never a crash.
	defer func() {
		if r := recover(); r != nil {
			s.report("", 1, 1, fmt.Sprintf("is not YAML that can be read (%v)", r))
			root = nil
		}
	}()
	tokens := lexer.Tokenize(string(src))
	if !s.shallow(tokens) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		s.syntax(err)
		return nil
	}
	var body ast.Node
	for _, d := range file.Docs {
		if d.Body == nil {
			continue
		}
		if body != nil {
			line, col := place(d.Body)
			s.report("", line, col, "is a second document; a file holds one job")
			return nil
		}
		body = d.Body
	}
	if body == nil {
		s.report("", 1, 1, "is empty; it needs at least name, type and groups")
		return nil
	}
	y := yamlReader{source: s, anchors: map[string]*node{}}
	root = y.value(body, "", 0)
	if y.values > maxValues {
		return nil
	}
	return root
}

// shallow checks, before the parser recurses, how deep it would have to.
func (s *source) shallow(tokens token.Tokens) bool {
	flow, run, line := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			run, line = 0, t.Position.Line
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType, token.MappingValueType:
			run++
		}
		// IndentNum grows by at least 1 with each level of a block.
		if flow > maxDepth || run > 4*maxDepth && flow == 0 || t.Position.IndentNum > 16*maxDepth {
			s.report("", int32(t.Position.Line), int32(t.Position.Column), "is nested deeper than "+strconv.Itoa(maxDepth)+" levels")
			return false
		}
	}
	return true
}

// syntax reports an error of the parser in its own words and place.
func (s *source) syntax(err error) {
	var ye yaml.Error
	if errors.As(err, &ye) && ye.GetToken() != nil {
		p := ye.GetToken().Position
		s.report("", int32(p.Line), int32(p.Column), "is not YAML: "+ye.GetMessage())
		return
	}
	s.report("", 1, 1, "is not YAML: "+err.Error())
}

// A yamlReader turns the parser's tree into ours.
type yamlReader struct {
	*source
	anchors map[string]*node
	values  int // with aliases expanded
}

// value converts n, which is at pointer.
func (y *yamlReader) value(n ast.Node, pointer string, depth int) *node {
	line, col := place(n)
	if y.values > maxValues {
		return &node{}
	}
	if depth > maxDepth {
		return y.unreadable(pointer, line, col, "is nested deeper than "+strconv.Itoa(maxDepth)+" levels")
	}
	before := y.values
	y.values++
	out := &node{line: line, col: col}
	switch n := n.(type) {
	case *ast.MappingNode:
		out.kind = object
		y.members(out, n.Values, pointer, depth)
	case *ast.MappingValueNode:
		out.kind = object
		y.members(out, []*ast.MappingValueNode{n}, pointer, depth)
	case *ast.SequenceNode:
		out.kind = list
		for i, v := range n.Values {
			out.items = append(out.items, y.value(v, pointer+"/"+strconv.Itoa(i), depth+1))
		}
	case *ast.AnchorNode:
		out = y.value(n.Value, pointer, depth+1)
		y.anchors[nameOf(n.Name)] = out
		return out
	case *ast.AliasNode:
		return y.alias(n, pointer)
	default:
		if wrong := scalar(out, n); wrong != "" {
			return y.unreadable(pointer, line, col, wrong)
		}
	}
	y.overflow(pointer, out)
	out.size = y.values - before
	return out
}

func (y *yamlReader) alias(n *ast.AliasNode, pointer string) *node {
	line, col := place(n)
	to, ok := y.anchors[nameOf(n.Value)]
	if !ok {
		return y.unreadable(pointer, line, col, "*"+nameOf(n.Value)+" names no anchor that ends before it")
	}
	y.values += to.size
	y.overflow(pointer, &node{line: line, col: col})
	return to
}

// overflow reports once that there are too many values.
func (y *yamlReader) overflow(pointer string, at *node) {
	if y.values > maxValues && !y.seen["\x00values"] {
		y.seen["\x00values"] = true
		y.report(pointer, at.line, at.col, "the file has more than "+strconv.Itoa(maxValues)+" values, aliases expanded")
	}
}

func (y *yamlReader) members(out *node, values []*ast.MappingValueNode, pointer string, depth int) {
	first := map[string]int32{}
	for _, mv := range values {
		line, col := place(mv.Key)
		name, ok := keyName(mv.Key)
		if !ok {
			y.unreadable(pointer, line, col, "merge keys and complex keys are not taken; write the fields out")
			continue
		}
		at := pointer + "/" + escape(name)
		if was, dup := first[name]; dup {
			y.report(at, line, col, fmt.Sprintf("is given twice, first on line %d", was))
			continue
		}
		first[name] = line
		out.members = append(out.members, member{name: name, line: line, col: col, value: y.value(mv.Value, at, depth+1)})
	}
}

// scalar fills out from a single value, or says what is wrong with it.
func scalar(out *node, n ast.Node) string {
	switch n := n.(type) {
	case *ast.NullNode:
	case *ast.BoolNode:
		out.kind, out.text = boolean, strconv.FormatBool(n.Value)
	case *ast.IntegerNode:
		out.kind, out.text = number, fmt.Sprint(n.Value)
	case *ast.FloatNode:
		out.kind, out.text = number, strconv.FormatFloat(n.Value, 'f', -1, 64)
	case *ast.StringNode:
		// The parser drops tabs here, without a word.
		if strings.Contains(strings.TrimSpace(n.Token.Origin), "\t") {
			return `has a tab in it: write the value in double quotes, and \t for the tab`
		}
		out.kind, out.text = text, n.Value
	case *ast.LiteralNode:
		out.kind, out.text = text, n.Value.Value
	case *ast.InfinityNode, *ast.NanNode:
		return "is not a finite number"
	case *ast.TagNode:
		return "tags are not taken; write the value without " + n.Start.Value
	default:
		return "is not taken here; write a plain value"
	}
	return ""
}

func keyName(k ast.MapKeyNode) (string, bool) {
	switch k := k.(type) {
	case *ast.StringNode:
		return k.Value, true
	case *ast.MappingKeyNode, *ast.MergeKeyNode, *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		return "", false
	}
	return k.GetToken().Value, true
}

func nameOf(n ast.Node) string {
	if n == nil || n.GetToken() == nil {
		return ""
	}
	return n.GetToken().Value
}

// place returns where n starts, counted from 1.
func place(n ast.Node) (line, col int32) {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return place(m.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return place(m.Key)
	}
	t := n.GetToken()
	if t == nil || t.Position == nil {
		return 1, 1
	}
	return int32(t.Position.Line), int32(t.Position.Column)
}
