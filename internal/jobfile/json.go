package jobfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// readJSON returns the tree of the one value in src; nil when it is no JSON,
// which it reports.
func (s *source) readJSON(src []byte) *node {
	j := jsonReader{source: s, src: src, dec: jsontext.NewDecoder(bytes.NewReader(src), jsontext.AllowDuplicateNames(true))}
	root, err := j.value("", 0)
	line, col := j.position(j.dec.InputOffset())
	if err == nil {
		if _, err = j.dec.ReadToken(); err == io.EOF {
			return root
		}
		if err == nil {
			err = errors.New("a second value follows; a file holds one job")
		}
	}
	var se *jsontext.SyntacticError
	if errors.As(err, &se) {
		line, col = j.position(se.ByteOffset)
		err = se.Err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it ends too early")
	}
	s.report("", line, col, "is not JSON: "+err.Error())
	return nil
}

// A jsonReader turns JSON tokens into a tree with places.
type jsonReader struct {
	*source
	src []byte
	dec *jsontext.Decoder
}

// position returns line and column of the next thing at or after offset.
func (j *jsonReader) position(offset int64) (line, col int32) {
	at := int(min(offset, int64(len(j.src))))
	for at < len(j.src) && bytes.IndexByte([]byte(" \t\r\n,:"), j.src[at]) >= 0 {
		at++
	}
	before := j.src[:at]
	start := bytes.LastIndexByte(before, '\n') + 1
	return int32(bytes.Count(before, []byte{'\n'})) + 1, int32(utf8.RuneCount(before[start:])) + 1
}

func (j *jsonReader) value(pointer string, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, errors.New("it is nested deeper than " + strconv.Itoa(maxDepth) + " levels")
	}
	out := &node{size: 1}
	out.line, out.col = j.position(j.dec.InputOffset())
	t, err := j.dec.ReadToken()
	if err != nil {
		return nil, err
	}
	switch t.Kind() {
	case 't', 'f':
		out.kind, out.text = boolean, strconv.FormatBool(t.Bool())
	case '"':
		out.kind, out.text = text, t.String()
	case '0':
		out.kind, out.text = number, decimal(t)
	case '{':
		out.kind = object
		return out, j.members(out, pointer, depth)
	case '[':
		out.kind = list
		return out, j.elements(out, pointer, depth)
	}
	return out, nil
}

// decimal returns a number without exponent, which is what convert.go reads.
func decimal(t jsontext.Token) string {
	s := t.String()
	if _, err := strconv.ParseInt(s, 10, 64); err == nil {
		return s
	}
	f, err := t.Float()
	if err != nil {
		return s // beyond a float64: no field takes it
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

func (j *jsonReader) elements(out *node, pointer string, depth int) error {
	for i := 0; j.dec.PeekKind() != ']'; i++ {
		v, err := j.value(pointer+"/"+strconv.Itoa(i), depth+1)
		if err != nil {
			return err
		}
		out.items = append(out.items, v)
	}
	_, err := j.dec.ReadToken()
	return err
}

func (j *jsonReader) members(out *node, pointer string, depth int) error {
	first := map[string]int32{}
	for j.dec.PeekKind() != '}' {
		line, col := j.position(j.dec.InputOffset())
		t, err := j.dec.ReadToken()
		if err != nil {
			return err
		}
		name := t.String()
		at := pointer + "/" + escape(name)
		was, dup := first[name]
		v, err := j.value(at, depth+1)
		if err != nil {
			return err
		}
		if dup {
			j.report(at, line, col, fmt.Sprintf("is given twice, first on line %d", was))
			continue
		}
		first[name] = line
		out.members = append(out.members, member{name: name, line: line, col: col, value: v})
	}
	_, err := j.dec.ReadToken()
	return err
}
