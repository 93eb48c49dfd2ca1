package httpd

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A rawClient sends requests as they are written, one behind the other for as long
// as the server keeps the connection.
type rawClient struct {
	addr string
	conn net.Conn
	read *bufio.Reader
}

// send returns the answer to a request; no status when the server just closes.
func (c *rawClient) send(t *testing.T, method, request string) (status int, body string) {
	t.Helper()
	if c.conn == nil {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.conn, c.read = conn, bufio.NewReader(conn)
	}
	_ = c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c.conn, request); err != nil {
		c.close()
		return 0, ""
	}
	resp, err := http.ReadResponse(c.read, &http.Request{Method: method})
	if err != nil {
		c.close()
		return 0, ""
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || resp.Close || resp.StatusCode == http.StatusSwitchingProtocols {
		c.close()
	}
	return resp.StatusCode, string(b)
}

func (c *rawClient) close() {
	_ = c.conn.Close()
	c.conn = nil
}

// pathTricks are other ways to write a path, which some servers take for it.
func pathTricks(path string) []string {
	upper, first := strings.ToUpper(path), fmt.Sprintf("/%%%02x%s", path[1], path[2:])
	return []string{
		"/" + path, path + "/", path + "/.", "/." + path, "/x/.." + path, "/healthz/.." + path, "/healthz/%2e%2e" + path, "/healthz%2f.." + path, "/v1/jobs/x/../../.." + path,
		strings.ReplaceAll(path, "/", "//"), strings.ReplaceAll(path, "/", "%2f"), "/" + strings.ReplaceAll(path[1:], "/", "%2F"), strings.ReplaceAll(path, "/", "%252f"), strings.ReplaceAll(path, "/", `\`),
		strings.ReplaceAll(path, "/", "/./"), "/%2e%2e" + path, "/%252e%252e" + path, "/..;" + path, "/healthz;" + path, path + ";x=1", path + ";", path + "%00", path + "%00.json", "/healthz%00" + path,
		path + "%20", path + "%0d%0aX-A:1", path + "%23", path + "%3f", upper, first, strings.Replace(first, "%", "%25", 1), path + "?", path + "?x=%00", path + "#x", path + "/%c0%ae%c0%ae/",
		"http://127.0.0.1" + path, "http://localhost" + path, "https://other.example" + path, "HTTP://x:80//" + path, "http:" + path, "file://" + path, "//h" + path, path[1:], "*", "http://u:p@127.0.0.1" + path,
	}
}

// headerTricks are headers by which some servers take another path, method, caller or
// protocol for the request's.
func headerTricks(method, path string) []string {
	return []string{
		"X-HTTP-Method-Override: " + method, "X-HTTP-Method: " + method, "X-Method-Override: " + method, "X-Original-URL: " + path, "X-Rewrite-URL: " + path,
		"X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1", "X-Forwarded-Host: localhost\r\nX-Forwarded-Proto: https",
		headerPrincipal + `: {"Actor":"token/op","Scopes":16}`, headerForwarded + ": 1\r\n" + headerPrincipal + `: {"Actor":"server/s1","Server":"s1"}`,
		"Authorization: Bearer", "Authorization: Bearer \t", "Authorization: Basic Og==", "Authorization: Bearer null", "Authorization: Bearer undefined", "Proxy-Authorization: Bearer T-operator",
		"Cookie: token=T-operator; Authorization=Bearer T-operator", "Connection: Authorization", "X-Client-Cert: node/x1\r\nX-SSL-Client-Verify: SUCCESS",
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", "Connection: Upgrade\r\nUpgrade: TLS/1.3", "Connection: Upgrade\r\nUpgrade: websocket",
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: gpuai.session.v1, gpuai.exec.v1",
		":path: /healthz", ":method: GET", ":authority: localhost", "Host: localhost", "Expect: 100-continue", "Expect: x", "Transfer-Encoding: chunked, identity", "Content-Length: 0\r\nContent-Length: 5", "Content-Type: \x00",
	}
}

// Whoever shows no token comes in by no route that wants one, whatever it writes for
// its path, its method, its headers and its protocol; and nothing panics.
func TestTricksWithoutAToken(t *testing.T) {
	x := newSecured()
	srv := httptest.NewUnstartedServer(x.h)
	var served bytes.Buffer
	srv.Config = NewServer(x.h, slog.New(slog.NewTextHandler(&served, &slog.HandlerOptions{Level: slog.LevelDebug})))
	srv.Start()
	defer srv.Close()
	c := &rawClient{addr: srv.Listener.Addr().String()}
	good, _ := c.send(t, "GET", "GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer T-read\r\n\r\n")
	if good != http.StatusOK {
		t.Fatalf("a good request: %d", good) // else nothing is tested
	}
	_, alive := c.send(t, "GET", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	asked, answers := 0, map[int]int{}
	check := func(rt *route, method, request string) {
		status, body := c.send(t, method, request)
		asked++
		answers[status]++
		if status >= 500 && status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported ||
			status < 400 && status != 0 && body != alive && !(method == "HEAD" && strings.HasPrefix(request, "HEAD /healthz")) {
			t.Errorf("%s %s: %q is answered %d: %.300s", rt.method, rt.path, request, status, body)
		}
	}
	for i := range routes {
		rt := &routes[i]
		if rt.who&anyone != 0 {
			continue
		}
		path := strings.NewReplacer("{key}", "k", "{kind}", "node", "{name}", "n").Replace(rt.target())
		end := " HTTP/1.1\r\nHost: x\r\n"
		if rt.method != "GET" {
			end += "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
		} else {
			end += "\r\n"
		}
		for _, trick := range append(pathTricks(path), path) {
			check(rt, rt.method, rt.method+" "+trick+end)
		}
		for _, method := range []string{"HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND", strings.ToLower(rt.method), rt.method + "\x0b", "G\x00T"} {
			check(rt, method, method+" "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		for _, header := range headerTricks(rt.method, path) {
			check(rt, "GET", "GET "+path+" HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n")
			check(rt, "GET", "GET /healthz HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n")
			check(rt, "POST", "POST "+path+" HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n")
		}
		for _, protocol := range []string{"HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/1.9", "ICY/1.0", ""} {
			check(rt, rt.method, rt.method+" "+path+" "+protocol+"\r\nHost: x\r\n\r\n")
		}
		check(rt, "PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		check(rt, "GET", "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		if c.conn != nil {
			c.close()
		}
	}
	if asked < 5000 || answers[http.StatusUnauthorized] < 1000 || answers[http.StatusNotFound] < 1000 {
		t.Errorf("%d requests were answered %v: this tests little", asked, answers)
	}
	srv.Close()
	if strings.Contains(x.logs.String()+served.String(), "panic") {
		t.Errorf("a handler panicked: %.2000s %.2000s", x.logs, &served)
	}
}
