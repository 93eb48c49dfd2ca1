package main

import (
	"os"
	"strings"
	"testing"
)

// TestDocs looks in docs/chaos.md for every scenario with its cases.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/chaos.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, sc := range scenarios {
		if want := "| `" + sc.name + "` | " + strings.Join(sc.cases, ", ") + " |"; !strings.Contains(string(doc), want) {
			t.Errorf("docs/chaos.md has no row that begins %q", want)
		}
	}
}
