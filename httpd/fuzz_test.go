package httpd

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// deepest returns the depth of nesting that JSON text reaches.
func deepest(v any) int {
	most := 0
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			most = max(most, deepest(e))
		}
		return most + 1
	case map[string]any:
		for _, e := range v {
			most = max(most, deepest(e))
		}
		return most + 1
	}
	return 0
}

// The guard judges valid JSON as a decoder that builds it all would, however
// the text is cut, and passes it on unchanged.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{`{}`, `[[["]"]]]`, `{"a\\":"}{","b":[1,2]}`, strings.Repeat("[", 40), `"\"[["`, strings.Repeat(`[`, 32) + strings.Repeat(`]`, 32)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v any
		if json.Unmarshal(data, &v) != nil {
			return
		}
		var passed bytes.Buffer
		g := &guard{r: iotest.OneByteReader(bytes.NewReader(data)), limit: maxValues}
		_, err := passed.ReadFrom(g)
		if deep := deepest(v) > maxDepth; deep != (err != nil) && len(data) < maxValues {
			t.Fatalf("depth %d: %v", deepest(v), err)
		}
		if err == nil && !bytes.Equal(passed.Bytes(), data) {
			t.Fatal("the text changed on the way")
		}
	})
}

func addBodies(f *testing.F) {
	f.Add([]byte(spec("a", 1, 2)))
	for _, c := range hostileBodies() {
		if len(c.body) < 4096 {
			f.Add([]byte(c.body))
		}
	}
}

// fuzzBody posts data and checks that whatever it is, it is answered as a job
// or as a problem of the caller's.
func fuzzBody(t *testing.T, h http.Handler, path string, data []byte) (status int) {
	r := httptest.NewRequestWithContext(t.Context(), "POST", path, bytes.NewReader(data))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code >= 500 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	var v any
	if err := decodeAny(w.Body.String(), &v); err != nil {
		t.Fatalf("the answer is no JSON: %v: %s", err, w.Body)
	}
	return w.Code
}

func FuzzJobSpec(f *testing.F) {
	addBodies(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newTwin()
		if fuzzBody(t, New(Config{Hosts: testHosts, Backend: b}), "/v1/jobs:plan", data) != http.StatusOK {
			return
		}
		var s gpuai.JobSpec // what is taken is valid, and stays so over another trip
		if err := json.Unmarshal(data, &s, strict); err != nil {
			t.Fatal(err)
		}
		s.Defaults()
		if wrong := s.Validate(); len(wrong) > 0 {
			t.Fatal(wrong)
		}
		again := mustJSON(t, &s)
		if fuzzBody(t, New(Config{Hosts: testHosts, Backend: b}), "/v1/jobs:plan", again) != http.StatusOK {
			t.Fatalf("its own form was refused: %s", again)
		}
	})
}

func FuzzBatch(f *testing.F) {
	f.Add([]byte(`{"jobs":[` + spec("a", 1, 1) + `,` + spec("b", 0, 3) + `]}`))
	addBodies(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newTwin()
		status := fuzzBody(t, New(Config{Hosts: testHosts, Backend: b}), "/v1/jobs:batch", data)
		var whole gpuai.BatchRequest
		err := json.Unmarshal(data, &whole, strict)
		if status == http.StatusOK && (err != nil || len(b.jobs) > len(whole.Jobs)) {
			t.Fatalf("%d jobs of a body that holds %d: %v", len(b.jobs), len(whole.Jobs), err)
		}
		if status != http.StatusOK && len(b.jobs) > 0 {
			t.Fatalf("%d, and yet %d jobs", status, len(b.jobs))
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte(`{"kind":"beat","beat":{"seq":1,"sent_boottime_ns":5}}`))
	f.Add([]byte(`{"kind":"report","report":{"lease":"7","seq":1,"incarnation":"1","state":"done"}}`))
	f.Add([]byte(`{"kind":"log","log":{"id":1,"offset":0,"data":"AA=="}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := decodeFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := decodeFrame(bytes.NewReader(mustJSON(t, &frame)))
		if err != nil || !bytes.Equal(mustJSON(t, &again), mustJSON(t, &frame)) {
			t.Fatalf("a frame changed on a second trip: %v", err)
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, q := range []string{"limit=5&cursor=2", `filter=name == "a"`, "fields=id,name", "index=3&wait=0s", "status=running", "%", "a;b"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v1/jobs?consistency=stale", nil)
		if strings.Contains(query, "index") {
			return // waits
		}
		r.URL.RawQuery += "&" + query
		w := httptest.NewRecorder()
		New(Config{Hosts: testHosts, Backend: newTwin()}).ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 400 {
			t.Fatalf("%q: %d %s", query, w.Code, w.Body)
		}
	})
}

// FuzzWrites sends any body to any route that takes one: whoever reaches the
// port may, before anybody knows who it is.
func FuzzWrites(f *testing.F) {
	for i, body := range []string{
		`{}`, `null`, spec("a", 1, 1), `{"weight":5}`, `{"jobs":[]}`, `{"server":"d","address":"127.0.0.1:1"}`,
		`{"demand":[{"tasks":3,"resources":{"gpu":{"count":1}}}]}`, `{"submit":[` + spec("a", 1, 1) + `],"drain":["n1"]}`, `[[[[`, "\xff",
	} {
		f.Add(uint8(i), []byte(body))
	}
	var writes []*route
	for i := range routes {
		if routes[i].method != "GET" {
			writes = append(writes, &routes[i])
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, body []byte) {
		rt := writes[int(n)%len(writes)]
		path := strings.NewReplacer("{job}", "j", "{node}", "gpu-0", "{tenant}", "t", "{server}", "s1").Replace(rt.path)
		r := httptest.NewRequestWithContext(t.Context(), rt.method, path, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		New(Config{Hosts: testHosts, Backend: newTwin()}).ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != 503 || w.Code == 0 {
			t.Fatalf("%s %s: %d %s", rt.method, path, w.Code, w.Body)
		}
	})
}

// FuzzExecStart reads a client's first message of a command.
func FuzzExecStart(f *testing.F) {
	f.Add([]byte(`{"start":{"command":["/bin/sh","-c","true"],"tty":true,"term":"xterm","cols":80,"rows":24}}`))
	f.Add([]byte(`{"start":{"command":["\u0000"]}}`))
	f.Add([]byte(`{"signal":"SIGTERM"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c gpuai.ExecControl
		if json.Unmarshal(data, &c, strict) == nil && c.Start != nil && c.Start.Validate() == "" && len(c.Start.Command) == 0 {
			t.Fatal("a command without a program is valid")
		}
	})
}
