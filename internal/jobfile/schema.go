package jobfile

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	jkind "github.com/santhosh-tekuri/jsonschema/v6/kind"
)

//go:embed job.schema.json
var schemaSource []byte

const schemaURL = "job.schema.json"

// Schema returns the JSON Schema (2020-12) of the job file. The answer is the
// caller's.
func Schema() []byte { return bytes.Clone(schemaSource) }

// A compiled schema, with its source as plain values for looking fields up.
type compiled struct {
	schema *jsonschema.Schema
	doc    any
}

// compile is computed once; the schema is a constant, so that an error in it is
// a broken build.
var compile = sync.OnceValue(func() compiled {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaSource))
	if err != nil {
		panic("jobfile: the embedded schema is not JSON: " + err.Error())
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(schemaURL, doc); err != nil {
		panic("jobfile: the embedded schema: " + err.Error())
	}
	return compiled{schema: c.MustCompile(schemaURL), doc: doc}
})

// check reports everything in root that the schema does not accept.
func (s *source) check(root *node) {
	c := compile()
	var ve *jsonschema.ValidationError
	if err := c.schema.Validate(root.plain()); !errors.As(err, &ve) {
		if err != nil {
			s.report("", 1, 1, err.Error())
		}
		return
	}
	s.leaves(c, root, ve)
}

func (s *source) leaves(c compiled, root *node, ve *jsonschema.ValidationError) {
	for _, cause := range ve.Causes {
		s.leaves(c, root, cause)
	}
	if len(ve.Causes) > 0 {
		return
	}
	at := ""
	for _, name := range ve.InstanceLocation {
		at += "/" + escape(name)
	}
	if within(s.broken, at) {
		return
	}
	place := root.find(at)
	switch k := ve.ErrorKind.(type) {
	case *jkind.AdditionalProperties:
		for _, name := range k.Properties {
			line, col := place.node.keyPlace(name)
			pointer := at + "/" + escape(name)
			s.report(pointer, line, col, unknown(pointer, name, c.fields(ve.SchemaURL)))
		}
	case *jkind.Required:
		for _, name := range k.Missing {
			s.report(at+"/"+escape(name), place.line, place.col, "is missing"+c.example(ve.SchemaURL, name))
		}
	default:
		if later := laterValue(at, place.node); later != "" {
			s.report(at, place.line, place.col, later)
			return
		}
		s.report(at, place.line, place.col, sentence(ve, place.node))
	}
}

// fields returns the names that the object schema at url knows.
func (c compiled) fields(url string) []string {
	props, _ := c.lookup(url)["properties"].(map[string]any)
	out := make([]string, 0, len(props))
	for name := range props {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// example shows how a missing field is written.
func (c compiled) example(url, name string) string {
	props, _ := c.lookup(url)["properties"].(map[string]any)
	p, _ := props[name].(map[string]any)
	if enum, ok := p["enum"].([]any); ok {
		return ": one of " + joinAny(enum)
	}
	return ""
}

func (c compiled) lookup(url string) map[string]any {
	_, fragment, _ := strings.Cut(url, "#")
	v := c.doc
	for part := range strings.SplitSeq(strings.TrimPrefix(fragment, "/"), "/") {
		if part == "" {
			continue
		}
		m, _ := v.(map[string]any)
		v = m[part]
	}
	m, _ := v.(map[string]any)
	return m
}

// patternSays are the sentences for patterns, by the definition that has them.
var patternSays = map[string]string{
	"/$defs/name":                            "must be 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end",
	"/$defs/duration":                        `must be numbers with units d, h, m, s or ms, such as "1h30m"`,
	"/$defs/size":                            errSize.Error(),
	"/$defs/range":                           errRange.Error(),
	"/$defs/constraint/properties/attribute": "must be zone, gpu.vendor, gpu.model, gpu.memory_bytes or label.<key>",
	"/$defs/task/properties/cwd":             "must be absolute",

	"/$defs/task/properties/secrets/items/properties/mode": `must be octal in quotes, such as "0400"`,

	"/$defs/task/properties/launcher/properties/procs_per_node": "must be a number, or gpu for one process for each GPU",
}

// sentence says in a person's words what ve says in the schema's.
func sentence(ve *jsonschema.ValidationError, n *node) string {
	_, where, _ := strings.Cut(ve.SchemaURL, "#")
	got := ""
	if n != nil && n.kind <= text && n.kind != null {
		got = ", not " + quoted(n)
	}
	switch k := ve.ErrorKind.(type) {
	case *jkind.Type:
		return typeSentence(k, where, n)
	case *jkind.Pattern:
		if says, ok := patternSays[where]; ok {
			return says + got
		}
	case *jkind.Enum:
		return "must be one of " + joinAny(k.Want) + got
	case *jkind.Const:
		return fmt.Sprintf("must be %v%s", k.Want, got)
	case *jkind.Minimum:
		return "must be at least " + k.Want.RatString() + got
	case *jkind.Maximum:
		return "must be at most " + k.Want.RatString() + got
	case *jkind.ExclusiveMinimum:
		return "must be above " + k.Want.RatString() + got
	case *jkind.MinItems:
		return "must not be empty"
	case *jkind.MaxItems:
		return "must have at most " + strconv.Itoa(k.Want) + " entries, has " + strconv.Itoa(k.Got)
	case *jkind.MinLength:
		return "must not be empty"
	case *jkind.MaxLength:
		return "must be at most " + strconv.Itoa(k.Want) + " characters long"
	case *jkind.MinProperties:
		return "must not be empty"
	case *jkind.MaxProperties:
		return "must have at most " + strconv.Itoa(k.Want) + " fields, has " + strconv.Itoa(k.Got)
	case *jkind.UniqueItems:
		return "names an entry twice"
	}
	return "is not accepted by the schema's " + strings.Join(ve.ErrorKind.KeywordPath(), "/")
}

var wantNames = map[string]string{
	"string": "a string", "integer": "a whole number", "number": "a number",
	"boolean": "true or false", "array": "a list", "object": "an object",
}

func typeSentence(k *jkind.Type, where string, n *node) string {
	if says, ok := patternSays[where]; ok {
		return says + ", not " + describe(n)
	}
	want := make([]string, len(k.Want))
	for i, w := range k.Want {
		want[i] = wantNames[w]
	}
	out := "must be " + strings.Join(want, " or ") + ", not " + describe(n)
	if n != nil && slices.Contains(k.Want, "string") && (n.kind == number || n.kind == boolean) {
		out += `: write "` + n.text + `" in quotes`
	}
	return out
}

func describe(n *node) string {
	switch {
	case n == nil || n.kind == null:
		return "empty"
	case n.kind <= text:
		return quoted(n)
	}
	return kindNames[n.kind]
}

// quoted returns a scalar as it may stand in a sentence.
func quoted(n *node) string {
	s := n.text
	if len(s) > 40 {
		s = strings.ToValidUTF8(s[:40], "") + "…"
	}
	if n.kind == text {
		return strconv.Quote(s)
	}
	return s
}

func joinAny(vs []any) string {
	out := make([]string, len(vs))
	for i, v := range vs {
		out[i] = fmt.Sprint(v)
	}
	return strings.Join(out, ", ")
}
