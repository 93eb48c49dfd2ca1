package httpd

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/gpuai/gpuai"
)

const (
	maxBody      = 1 << 20 // of one object
	maxBatchBody = 8 << 20
	// maxAnonymousBody bounds the body of who has shown nothing: an ID token, or a
	// join token and a signing request.
	maxAnonymousBody = 32 << 10
	maxDepth         = 32
	// maxValues bounds the values of one object. A body of nulls would make a
	// hundred times its size in memory; a job spec of gpuai.MaxSpecBytes has
	// no more than this.
	maxValues = 1 << 15
	// smallBodies is the part of the body budget that batches leave free.
	smallBodies = 16 << 20
)

// hintWire tells who sends a job file to the API where it goes.
const hintWire = "the API takes the wire form: job files, and sizes such as \"24GiB\", go through `gpuai job run FILE`, which converts them (`gpuai job validate -o json FILE` prints the wire form)"

// A guard passes a JSON text on and refuses what is deeper than maxDepth or has
// more than limit values, since values was last set to 0. It looks at each byte once
// and buffers nothing; whether the text is JSON is the decoder's business.
type guard struct {
	r       io.Reader
	err     error // its own verdict
	limit   int   // of values
	depth   int
	values  int
	text    bool // within a string
	escaped bool // after a backslash
}

// Read implements io.Reader.
func (g *guard) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.r.Read(p)
	if g.scan(p[:n]); g.err != nil {
		return 0, g.err
	}
	return n, err
}

func (g *guard) scan(p []byte) {
	for _, b := range p {
		switch {
		case g.escaped:
			g.escaped = false
		case g.text:
			g.text, g.escaped = b != '"', b == '\\'
		case b == '"':
			g.text = true
		case b == ',':
			g.values++
		case b == '{' || b == '[':
			g.values++
			g.depth++
			g.judge()
		case b == '}' || b == ']':
			g.depth--
		}
	}
	g.judge()
}

func (g *guard) judge() {
	switch {
	case g.err != nil:
	case g.depth > maxDepth:
		g.err = gpuai.NewError(gpuai.InvalidSpec, "the body is nested more than "+strconv.Itoa(maxDepth)+" levels deep")
	case g.values > g.limit:
		g.err = gpuai.NewError(gpuai.TooLarge, "an object of the body has more than "+strconv.Itoa(g.limit)+" values")
	}
}

// A body is a request's body being decoded.
type body struct {
	c     *call
	guard guard
	dec   *jsontext.Decoder
}

// decoders keeps decoders with their buffers.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

var strict = json.JoinOptions(json.RejectUnknownMembers(true))

// open begins to read a JSON body of at most limit bytes. The caller closes it.
func (c *call) open(limit int64) (*body, error) {
	if err := c.isJSON(); err != nil {
		return nil, err
	}
	limit = c.mostBody(limit)
	if c.r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	m := &meter{c: c, r: http.MaxBytesReader(c.w, c.r.Body, limit)}
	if limit > maxBody {
		m.spare = smallBodies
	}
	_ = c.ctl.SetReadDeadline(time.Now().Add(c.api.cfg.BodyTimeout)) // a reader without deadlines is a test's
	b := &body{c: c, guard: guard{r: m, limit: maxValues}}
	b.dec = decoders.Get().(*jsontext.Decoder)
	b.dec.Reset(&b.guard)
	return b, nil
}

// mostBody is limit, or what a body may have of who has shown nothing.
func (c *call) mostBody(limit int64) int64 {
	if c.rt.class == classAnonymous {
		return min(limit, maxAnonymousBody)
	}
	return limit
}

// A meter charges the budget of bodies for what has come: what was only announced
// takes no room. It is given back with the answer, since what was decoded lives
// as long. Who has shown nothing is not charged: their class bounds them.
type meter struct {
	c     *call
	r     io.Reader
	spare int64 // of the budget, that is left for others
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if n == 0 || m.c.rt.class == classAnonymous {
		return n, err
	}
	if !m.c.api.bodies.take(int64(n), m.spare) {
		return 0, errBusy(m.c.rt.class)
	}
	m.c.taken += int64(n)
	return n, err
}

// isJSON refuses bodies that say that they are something else.
func (c *call) isJSON() error {
	kind, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err == nil && kind == "application/json" {
		return nil
	}
	return &statusError{http.StatusUnsupportedMediaType, gpuai.NewError(gpuai.InvalidSpec,
		"Content-Type must be application/json, not "+strconv.Quote(clip(c.r.Header.Get("Content-Type")))+": "+hintWire)}
}

// close lets the decoder go.
func (b *body) close() {
	b.dec.Reset(nothing{})
	decoders.Put(b.dec)
}

// nothing is an empty reader, so that a kept decoder keeps no request.
type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }

// value decodes the next value into v.
func (b *body) value(v any) error {
	if err := json.UnmarshalDecode(b.dec, v, strict); err != nil {
		return b.explain(err)
	}
	return nil
}

// end refuses what follows the last value. Only a body that was read whole
// frees the connection of its deadline: what is left of another must not be
// waited for.
func (b *body) end() error {
	if _, err := b.dec.ReadToken(); errors.Is(err, io.EOF) && b.guard.err == nil {
		_ = b.c.ctl.SetReadDeadline(time.Time{})
		return nil
	} else if err != nil && !isSyntax(err) {
		return b.explain(err)
	}
	return invalid("", "something follows the JSON value")
}

func isSyntax(err error) bool {
	var syn *jsontext.SyntacticError
	return errors.As(err, &syn)
}

// decode reads the whole body into v.
func (c *call) decode(v any) error {
	b, err := c.open(maxBody)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.value(v); err != nil {
		return err
	}
	return b.end()
}

// decodeValid is decode of what knows what is wrong with it.
func (c *call) decodeValid(v interface{ Validate() []gpuai.FieldError }) error {
	if err := c.decode(v); err != nil {
		return err
	}
	if wrong := v.Validate(); len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong[:min(len(wrong), maxErrors)]}
	}
	return nil
}

// noBody refuses a body where none is meant; an empty object passes, since many
// clients send one with every POST.
func (c *call) noBody() error {
	if c.r.ContentLength == 0 || c.r.Body == http.NoBody {
		return nil
	}
	return c.decode(&struct{}{})
}

func tooLarge(limit int64) error {
	return gpuai.NewError(gpuai.TooLarge, "the body may have at most "+strconv.FormatInt(limit, 10)+" bytes")
}

// explain says what was wrong with a body in the caller's words.
func (b *body) explain(err error) error {
	var big *http.MaxBytesError
	var own *gpuai.Error
	switch {
	case b.guard.err != nil:
		return b.guard.err
	case errors.As(err, &own):
		return own
	case errors.As(err, &big):
		return tooLarge(big.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.c.w.Header().Set("Connection", "close")
		return &statusError{http.StatusRequestTimeout, gpuai.NewError(gpuai.InvalidSpec,
			"the body did not arrive within "+b.c.api.cfg.BodyTimeout.String())}
	}
	return explainJSON(err)
}

// explainJSON turns a decoder's error into an invalid_spec at a pointer.
func explainJSON(err error) error {
	var sem *json.SemanticError
	var syn *jsontext.SyntacticError
	switch {
	case errors.As(err, &sem):
		return invalid(pointer(sem.JSONPointer), semantic(sem))
	case errors.As(err, &syn):
		detail := "is not JSON: " + syn.Err.Error() + ", at byte " + strconv.FormatInt(syn.ByteOffset, 10)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			detail = "is given twice"
		}
		return invalid(pointer(syn.JSONPointer), detail)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("", "the JSON ends too early")
	}
	return gpuai.NewError(gpuai.InvalidSpec, "the body could not be read: "+err.Error())
}

func semantic(e *json.SemanticError) string {
	switch {
	case errors.Is(e, json.ErrUnknownName):
		return "is an unknown field; " + hintWire
	case e.Err != nil && e.JSONKind == '"' && wants(e.GoType) == "a string":
		return e.Err.Error() // an enum says what it takes
	case e.JSONKind == '0' && e.Err != nil:
		return "must be " + wants(e.GoType) + " in range"
	}
	return "must be " + wants(e.GoType) + ", not " + kindName(e.JSONKind) + "; " + hintWire
}

// wants names the JSON that a Go type is written as.
func wants(t reflect.Type) string {
	if t == nil {
		return "another value"
	}
	if t.Implements(reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()) {
		return "a string"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "an object"
	default:
		return "a whole number"
	}
}

func kindName(k jsontext.Kind) string {
	switch k {
	case '"':
		return "a string"
	case '0':
		return "this number"
	case 't', 'f':
		return "true or false"
	case '{':
		return "an object"
	case '[':
		return "an array"
	default:
		return "null"
	}
}

// pointer bounds a pointer, which holds names that the caller chose.
func pointer(p jsontext.Pointer) string { return clip(string(p)) }

// clip bounds a text of the caller's in an error.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
