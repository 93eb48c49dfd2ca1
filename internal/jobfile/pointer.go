package jobfile

import (
	"strconv"
	"strings"
)

// A spot is where a pointer leads: the node, or, when there is none, the
// nearest thing that contains it.
type spot struct {
	node      *node // nil when the pointer names something that is not there
	pointer   string
	line, col int32
}

// find follows an RFC 6901 pointer as far as it goes.
func (n *node) find(pointer string) spot {
	at := spot{node: n, line: n.line, col: n.col}
	if pointer == "" {
		return at
	}
	for part := range strings.SplitSeq(pointer[1:], "/") {
		name := strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
		next := at.node.child(name)
		if next == nil {
			return spot{pointer: at.pointer, line: at.line, col: at.col}
		}
		at = spot{node: next, pointer: at.pointer + "/" + part, line: next.line, col: next.col}
		if next.kind == null { // an empty value has no place of its own
			at.line, at.col = n.find(at.pointer[:len(at.pointer)-len(part)-1]).node.keyPlace(name)
		}
	}
	return at
}

func (n *node) child(name string) *node {
	if n == nil || n.kind != list {
		return n.get(name)
	}
	i, err := strconv.Atoi(name)
	if err != nil || i < 0 || i >= len(n.items) {
		return nil
	}
	return n.items[i]
}

// keyPlace returns where the field called name starts, or the object.
func (n *node) keyPlace(name string) (line, col int32) {
	if n == nil {
		return 1, 1
	}
	for _, m := range n.members {
		if m.name == name {
			return m.line, m.col
		}
	}
	return n.line, n.col
}

// filePointer turns a pointer into the wire form into one into the file.
func (n *node) filePointer(wire string) string {
	out := ""
	parts := strings.Split(strings.TrimPrefix(wire, "/"), "/")
	for i := 0; i < len(parts); i++ {
		part := parts[i]
		env := strings.HasSuffix(out, "/env")
		gpu := strings.HasSuffix(out, "/gpu") && part == "any" && n.find(out+"/any").node == nil
		switch {
		case wire == "":
			return ""
		case env: // a variable's name, whatever it holds
			return out + "/" + escape(strings.Join(parts[i:], "/"))
		case gpu && i+1 < len(parts): // vendor, model and memory beside count are one alternative
			i++
			continue
		case part == "secrets" && i+1 < len(parts) && strings.HasSuffix(out, "/task"):
			return n.secretPointer(out, parts[i+1:])
		case part == "values":
			part = "value"
			if v := n.find(out + "/value"); v.node != nil && v.node.kind != list {
				return out + "/value"
			}
		case part == "min_count":
			part = "count/min"
		case part == "count" && n.find(out+"/count/max").node != nil:
			part = "count/max"
		default:
			part = fileName(part)
		}
		out += "/" + part
	}
	return out
}

// secretPointer turns the rest of a pointer into a task's secrets into one into
// the file, where those that are variables stand in env.
func (n *node) secretPointer(task string, rest []string) string {
	at, err := strconv.Atoi(rest[0])
	if err != nil {
		return task + "/secrets"
	}
	if env := n.find(task + "/env").node; env != nil {
		for _, m := range env.members {
			if m.value == nil || m.value.kind != object {
				continue
			}
			if at == 0 && len(rest) > 1 && rest[1] == "name" {
				return task + "/env/" + escape(m.name) + "/secret"
			}
			if at == 0 {
				return task + "/env/" + escape(m.name)
			}
			at--
		}
	}
	rest[0] = strconv.Itoa(at)
	return task + "/secrets/" + strings.Join(rest, "/")
}

// fileName returns the file's name of a field that the wire names with a unit.
func fileName(wire string) string {
	for _, unit := range [...]string{"_min_bytes", "_max_bytes", "_bytes", "_unix_ms", "_ms"} {
		if name, ok := strings.CutSuffix(wire, unit); ok {
			return name
		}
	}
	if wire == "cpu_milli" {
		return "cpu"
	}
	return wire
}
