package server

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/raft"
)

// fuzzed is a region of one server without authentication, where whoever reaches a
// port may say anything.
func fuzzed(f *testing.F) *Server {
	f.Helper()
	var at [2]net.Listener
	for i := range at {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.Fatal(err)
		}
		at[i] = l
	}
	s, err := Open(Config{
		ID: "s1", DataDir: f.TempDir(), HTTP: at[0], Raft: at[1], Bootstrap: true, Logger: slog.New(slog.DiscardHandler),
		Peers: []raft.Peer{{ID: "s1", Addr: at[1].Addr().String()}},
	})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.Errorf("the server ended with: %v", err)
		}
	})
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for end := time.After(patience); !s.Status().Ready; {
		select {
		case <-poll.C:
		case <-end:
			f.Fatal("the server is not ready")
		}
	}
	return s
}

// FuzzSession takes lines of any frames for those of an agent: a session comes to its
// end, and the server goes on.
func FuzzSession(f *testing.F) {
	hello, err := json.Marshal(gpuai.Frame{Kind: gpuai.FrameHello, Hello: &gpuai.Hello{Node: nodeSpec("n1", 2), BootID: "b", Nonce: "n", Sent: 1}})
	if err != nil {
		f.Fatal(err)
	}
	for kind := gpuai.FrameHello; kind <= gpuai.FrameSecrets; kind++ {
		empty := `{"kind":"` + kind.String() + `"}`
		f.Add([]byte(empty))
		f.Add([]byte(string(hello) + "\n" + empty))
	}
	for _, frame := range []string{
		`{"kind":"hello","hello":{}}`, `{"kind":"beat","beat":{"seq":18446744073709551615}}`, `{"kind":"report","report":{"lease":"0","seq":4294967295,"state":"done","incarnation":"0"}}`,
		`{"kind":"devices","devices":[{},{}]}`, `{"kind":"log","log":{"id":1,"data":"AA=="}}`, `{"kind":"publish","publish":{"lease":"1","keep":0}}`, `{"kind":"secret_ask","secret_ask":{"lease":"18446744073709551615"}}`, string(hello),
	} {
		f.Add([]byte(string(hello) + "\n" + frame + "\n" + frame))
	}
	s := fuzzed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p := newPipe()
		ended := make(chan error, 1)
		go func() {
			ended <- s.Agent(t.Context(), p)
			p.close()
		}()
		go func() { // reads what it is sent
			for {
				select {
				case <-p.down:
				case <-p.closed:
					return
				}
			}
		}()
		for line := range bytes.SplitSeq(data, []byte("\n")) {
			var frame gpuai.Frame
			if json.Unmarshal(line, &frame, json.RejectUnknownMembers(true)) != nil {
				break
			}
			select {
			case p.up <- frame:
			case <-p.closed:
			}
		}
		p.close()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatalf("a session with %q has no end", data)
		}
	})
}

// FuzzPeers asks a server's port for other servers for anything at all, which may be
// done before anything is known in a region without authentication.
func FuzzPeers(f *testing.F) {
	paths := []string{pathLogs, pathHolds, pathIndex, pathLevel, pathMembers, pathPosition, pathLog, pathArchive, pathUses, pathKeys, pathBeats, pathState, "/peer/v1/x", "/v1/jobs"}
	for i := range paths {
		for _, body := range []string{"", "null", "{}", "[]", "1", `"x"`, `{"node":"n","request":{"lease":"1","offset":-1,"limit":-1}}`, `{"from":18446744073709551615,"to":1}`, `{"want":["x"]}`, "\xff\xff\xff\xff\x0f", strings.Repeat("[", 1000)} {
			f.Add(uint8(i), []byte(body))
		}
	}
	s := fuzzed(f)
	f.Fuzz(func(t *testing.T, n uint8, body []byte) {
		var j joinBody // what changes members is read only: each would change what the next finds
		_ = json.Unmarshal(body, &j, json.RejectUnknownMembers(true))
		var c memberChange
		_ = json.Unmarshal(body, &c, json.RejectUnknownMembers(true))
		var d digestQuestion
		_ = json.Unmarshal(body, &d)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, "POST", paths[int(n)%len(paths)], bytes.NewReader(body))
		r.Host = "127.0.0.1"
		w := httptest.NewRecorder()
		s.peers.Handler.ServeHTTP(w, r) // a panic ends this process
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s %q: %d %s", r.URL.Path, body, w.Code, w.Body)
		}
	})
}
