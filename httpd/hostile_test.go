package httpd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// refused is a body and what must come of it.
type refused struct {
	name, path, body string
	status           int
	pointer, says    string
}

func hostileBodies() []refused {
	deep := strings.Repeat(`[`, 100_000)
	labels := new(strings.Builder)
	for i := range 10_000 {
		fmt.Fprintf(labels, `"L%d":"v",`, i)
	}
	return []refused{
		{"deep array", "/v1/jobs", deep, 400, "", "32 levels"},
		{"deep object", "/v1/jobs", strings.Repeat(`{"a":`, 33), 400, "", ""},
		{"deep in a batch", "/v1/jobs:batch", `{"jobs":[{"name":` + deep, 400, "", "32 levels"},
		{"deep instead of a batch", "/v1/jobs:batch", deep, 400, "", ""},
		{"duplicate key", "/v1/jobs", `{"name":"a","name":"b","groups":[]}`, 400, "/name", "twice"},
		{"duplicate nested key", "/v1/jobs", `{"name":"a","groups":[{"task":{"env":{"A":"1","A":"2"}}}]}`, 400, "/groups/0/task/env/A", "twice"},
		{"unknown field", "/v1/jobs", `{"name":"a","replicas":3}`, 400, "/replicas", "unknown field"},
		{"other case", "/v1/jobs", `{"Name":"a"}`, 400, "/Name", "unknown field"},
		{"unknown field in a batch", "/v1/jobs:batch", `{"jobs":[` + spec("a", 1, 1) + `,{"x":1}]}`, 400, "/jobs/1/x", "unknown field"},
		{"batch with another field", "/v1/jobs:batch", `{"jobs":[` + spec("a", 1, 1) + `],"x":1}`, 400, "", "no other"},
		{"batch of nothing", "/v1/jobs:batch", `{"jobs":[]}`, 400, "/jobs", "at least one"},
		{"NaN", "/v1/jobs", `{"name":"a","priority":NaN}`, 400, "/priority", "not JSON"},
		{"infinity", "/v1/jobs", `{"name":"a","priority":1e999}`, 400, "/priority", "whole number"},
		{"fraction", "/v1/jobs", `{"name":"a","priority":1.5}`, 400, "/priority", "whole number"},
		{"out of range", "/v1/jobs", `{"name":"a","priority":300}`, 400, "/priority", "in range"},
		{"bad UTF-8", "/v1/jobs", "{\"name\":\"a\xff\"}", 400, "/name", "UTF-8"},
		{"bad UTF-8 in a name", "/v1/jobs", "{\"n\xff\":1}", 400, "", "UTF-8"},
		{"lone surrogate", "/v1/jobs", `{"name":"\ud800"}`, 400, "/name", ""},
		{"trailing data", "/v1/jobs", spec("a", 1, 1) + `{}`, 400, "", "follows"},
		{"trailing garbage", "/v1/jobs:batch", `{"jobs":[` + spec("a", 1, 1) + `]} x`, 400, "", "follows"},
		{"cut short", "/v1/jobs", `{"name":"a"`, 400, "", "EOF"},
		{"nothing", "/v1/jobs", ` `, 400, "", "too early"},
		{"null", "/v1/jobs", `null`, 400, "/name", ""},
		{"an array", "/v1/jobs", `[]`, 400, "", "an object"},
		{"human size", "/v1/jobs", `{"name":"a","groups":[{"resources":{"memory_bytes":"24GiB"}}]}`, 400, "/groups/0/resources/memory_bytes", "gpuai job run"},
		{"file form", "/v1/jobs", `{"name":"a","groups":[{"resources":{"memory":"24GiB"}}]}`, 400, "/groups/0/resources/memory", "gpuai job run"},
		{"unknown type", "/v1/jobs", `{"name":"a","type":"service"}`, 400, "/type", "batch, train"},
		{"10k labels", "/v1/jobs", `{"name":"a","labels":{` + strings.TrimSuffix(labels.String(), ",") + `},"groups":[]}`, 400, "/labels", "unknown field"},
		{"10k variables", "/v1/jobs", `{"name":"a","groups":[{"task":{"script":"x","env":{` + strings.TrimSuffix(labels.String(), ",") + `}}}]}`, 400, "/groups/0/task/env", "1024"},
		{"many nulls", "/v1/jobs", `{"name":"a","groups":[` + strings.Repeat(`null,`, 150_000) + `null]}`, 413, "", "values"},
		{"many nulls in a batch", "/v1/jobs:batch", `{"jobs":[{"groups":[` + strings.Repeat(`null,`, 1_500_000) + `null]}]}`, 413, "", "values"},
		{"too many jobs", "/v1/jobs:batch", `{"jobs":[` + strings.Repeat(spec("a", 1, 1)+",", 1000) + spec("a", 1, 1) + `]}`, 413, "", "1000 jobs"},
		{"too many bad jobs", "/v1/jobs:batch", `{"jobs":[` + strings.Repeat(`null,`, 1_500_000) + `null]}`, 400, "/jobs/0/name", ""},
		{"too many bytes", "/v1/jobs", `{"name":"` + strings.Repeat("a", maxBody) + `"}`, 413, "", "1048576"},
		{"a policy of labels", "/v1/operator/policy", `{"labels":{}}`, 400, "/labels", "unknown field"},
	}
}

func method(path string) string {
	if strings.HasSuffix(path, "policy") {
		return http.MethodPut
	}
	return http.MethodPost
}

func TestHostileBodies(t *testing.T) {
	b := newTwin()
	s, doc := serve(t, b), newContract(t)
	for _, c := range hostileBodies() {
		t.Run(c.name, func(t *testing.T) {
			resp, body := ask(t, s, method(c.path), c.path, c.body)
			if resp.StatusCode != c.status || !strings.Contains(body, c.says) {
				t.Fatalf("%d, want %d with %q: %s", resp.StatusCode, c.status, c.says, body)
			}
			doc.checkProblem(t, resp, body)
			if len(body) > 64<<10 {
				t.Errorf("the refusal has %d bytes", len(body))
			}
			if c.pointer == "" {
				return
			}
			first := object(t, body)["errors"].([]any)[0].(map[string]any)
			if first["pointer"] != c.pointer {
				t.Errorf("it points to %v, want %v: %s", first["pointer"], c.pointer, body)
			}
		})
	}
	if len(b.jobs) > 0 {
		t.Errorf("%d hostile jobs were stored", len(b.jobs))
	}
}

// heap returns the live heap.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// RELIABILITY.md, case 30: 1 GB body, slow-loris, deep JSON, duplicate keys,
// NaN, bad UTF-8, 10k labels, against a real listener: 413, 408 or 400 within
// limits, and memory stays flat.
func TestCase30HostileHTTP(t *testing.T) {
	b := newTwin()
	s := serve(t, b, func(c *Config) { c.BodyTimeout = 2 * time.Second })
	s.Config.ReadHeaderTimeout = 300 * time.Millisecond
	addr := s.Listener.Addr().String()
	bodies := hostileBodies()
	peak := watchHeap(t)
	before := heap()

	t.Run("1 GB body, announced", func(t *testing.T) {
		status, sent := flood(t, addr, "Content-Length: 1073741824", 1<<30)
		if status != http.StatusRequestEntityTooLarge || sent > 16<<20 {
			t.Errorf("%d after %d bytes", status, sent)
		}
	})
	t.Run("1 GB body, chunked", func(t *testing.T) {
		status, sent := flood(t, addr, "Transfer-Encoding: chunked", 1<<30)
		if status != http.StatusRequestEntityTooLarge || sent > 16<<20 {
			t.Errorf("%d after %d bytes", status, sent)
		}
	})
	t.Run("slow header", func(t *testing.T) {
		if got := trickle(t, addr, "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: "); got != "" {
			t.Errorf("a header that never ends was answered %q", got)
		}
	})
	t.Run("slow body", func(t *testing.T) {
		got := trickle(t, addr, "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"name\":\"")
		if !strings.HasPrefix(got, "HTTP/1.1 408 ") {
			t.Errorf("a body that never ends was answered %q", got)
		}
	})
	t.Run("large header", func(t *testing.T) {
		resp, _ := ask(t, s, "GET", "/v1/jobs", "", "X-A: "+strings.Repeat("a", 64<<10))
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Error(resp.StatusCode)
		}
	})
	t.Run("hostile bodies together", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for _, c := range bodies {
					if resp, body := ask(t, s, method(c.path), c.path, c.body); resp.StatusCode != c.status {
						t.Errorf("%s: %d: %s", c.name, resp.StatusCode, body)
					}
				}
			})
		}
		wg.Wait()
	})
	// Four of the largest bodies at a time, and what they are decoded into: some
	// 100 to 140 MiB, as the collector comes to it. It grows with the specification:
	// a million bytes of "{}," are as many groups as their limit allows.
	if top := peak(); top > before+192<<20 {
		t.Errorf("the heap rose from %d to %d MiB", before>>20, top>>20)
	}
	if after := heap(); after > before+16<<20 {
		t.Errorf("the heap was %d MiB before and %d MiB after", before>>20, after>>20)
	}
	if resp, body := ask(t, s, "POST", "/v1/jobs", spec("ok", 1, 1)); resp.StatusCode != http.StatusCreated {
		t.Errorf("after all that a good job was answered %d: %s", resp.StatusCode, body)
	}
}

// watchHeap follows the heap and returns its peak when asked.
func watchHeap(t *testing.T) (peak func() uint64) {
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		var top uint64
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapAlloc)
			select {
			case <-tick.C:
			case <-stop:
				done <- top
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-done
	}
}

// flood sends a body of up to size bytes and returns the answer's status and
// how much was sent until it came.
func flood(t *testing.T, addr, length string, size int) (status, sent int) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%s\r\n\r\n", length)
	answer := make(chan int, 1)
	go func() {
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			answer <- 0
			return
		}
		answer <- resp.StatusCode
	}()
	chunk := []byte(strings.Repeat("a", 32<<10))
	if strings.Contains(length, "chunked") {
		chunk = []byte("8000\r\n" + string(chunk) + "\r\n")
	}
	start := `{"name":"`
	if strings.Contains(length, "chunked") {
		start = fmt.Sprintf("%x\r\n%s\r\n", len(start), start)
	}
	_, _ = io.WriteString(conn, start)
	for sent < size {
		n, err := conn.Write(chunk)
		if sent += n; err != nil {
			break
		}
	}
	return <-answer, sent
}

// trickle sends start and then a byte now and then, and returns what comes back
// until the server closes.
func trickle(t *testing.T, addr, start string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, start)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_, _ = conn.Write([]byte("a"))
			case <-stop:
				return
			}
		}
	}()
	began := time.Now()
	got, _ := io.ReadAll(conn)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the server held on for %s", d)
	}
	return string(got)
}

func TestIdempotencyKeys(t *testing.T) {
	s := serve(t, newTwin())
	for key, status := range map[string]int{
		"":                                       201,
		"k":                                      201,
		"a key":                                  400,
		"schlüssel":                              400,
		strings.Repeat("k", gpuai.MaxKeyLen):     201,
		strings.Repeat("k", gpuai.MaxKeyLen+1):   400,
		"01J9Z3V5WQ0000000000000000/with.punct;": 201,
	} {
		resp, body := ask(t, s, "POST", "/v1/jobs", spec("a", 0, 1), "Idempotency-Key: "+key)
		if resp.StatusCode != status && !(key == "schlüssel" && resp.StatusCode == 400) {
			t.Errorf("key %q: %d, want %d: %s", key, resp.StatusCode, status, body)
		}
	}
}

// A body budget that is used up refuses batches first.
func TestBodyBudget(t *testing.T) {
	b := &budget{max: 100}
	if !b.take(60, 0) || b.take(60, 0) || b.take(30, 20) || !b.take(30, 0) {
		t.Fatal("the budget was not kept")
	}
	b.give(60)
	b.give(30)
	if b.used.Load() != 0 || !b.take(80, 20) {
		t.Fatal("what was given back is gone")
	}
	s := serve(t, newTwin(), func(c *Config) { c.MaxBodyBytes = smallBodies + 10 })
	if resp, body := ask(t, s, "POST", "/v1/jobs:batch", `{"jobs":[`+spec("a", 1, 1)+`]}`); resp.StatusCode != 429 {
		t.Errorf("a batch beyond the budget: %d %s", resp.StatusCode, body)
	}
	if resp, body := ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1)); resp.StatusCode != 201 {
		t.Errorf("a job beside it: %d %s", resp.StatusCode, body)
	}
}
