package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
)

// A foreigner asks one server for what is another's.
type foreigner struct {
	name  string
	token string
	own   map[string]string // what it has of each kind
}

// A walk asks one server, with what each kind of ID may be.
type walk struct {
	t       *testing.T
	at      *member
	http    *http.Client
	foreign map[string][]string // IDs of somebody else's things, by kind
	secret  []string            // what no answer may tell
	fresh   int                 // IDs that never were, so far
	brief   bool                // one of each kind is enough
}

func newWalk(t *testing.T, at *member) *walk {
	trust := identity.TrustConfig(at.warden.src.Trust())
	transport := &http.Transport{TLSClientConfig: trust}
	t.Cleanup(transport.CloseIdleConnections)
	return &walk{t: t, at: at, http: &http.Client{Transport: transport}}
}

// never returns an ID like ref of what there never was, another each time.
func (w *walk) never(kind, ref string) string {
	w.fresh++
	if strings.HasPrefix(kind, "cursor of ") {
		b, _ := base64.RawURLEncoding.DecodeString(ref)
		list, at, _ := strings.Cut(string(b), ":")
		id, rest, _ := strings.Cut(at, ":")
		return makeCursor(list, w.never(map[bool]string{true: "job"}[list == "jobs"], id)+":"+rest)
	}
	if strings.Contains(ref, planted) {
		return strings.Replace(ref, planted, fmt.Sprintf("non%04d", w.fresh), 1)
	}
	switch kind {
	case "job":
		id, _ := gpuai.ParseJobID("01J00000000000000000000000")
		id[14], id[15] = byte(w.fresh>>8), byte(w.fresh)
		id[7], id[8] = id[14], id[15] // also of its beginning
		return id.String()[:len(ref)]
	case "lease":
		n, _ := strconv.ParseUint(ref, 10, 64)
		return strconv.FormatUint(n+uint64(100+w.fresh), 10)
	case "token":
		return gpuai.AccessTokenID{0: 7, 1: byte(w.fresh >> 8), 2: byte(w.fresh)}.String()
	}
	return fmt.Sprintf("%0*d", len(ref), w.fresh)
}

// A question is a request in which REF stands for an ID.
type refQuestion struct {
	method, path string
	query        url.Values
	body         string
	header       map[string]string
	lasts        bool
}

func (q refQuestion) with(key, value string) refQuestion {
	q.query = maps.Clone(q.query)
	if q.query == nil {
		q.query = url.Values{}
	}
	q.query.Set(key, value)
	return q
}

// A told is what a question was answered with.
type told struct {
	status int
	index  uint64
	cursor string
	raw    string
	text   string // status, headers and body, without the ID and what any two answers differ in
}

// ask puts a question with an ID.
func (w *walk) ask(who *foreigner, q refQuestion, ref string) (a told) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	target := "https://" + w.at.HTTPAddr() + strings.ReplaceAll(q.path, "REF", ref)
	if len(q.query) > 0 {
		target += "?" + strings.ReplaceAll(q.query.Encode(), "REF", url.QueryEscape(ref))
	}
	req, err := http.NewRequestWithContext(ctx, q.method, target, strings.NewReader(strings.ReplaceAll(q.body, "REF", ref)))
	if err != nil {
		w.t.Fatal(err)
	}
	if q.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range q.header {
		req.Header.Set(k, v)
	}
	req.Header.Set("X-Request-Id", "walk")
	if who.token != "" {
		req.Header.Set("Authorization", "Bearer "+who.token)
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", q.method, target, err)
	}
	defer resp.Body.Close()
	if q.lasts { // what it says at first is enough
		defer time.AfterFunc(50*time.Millisecond, cancel).Stop()
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil && !q.lasts {
		w.t.Fatal(err)
	}
	return tell(resp, body, ref)
}

var (
	indexInBody  = regexp.MustCompile(`"index":\d+`)
	cursorInBody = regexp.MustCompile(`"next_cursor":"([^"]*)"`)
	newID        = regexp.MustCompile(`\b0[0-9A-HJKMNP-TV-Z]{25}\b`) // of a job that is planned
)

func tell(resp *http.Response, body []byte, ref string) told {
	a := told{status: resp.StatusCode}
	a.index, _ = strconv.ParseUint(resp.Header.Get("X-GPUAI-Index"), 10, 64)
	if m := cursorInBody.FindSubmatch(body); m != nil {
		a.cursor = string(m[1])
	}
	h := resp.Header.Clone()
	for _, varies := range []string{"Date", "X-Gpuai-Index", "X-Gpuai-Last-Contact", "Content-Length"} {
		if h.Get(varies) != "" {
			h.Set(varies, "some")
		}
	}
	var head bytes.Buffer
	_ = h.Write(&head) // it writes to memory, in the order of names
	a.raw = head.String() + string(body)
	if strings.HasSuffix(resp.Header.Get("Content-Type"), "ndjson") { // cut at any place
		body = nil
	}
	text := resp.Status + "\n" + head.String() + string(body)
	if ref != "" { // as a word: a short one may be within another's
		text = regexp.MustCompile(`\b`+regexp.QuoteMeta(ref)+`\b`).ReplaceAllString(text, "REF")
	}
	text = newID.ReplaceAllString(text, "a job")
	a.text = indexInBody.ReplaceAllStringFunc(text, func(s string) string {
		if s == `"index":`+strconv.FormatUint(a.index, 10) {
			return `"index":that of the header`
		}
		return `"index":another`
	})
	return a
}

// discreet fails when an answer tells what is somebody else's, but for the ID that
// was asked for.
func (w *walk) discreet(who *foreigner, q refQuestion, ref string, a told) {
	w.t.Helper()
	text := a.raw
	if plain, err := base64.RawURLEncoding.DecodeString(a.cursor); err == nil {
		text += string(plain)
	}
	if ref != "" {
		text = strings.ReplaceAll(strings.ReplaceAll(text, ref, ""), strings.ToUpper(ref), "")
	}
	for _, s := range w.secret {
		if at := strings.Index(text, s); at >= 0 {
			w.t.Errorf("%s: %s %s?%s of %s tells %q: …%s…", who.name, q.method, q.path, q.query.Encode(), ref, s, text[max(0, at-80):min(len(text), at+80)])
		}
	}
}

// tries is how often what goes on beside a walk may come between two answers.
const tries = 10

// compare fails unless an ID of somebody else's is answered to the letter as one
// that never was, also in how the index goes on. undo takes back what was done.
func (w *walk) compare(who *foreigner, q refQuestion, kind, ref string, undo func(ref string)) {
	w.t.Helper()
	var a, b, c told
	for range tries {
		one, two := w.never(kind, ref), w.never(kind, ref)
		a = w.ask(who, q, one)
		undo(one)
		b = w.ask(who, q, ref)
		undo(ref)
		if a.text == b.text && a.index == b.index {
			c = b
			break
		}
		c = w.ask(who, q, two)
		undo(two)
		if a.text == b.text && b.text == c.text && b.index-a.index == c.index-b.index {
			break
		}
	}
	w.discreet(who, q, ref, b)
	if a.text == b.text && b.text == c.text && b.index-a.index == c.index-b.index {
		return
	}
	w.t.Errorf("%s: %s %s?%s %s of somebody else's %s %s is told from one that never was:\nforeign (%d): %s\nunknown (%d): %s\nunknown (%d): %s",
		who.name, q.method, q.path, q.query.Encode(), q.body, kind, ref, b.index, b.text, a.index, a.text, c.index, c.text)
}

// fill puts what somebody has into a path, but for one variable, which is asked for.
func (who *foreigner) fill(path, but string) string {
	for kind, own := range who.own {
		if kind != but {
			path = strings.ReplaceAll(path, "{"+kind+"}", own)
		}
	}
	return strings.ReplaceAll(path, "{"+but+"}", "REF")
}

var variableInPath = regexp.MustCompile(`\{(\w+)\}`)

// variants are other ways of the same question.
func variants(q refQuestion, takes []string) (all []refQuestion) {
	for _, v := range [...][2]string{{"consistency", "stale"}, {"archived", "true"}, {"estimate", "true"}, {"live", "true"}} {
		if slices.Contains(takes, v[0]) {
			all = append(all, q.with(v[0], v[1]))
		}
	}
	if slices.Contains(takes, "wait") && slices.Contains(takes, "index") {
		all = append(all, q.with("index", "1").with("wait", "1ms"))
	}
	return all
}

// route walks one route as somebody: with each of its variables and parameters in
// turn somebody else's, and with what its body may name.
func (w *walk) route(who *foreigner, rt httpd.RouteInfo) {
	in := rt.Anyone || slices.ContainsFunc(rt.Scopes, func(s gpuai.Scope) bool { return strings.Contains(who.own["scopes"], s.String()) })
	base := refQuestion{method: rt.Method, path: who.fill(rt.Path, ""), body: plainBody(rt.String()), lasts: rt.Lasts, header: headersOf[rt.Path]}
	a := w.ask(who, base, "")
	w.discreet(who, base, "", a)
	if refused := a.status == 401 || a.status == 403; refused && in && !mayRefuse[rt.String()] || !refused && !in {
		w.t.Errorf("%s: %s was answered %d: %s", who.name, rt, a.status, a.raw)
	}
	for _, own := range []string{who.own["job"], who.own["waits"]} {
		q := base
		q.path = strings.ReplaceAll(base.path, who.own["job"], own)
		for _, v := range append(variants(q, rt.Query), q) {
			if in && rt.Method == "GET" && !w.brief && !(rt.Lasts && v.query == nil) {
				w.discreet(who, v, "", w.ask(who, v, ""))
			}
		}
	}
	undo := func(string) {}
	if rt.String() == "PUT /v1/secrets/{secret}" {
		undo = func(ref string) { w.ask(who, refQuestion{method: "DELETE", path: "/v1/secrets/" + ref}, ref) }
	}
	ask := func(q refQuestion, kind string) {
		refs := w.foreign[kind]
		if w.brief || !in {
			refs = refs[:min(1, len(refs))]
		}
		for i, ref := range refs {
			w.compare(who, q, kind, ref, undo)
			for _, v := range variants(q, rt.Query) {
				if i == 0 && in && !w.brief {
					w.compare(who, v, kind, ref, undo)
				}
			}
		}
	}
	for _, m := range variableInPath.FindAllStringSubmatch(rt.Path, -1) {
		q := base
		q.path = who.fill(rt.Path, m[1])
		ask(q, m[1])
	}
	for _, name := range rt.Query {
		if kind := kindOf[name]; kind == "cursor" {
			ask(base.with(name, "REF"), "cursor of "+strings.TrimPrefix(rt.Path, "/v1/"))
		} else if kind != "" {
			ask(base.with(name, "REF"), kind)
		}
	}
	if f := filterOf[rt.Path]; f.kind != "" && in {
		ask(base.with("filter", f.text), f.kind)
	}
	for _, b := range bodiesOf[rt.String()] {
		if q := base; b.kind != "" {
			q.body = b.text
			ask(q, b.kind)
		}
	}
}

// list follows a list row by row, and from places that others were told of.
func (w *walk) list(who *foreigner, rt httpd.RouteInfo, others []*foreigner) {
	q := refQuestion{method: rt.Method, path: who.fill(rt.Path, "")}.with("limit", "1")
	if slices.Contains(rt.Query, "node") && who.own["scopes"] == "contributor" {
		q = q.with("node", who.own["node"])
	}
	follow := func(as *foreigner, q refQuestion) (cursors []string) {
		for range 60 {
			a := w.ask(as, q, "")
			if as == who {
				w.discreet(who, q, "", a)
			}
			if a.cursor == "" {
				return cursors
			}
			cursors = append(cursors, a.cursor)
			q = q.with("cursor", a.cursor)
		}
		w.t.Errorf("%s: %s has no end", as.name, rt)
		return cursors
	}
	for _, start := range append(variants(q, rt.Query), q) {
		follow(who, start)
	}
	for _, other := range others {
		theirs := q
		theirs.path = other.fill(rt.Path, "")
		for _, c := range follow(other, theirs) {
			from := q.with("cursor", c)
			if a := w.ask(who, from, ""); a.status >= 500 {
				w.t.Errorf("%s: %s from %s's place: %s", who.name, rt, other.name, a.raw)
			}
			follow(who, from)
		}
	}
}
