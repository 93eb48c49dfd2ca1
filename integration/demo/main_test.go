package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	bin := t.TempDir()
	cases := []struct {
		name string
		args []string
		err  string
	}{
		{"no binaries", []string{"-bin", bin}, "make build"},
		{"unknown flag", []string{"-x"}, "not defined"},
		{"unknown format", []string{"-bin", bin, "-o", "xml"}, "usage"},
		{"argument", []string{"now"}, "usage"},
	}
	for _, c := range cases {
		var stdout, stderr bytes.Buffer
		if code := start(t.Context(), c.args, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), c.err) {
			t.Errorf("%s: exit code %d, %s", c.name, code, stderr.String())
		}
	}
}
