package jobfile

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gpuai/gpuai"
)

// Parse reads a job file in YAML or JSON and returns its wire form with the
// defaults filled in, but for a tenant that it does not name: that is whoever
// submits it. name is used in errors only, but that a name ending in
// ".json" rules YAML out. An error is *Errors, with every problem of the file.
func Parse(name string, src []byte) (*gpuai.JobSpec, error) {
	s := newSource(name, src)
	root := s.read(src)
	if root == nil {
		return nil, s.errors()
	}
	s.check(root)
	spec := converter{s}.spec(root)
	tenant := spec.Tenant
	spec.Defaults()
	s.validate(root, spec)
	if len(s.problems) > 0 {
		return nil, s.errors()
	}
	spec.Tenant = tenant
	return spec, nil
}

// read returns the tree of the file, or nil.
func (s *source) read(src []byte) *node {
	switch {
	case len(src) > maxFileBytes:
		s.report("", 1, 1, "is larger than "+strconv.Itoa(maxFileBytes)+" bytes")
		return nil
	case !utf8.Valid(src):
		s.report("", s.badLine(), 1, "is not UTF-8 text")
		return nil
	case strings.HasSuffix(s.name, ".json"):
		return s.object(s.readJSON(src))
	}
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	if bytes.HasPrefix(bytes.TrimSpace(src), []byte("{")) {
		// YAML contains JSON but for its tabs: try the stricter reader first.
		trial := newSource(s.name, src)
		if root := trial.readJSON(src); root != nil {
			s.problems, s.seen = trial.problems, trial.seen
			return s.object(root)
		}
	}
	return s.object(s.readYAML(src))
}

func (s *source) object(root *node) *node {
	if root != nil && root.kind != object {
		s.report("", root.line, root.col, "must be an object with name, type and groups, not "+kindNames[root.kind])
		return nil
	}
	return root
}

// badLine returns the line of the first bytes that are not UTF-8.
func (s *source) badLine() int32 {
	return int32(slices.IndexFunc(s.lines, func(l string) bool { return !utf8.ValidString(l) }) + 1)
}

// validate adds what gpuai says of the wire form, in the file's terms.
func (s *source) validate(root *node, spec *gpuai.JobSpec) {
	for _, f := range spec.Validate() {
		pointer := root.filePointer(f.Pointer)
		if s.reported(pointer) {
			continue
		}
		at := root.find(pointer)
		s.report(pointer, at.line, at.col, f.Detail)
	}
}

// errors returns the problems in the order of the file.
func (s *source) errors() *Errors {
	slices.SortStableFunc(s.problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return int(a.Line - b.Line)
		}
		return int(a.Column - b.Column)
	})
	return &Errors{Name: s.name, List: s.problems}
}
