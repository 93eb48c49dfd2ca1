package jobfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// FromJSON returns one JSON value as YAML, its fields in the same order. It is
// how API objects are shown to people who ask for YAML. The libraries' own
// writers lose tabs and take ".inf" for a number when it is a text.
func FromJSON(src []byte) ([]byte, error) {
	w := yamlWriter{dec: jsontext.NewDecoder(bytes.NewReader(src))}
	err := w.value(0, false)
	if err == nil {
		if _, err = w.dec.ReadToken(); err == io.EOF {
			return w.out.Bytes(), nil
		}
		if err == nil {
			err = errors.New("a second value follows")
		}
	}
	return nil, fmt.Errorf("turning JSON into YAML: %w", err)
}

type yamlWriter struct {
	dec *jsontext.Decoder
	out bytes.Buffer
}

// value writes the next value. after says that a key or dash stands before it
// on the line.
func (w *yamlWriter) value(depth int, after bool) error {
	k := w.dec.PeekKind()
	t, err := w.dec.ReadToken()
	if err != nil {
		return err
	}
	switch k {
	case '{', '[':
		return w.block(k, depth, after)
	case '"':
		w.scalar(t.String(), depth, after)
	default:
		w.plain(t.String(), after)
	}
	return nil
}

func (w *yamlWriter) plain(s string, after bool) {
	if after {
		w.out.WriteByte(' ')
	}
	w.out.WriteString(s + "\n")
}

// block writes the entries of an object or a list up to its end.
func (w *yamlWriter) block(k jsontext.Kind, depth int, after bool) error {
	end := k + 2 // '{' and '}', '[' and ']' are two apart in ASCII
	if w.dec.PeekKind() == end {
		w.plain(string([]byte{byte(k), byte(end)}), after)
	} else if after && k == '{' && w.afterDash() {
		w.out.WriteByte(' ')
	} else if after {
		w.out.WriteByte('\n')
	}
	for first := true; w.dec.PeekKind() != end; first = false {
		if !first || w.atLineStart() {
			w.out.WriteString(strings.Repeat("  ", depth))
		}
		if k == '{' {
			t, err := w.dec.ReadToken()
			if err != nil {
				return err
			}
			w.out.WriteString(quoteYAML(t.String()) + ":")
		} else {
			w.out.WriteByte('-')
		}
		if err := w.value(depth+1, true); err != nil {
			return err
		}
	}
	_, err := w.dec.ReadToken()
	return err
}

func (w *yamlWriter) afterDash() bool { return bytes.HasSuffix(w.out.Bytes(), []byte("-")) }
func (w *yamlWriter) atLineStart() bool {
	return w.out.Len() == 0 || bytes.HasSuffix(w.out.Bytes(), []byte("\n"))
}

// scalar writes a text: several lines as a block where that is exact.
func (w *yamlWriter) scalar(s string, depth int, after bool) {
	if !after || !blockText.MatchString(s) {
		w.plain(quoteYAML(s), after)
		return
	}
	w.out.WriteString(" |\n")
	for line := range strings.Lines(s) {
		if line != "\n" {
			w.out.WriteString(strings.Repeat("  ", depth))
		}
		w.out.WriteString(line)
	}
}

var (
	// blockText is two lines or more of plain ASCII, the first not indented,
	// none ending in a space, with one line end at the end.
	blockText = regexp.MustCompile(`\A[!-~]([ -~]*[!-~])?\n(([ -~]*[!-~])?\n)*[ -~]*[!-~]\n\z`)
	// plainText needs no quotes, and is no number, date or other word of YAML.
	plainText = regexp.MustCompile(`\A[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+(-][A-Za-z0-9_./@+(),;-]*)*\z`)
	wordText  = regexp.MustCompile(`(?i)\A(null|true|false|yes|no|on|off|y|n)\z`)
	// idText are ULIDs and the like: a digit first, but too odd for a number.
	idText = regexp.MustCompile(`\A[0-9][0-9][0-9A-Z]*[A-DF-Z][0-9A-Z]*\z`)
)

// quoteYAML returns s plain where that is safe, else in double quotes: a JSON
// string is one of YAML.
func quoteYAML(s string) string {
	if plainText.MatchString(s) && !wordText.MatchString(s) || idText.MatchString(s) {
		return s
	}
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil { // what a decoder gave is valid UTF-8
		panic(fmt.Sprintf("jobfile: quoting %q: %v", s, err))
	}
	return strings.ReplaceAll(string(b), "\x7f", `\x7f`)
}
