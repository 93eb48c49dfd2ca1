package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// A problem is what is read of an answer that is an error.
type problem struct {
	Code   string             `json:"code"`
	Detail string             `json:"detail"`
	Errors []gpuai.FieldError `json:"errors"`
	ID     string             `json:"request_id"`
}

const goodJob = `{"name":"j","type":"batch","groups":[{"resources":{},"task":{"command":["/bin/true"]}}]}`

// TestCase30HostileRequests sends bodies and requests that no client should.
// Each is refused with its status and a sentence, and the servers' memory stays
// flat.
func TestCase30HostileRequests(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	before := r.memory()
	field := func(s string) string { return strings.Replace(goodJob, `"name":"j"`, s, 1) }
	labels := strings.Repeat(`{"attribute":"label.x","op":"=","values":["y"]},`, 10_000)
	for _, c := range []struct {
		name, kind, body string
		status           int
		want             string
	}{
		{"no JSON", "", "name: j", 400, "is not JSON"},
		{"nothing", "", "", 400, "ends too early"},
		{"half of it", "", goodJob[:40], 400, "EOF"},
		{"two values", "", goodJob + goodJob, 400, "something follows"},
		{"an unknown field", "", field(`"name":"j","nmae":"k"`), 400, "/nmae"},
		{"a field twice", "", field(`"name":"j","name":"k"`), 400, "given twice"},
		{"a wrong type", "", field(`"name":7`), 400, "/name"},
		{"not a number", "", field(`"name":"j","priority":NaN`), 400, "is not JSON"},
		{"bad UTF-8", "", field("\"name\":\"\xff\xfe\""), 400, "invalid UTF-8"},
		{"a name that is none", "", field(`"name":"No Name"`), 400, "/name"},
		{"too deep", "", field(`"name":` + strings.Repeat("[", 40) + strings.Repeat("]", 40)), 400, "32"},
		{"too many labels", "", strings.Replace(goodJob, `"resources"`, `"constraints":[`+strings.TrimSuffix(labels, ",")+`],"resources"`, 1), 413, "values"},
		{"too large", "", field(`"name":"` + strings.Repeat("j", 2<<20) + `"`), 413, "at most 1048576 bytes"},
		{"YAML", "application/yaml", "name: j\n", 415, "gpuai job run"},
		{"a form", "application/x-www-form-urlencoded", "name=j", 415, "application/json"},
		{"human sizes", "", strings.Replace(goodJob, `"resources":{}`, `"resources":{"memory_bytes":"1GiB"}`, 1), 400, "gpuai job run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			kind := c.kind
			if kind == "" {
				kind = "application/json"
			}
			for _, m := range r.servers { // the leader and those that forward
				res, err := http.Post("http://"+m.http+"/v1/jobs", kind, strings.NewReader(c.body))
				if err != nil {
					t.Fatal(err)
				}
				refused(t, res, c.status, c.want)
			}
		})
	}
	t.Run("a gigabyte", r.gigabyte)
	t.Run("requests that are wrong", r.wrongRequests)
	t.Run("slow header", r.slowHeader)
	for i, m := range r.memory() {
		if grown := m - before[i]; grown > 96<<20 {
			t.Errorf("server %s has grown by %d MiB", r.servers[i].id, grown>>20)
		}
	}
	for _, m := range r.servers {
		if err := m.client.Ready(t.Context()); err != nil {
			t.Errorf("server %s is not ready afterwards: %v", m.id, err)
		}
	}
}

// refused checks an answer that is an error, and closes it.
func refused(t *testing.T, res *http.Response, status int, want string) {
	t.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p problem
	if err := json.Unmarshal(body, &p); err != nil || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("status %d without a problem: %s", res.StatusCode, body)
	}
	text := p.Detail
	for _, e := range p.Errors {
		text += " " + e.Pointer + ": " + e.Detail
	}
	if res.StatusCode != status || p.Code == "" || p.ID == "" || text == "" || !strings.Contains(text, want) {
		t.Errorf("status %d, want %d with %q: %s", res.StatusCode, status, want, body)
	}
}

// gigabyte sends 1 GiB: announced, it is refused at its header; in chunks, at
// the first byte beyond the limit.
func (r *region) gigabyte(t *testing.T) {
	for _, announced := range []int64{1 << 30, -1} {
		for _, m := range r.servers {
			body := io.LimitReader(io.MultiReader(strings.NewReader(`{"name":"`), endless{}), 1<<30)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+m.http+"/v1/jobs", body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = announced
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Expect", "100-continue") // so that the header is judged first
			res, err := http.DefaultTransport.RoundTrip(req)
			var op *net.OpError
			if announced < 0 && errors.As(err, &op) {
				continue // the server closed before all was sent, and its answer was lost on the way
			}
			if err != nil {
				t.Fatal(err)
			}
			refused(t, res, 413, "bytes")
		}
	}
}

// endless is the inside of a string without an end.
type endless struct{}

// Read implements io.Reader.
func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// wrongRequests asks for what is not there.
func (r *region) wrongRequests(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/v1/jobs/nowhere", 404},
		{"POST", "/v1/jobs/nowhere/stop", 404},
		{"GET", "/v1/leases/1", 404},
		{"GET", "/v1/leases/x", 404},
		{"GET", "/v1/nodes/nowhere", 404},
		{"GET", "/v1/nothing", 404},
		{"DELETE", "/v1/jobs", 405},
		{"GET", "/v1/jobs?limt=3", 400},
		{"GET", "/v1/jobs?limit=-3", 400},
		{"GET", "/v1/jobs?cursor=x", 400},
		{"GET", "/v1/jobs?filter=((", 400},
		{"GET", "/v1/operator/digest?index=99999999", 404},
		{"GET", "/v1/operator/digest?index=x", 400},
		{"GET", "/v1/jobs/nowhere/logs", 404},
	} {
		for _, m := range r.servers {
			req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+m.http+c.path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			refused(t, res, c.status, "")
		}
	}
}

// slowHeader begins a request and never ends its header: the server hangs up.
func (r *region) slowHeader(t *testing.T) {
	conn, err := net.Dial("tcp", r.servers[0].http)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	fmt.Fprintf(conn, "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	if err := conn.SetReadDeadline(began.Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, bufio.NewReader(conn)); err != nil {
		t.Fatalf("after %s the server still waits for the header: %v", time.Since(began), err)
	}
}

// memory returns the resident memory of each server in bytes.
func (r *region) memory() (out [members]int64) {
	r.t.Helper()
	for i, m := range r.servers {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
		if err != nil {
			r.t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(status, []byte("VmRSS:"))
		var kib int64
		if _, err := fmt.Sscanf(string(rest), "%d kB", &kib); err != nil {
			r.t.Fatalf("reading the memory of server %s: %v", m.id, err)
		}
		out[i] = kib << 10
	}
	return out
}
