package jobfile

import (
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/goccy/go-yaml"
)

func TestFromJSON(t *testing.T) {
	for src, want := range map[string]string{
		`{"b":"1","a":[{"x":1,"y":null},{}],"id":"18446744073709551615","e":[],"s":"a\nb\n","job":"01JZ2"}`: "b: \"1\"\na:\n  - x: 1\n    \"y\": null\n  - {}\nid: \"18446744073709551615\"\ne: []\ns: |\n  a\n  b\njob: 01JZ2\n",
		`{}`:                       "{}\n",
		`[[1,[2]]]`:                "-\n  - 1\n  -\n    - 2\n",
		`"a"`:                      "a\n",
		` {"a":{"b":{"c":true}}} `: "a:\n  b:\n    c: true\n",
	} {
		got, err := FromJSON([]byte(src))
		if err != nil || string(got) != want {
			t.Errorf("%s:\n%s%v; want\n%s", src, got, err, want)
		}
	}
	for _, src := range []string{"{", "", "{} {}", `{"a":1,"a":2}`} {
		if got, err := FromJSON([]byte(src)); err == nil {
			t.Errorf("%s was taken: %s", src, got)
		}
	}
}

// oddTexts are what YAML could take for something else than a text.
var oddTexts = []string{
	"1e5", "null", "true", "0x1f", "~", "2001-01-01", "", "a: b", "# x", "- a", "yes", "on", "1_000", "0o17",
	".inf", "!tag", "&a", "*a", "line1\nline2\n", "  lead", "trail  ", "a\nb", "\n\nx", "{", "[", "'", "\"", "%", "@",
	"`", "é", "\t", "a\tb", "01E5", "5242880", "x # y", "a\\b", "\u0001", "12E3", "0E0", "a\n\nb\n", "a \nb\n", " a\nb\n", "\x7f", "\u2028", "a\r\nb\n",
}

// TestFromJSONBack checks that every text comes back as itself, as a value, a
// key and an element.
func TestFromJSONBack(t *testing.T) {
	for _, s := range oddTexts {
		checkBack(t, s)
	}
}

func checkBack(t *testing.T, s string) {
	t.Helper()
	in := map[string]any{"k": s, "l": []any{s, map[string]any{"x" + s: s, "y": "z"}}}
	b, err := json.Marshal(in, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	y, err := FromJSON(b)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	var back map[string]any
	if err := yaml.Unmarshal(y, &back); err != nil {
		t.Errorf("%q: %v\n%s", s, err, y)
	} else if !reflect.DeepEqual(back, in) {
		t.Errorf("%q came back as %#v from\n%s", s, back, y)
	}
}

func FuzzFromJSON(f *testing.F) {
	for _, s := range oddTexts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if utf8.ValidString(s) && len(s) < 4096 {
			checkBack(t, s)
		}
	})
}
