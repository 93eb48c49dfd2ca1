package httpd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/gorilla/mux"

	"github.com/gpuai/gpuai"
)

// A call is one request on its way through a handler. One goroutine owns it.
type call struct {
	api   *api
	rt    *route
	w     http.ResponseWriter
	r     *http.Request
	ctl   *http.ResponseController
	id    string           // the request's ID
	who   *gpuai.Principal // never nil in a handler
	query url.Values
	index uint64 // of the state that the answer is from; 0 = not set yet
	// status is that of the answer; 0 while nothing was written.
	status int
	taken  int64 // of the body budget
	// lasting says that what was admitted goes on behind the answer, and leaves
	// by itself.
	lasting bool
	claim   claim // for its room
}

// readTimeout bounds the wait for a linearizable point.
const readTimeout = 10 * time.Second

// handler serves one route: room, headers, the parts all routes share, errors.
func (a *api) handler(rt *route) http.Handler {
	known := rt.parameters()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		c := &call{api: a, rt: rt, w: w, r: r, ctl: http.NewResponseController(w), id: requestID(r)}
		c.describe()
		class := rt.class
		if rt.watch && strings.Contains(r.URL.RawQuery, "index=") {
			class = classStream
		}
		defer func() {
			p := recover()
			a.bodies.give(c.taken)
			if p != nil {
				c.panicked(p)
			}
			a.metrics.observe(rt, r.Method, c.status, time.Since(start))
		}()
		c.claim.class = class
		err := c.identify()
		if err == nil {
			err = c.enter()
		}
		if err != nil {
			c.finish(err)
			return
		}
		defer func() {
			if !c.lasting {
				c.leave()
			}
		}()
		if err := c.serve(known); err != nil {
			c.finish(err)
		}
	})
}

// identify finds out who asks: room is shared among them.
func (c *call) identify() error {
	if err := c.api.cross.Check(c.r); err != nil {
		return gpuai.NewError(gpuai.Forbidden, "a page of another site may not use this API")
	}
	if err := c.checkHost(); err != nil {
		return err
	}
	return c.admit()
}

// serve checks what all routes check and calls the route's handler, here or on
// the leader.
func (c *call) serve(known []string) error {
	if err := c.parseQuery(known); err != nil {
		return err
	}
	if c.stale() && c.api.backend.Status().Starting {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "this server has just started and catches up with its leader: retry, or ask another server",
		}
	}
	if id := gpuai.ServerID(c.query.Get("server")); id != "" && id != c.api.backend.Status().Server {
		return c.askMember(id)
	}
	if c.rt.where == here || c.stale() {
		if err := c.trusted(); err != nil {
			return err
		}
		return c.rt.handle(c)
	}
	transport, err := c.api.backend.Forward(c.r.Context())
	if err != nil {
		return err
	}
	if transport != nil {
		return c.forward(transport)
	}
	return c.rt.handle(c)
}

// trusted refuses to answer from a state that is not the region's, or that
// stands still where the caller did not say that it may. What says how this
// server is goes on; its agents' sessions judge for themselves.
func (c *call) trusted() error {
	if c.rt.class == classStatus || c.rt.class == classAnonymous && !c.rt.write || c.rt.member { // also for whoever looks for the fault
		return nil
	}
	st := c.api.backend.Status()
	if st.Stalled != "" && !c.stale() && c.rt.class != classSession {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: st.Stalled + ", so it does not know what is new: ask another server",
		}
	}
	if st.Quarantined == "" {
		return nil
	}
	return &gpuai.Error{
		Code: gpuai.NoLeader, RetryAfter: 5 * gpuai.Second,
		Detail: "server " + string(st.Server) + " is quarantined, " + st.Quarantined + ": ask another server",
	}
}

// describe sets the headers that every answer has.
func (c *call) describe() {
	st := c.api.backend.Status()
	h := c.w.Header()
	h.Set(headerIndex, strconv.FormatUint(st.Index, 10))
	h.Set(headerLastContact, strconv.FormatInt(int64(st.LastContact), 10))
	h.Set(headerLeader, strconv.FormatBool(st.Leader != ""))
	h.Set(headerRequestID, c.id)
	h.Set("X-Content-Type-Options", "nosniff")
}

// finish answers with err, unless the answer has begun or nobody waits for it.
func (c *call) finish(err error) {
	if c.status != 0 {
		c.api.log.Debug("answer cut short", "path", c.r.URL.Path, "request_id", c.id, "error", err)
		return
	}
	if c.r.Context().Err() != nil && errors.Is(err, c.r.Context().Err()) {
		c.status = 499 // as others call it: the client is gone
		return
	}
	c.fail(err)
}

// panicked answers a broken invariant of this server's as internal.
func (c *call) panicked(p any) {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	c.api.log.Error("handler panicked", "route", c.rt.path, "request_id", c.id, "panic", p, "stack", string(debug.Stack()))
	if c.status == 0 {
		c.fail(fmt.Errorf("panic: %v", p))
		return
	}
	panic(http.ErrAbortHandler)
}

// parseQuery reads the parameters and refuses those that the route does not
// take: a misspelt filter must not become none.
func (c *call) parseQuery(known []string) (err error) {
	if c.r.URL.RawQuery == "" || c.rt.anyQuery {
		return nil
	}
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return badQuery("the query string", "is not well-formed: "+err.Error())
	}
	for name, values := range c.query {
		if !slices.Contains(known, name) {
			takes := "takes no query parameters"
			if len(known) > 0 {
				takes = "takes " + strings.Join(known, ", ")
			}
			return badQuery("query parameter "+strconv.Quote(name), "is unknown: this route "+takes)
		}
		if len(values) > 1 {
			return badQuery("query parameter "+strconv.Quote(name), "is given twice")
		}
	}
	switch s := c.query.Get("consistency"); s {
	case "", "default", "stale":
		return nil
	default:
		return badQuery("consistency", "is default or stale, not "+strconv.Quote(s))
	}
}

// stale reports whether the caller takes any replica's answer.
func (c *call) stale() bool {
	return c.rt.where == onLeaderOrStale && c.query.Get("consistency") == "stale"
}

// variable returns a part of the path, unescaped.
func (c *call) variable(name string) (string, error) {
	s, err := url.PathUnescape(mux.Vars(c.r)[name])
	if err != nil || len(s) > gpuai.MaxTextLen {
		return "", gpuai.NewError(gpuai.NotFound, "no "+name+" has such a name")
	}
	return s, nil
}

// readPoint returns once a read here is linearizable, and notes the index that
// the answer is at least from.
func (c *call) readPoint() error {
	if !c.stale() && c.rt.where == onLeaderOrStale {
		if err := c.linearize(); err != nil {
			return err
		}
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.trusted() // it may have been quarantined while the call waited
}

func (c *call) setIndex(index uint64) {
	c.index = index
	c.w.Header().Set(headerIndex, strconv.FormatUint(index, 10))
}

// setETag names the version of the one object that is answered.
func (c *call) setETag(modified uint64) {
	c.w.Header().Set("ETag", `"`+strconv.FormatUint(modified, 10)+`"`)
}

// reply answers with v as JSON.
func (c *call) reply(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer of %s: %w", c.rt.path, err)
	}
	c.send(status, "application/json", body)
	return nil
}

// send writes a whole answer, within the write timeout. A reader that is gone
// or too slow costs only itself.
func (c *call) send(status int, kind string, body []byte) {
	h := c.w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	c.begin(status)
	if _, err := c.w.Write(body); err != nil && c.r.Method != http.MethodHead {
		c.api.log.Debug("answer not read", "route", c.rt.path, "request_id", c.id, "error", err)
	}
}

// begin writes the status and allows the write timeout for what follows.
func (c *call) begin(status int) {
	c.status = status
	_ = c.ctl.SetWriteDeadline(time.Now().Add(c.api.cfg.WriteTimeout)) // a writer without deadlines is a test's
	c.w.WriteHeader(status)
}

// requestID returns the ID that the caller gave when it is one, or a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get(headerRequestID)
	if id != "" && len(id) <= 64 && strings.IndexFunc(id, notID) < 0 {
		return id
	}
	var b [16]byte
	s := strconv.AppendUint(b[:0], rand.Uint64(), 16)
	return string(s)
}

func notID(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
}

func (c *call) noSuchPath() error {
	return gpuai.NewError(gpuai.NotFound, "there is no such path: see /v1/openapi.json")
}

func (c *call) noSuchMethod() error {
	methods := strings.Join(c.api.allowed(c.r), ", ")
	c.w.Header().Set("Allow", methods)
	return &statusError{http.StatusMethodNotAllowed, gpuai.NewError(gpuai.InvalidSpec, "this path takes "+methods+" only")}
}
